"""Options of a command line that cannot be had a second time, or not at the target. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.options import Value, escape

_MAY_BE_PASSED = frozenset({"netdev", "nic", "net", "chardev", "device", "fsdev", "virtfs", "object"})
_PASSED = re.compile(r"(^|\.)(fd|fds|vhostfd|vhostfds|sock_fd|sockfd)$")
_WINDOWS = frozenset({"gtk", "sdl", "curses", "cocoa", "spice-app", "dbus"})
#: Where sound goes that stays at the host: its devices, programs of a desktop, a file that would be begun anew.
_SOUND = frozenset(
    {"alsa", "coreaudio", "dbus", "dsound", "jack", "oss", "pa", "pipewire", "sdl", "sndio", "wav"}
)


@dataclass(frozen=True, kw_only=True)
class TargetResources:
    """Paths, sockets and network that the target has already, as far as a command line is concerned."""

    #: Paths that exist there and are no directories.
    occupied: Collection[str]
    same_machine: bool
    same_network: bool
    #: Path of the socket that each character device connects to.
    sockets: Mapping[str, str]
    #: Of these, those whose process is started there too.
    started: Collection[str] = frozenset()


def is_window(name: str, value: Value) -> bool:
    """Tell whether an option shows the guest on a screen of the source's host."""
    return name in ("sdl", "curses", "full-screen", "portrait") or (
        name == "display" and value.get("type") in _WINDOWS
    )


def is_sound(name: str, value: Value) -> bool:
    """Tell whether an option plays the guest's sound at the source's host."""
    return name in ("audiodev", "audio") and value.get("driver") in _SOUND


def silenced(value: Value) -> str:
    """Return a sound option with the sound going nowhere; the guest has the same card."""
    kept = {key: value.get(key) for key in ("id", "model") if value.get(key)}
    return ",".join(["none", *(f"{key}={escape(text)}" for key, text in kept.items())])


def is_capture(name: str, value: Value) -> bool:
    """Tell whether an option writes the guest's traffic into a file, which another QEMU would begin anew."""
    return name == "object" and value.get("qom-type") == "filter-dump"


def check_option(name: str, text: str, value: Value, there: TargetResources) -> Iterator[Finding]:
    """Yield every finding about one option."""
    yield from _of_descriptors(name, text, value)
    yield from _of_helpers(name, value, there)
    if name == "snapshot" or (name == "drive" and value.is_on("snapshot")):
        yield finding(
            "snapshot",
            "what the guest wrote since its start is in a temporary file (snapshot=on) that stays behind",
        )
    elif name == "preconfig":
        yield finding("preconfig", "it was configured over QMP before its machine was made (-preconfig)")
    elif name in ("s", "gdb"):
        yield finding("gdb", "its gdb server does not move along")
    elif is_window(name, value):
        yield finding("display", f"its window ({name} {text}) stays behind".replace(" )", ")"))
    elif is_sound(name, value):
        where = value.get("driver")
        yield finding(
            "sound", f"its sound ({where}{' ' * bool(value.get('id'))}{value.get('id')}) stays behind"
        )
    elif is_capture(name, value):
        yield finding(
            "stays-behind",
            f"object {value.get('id')} stays behind: it would begin {value.get('file')} anew, over what is in it",
        )
    elif name == "object" and value.is_on("share") and value.get("mem-path") in there.occupied:
        yield finding(
            "memory-file",
            f"memory {value.get('id')} is the file {value.get('mem-path')}, which exists at the target already: both "
            "would write into it",
        )
    if there.same_network:
        yield from _of_network(name, value)


def _of_descriptors(name: str, text: str, value: Value) -> Iterator[Finding]:
    pipe = name == "readconfig" and (text == "-" or text.startswith(("/dev/", "/proc/")))
    types = (value.get("addr.type"), value.get("local.type"), value.get("remote.type"))
    passed = name in _MAY_BE_PASSED and (any(_PASSED.search(key) for key in value.keys) or "fd" in types)
    if name == "add-fd" or pipe or passed or "/dev/fdset/" in text:
        yield finding(
            "passed-descriptor",
            f"-{name} {value.get('id') if passed else text} was given an open file by whoever started it, which "
            "cannot be read from its command line",
            "have the program that started the guest start the destination (template or attached)",
        )
    elif name == "readconfig":
        yield finding("config-file", f"it reads a part of its configuration from {text}")


def _of_helpers(name: str, value: Value, there: TargetResources) -> Iterator[Finding]:
    kind = value.get("type" if name in ("netdev", "nic", "net", "tpmdev") else "driver")
    served = name in ("netdev", "nic", "net", "device") and kind.startswith("vhost-user")
    if not (served or (name == "tpmdev" and kind == "emulator")):
        return
    socket = there.sockets.get(value.get("chardev"), "")
    if socket in there.started or (socket in there.occupied and not there.same_machine):
        return  # it is started there, or somebody has done that
    where = f"at {socket} " if socket else ""
    if served:
        yield finding(
            "vhost-user",
            f"{value.get('id') or kind} is served by a process of its own {where}(vhost-user), which is not there for "
            "the destination",
        )
    else:
        yield finding("tpm", f"the TPM {value.get('id')} has its state in another process {where}({kind})")


def _of_network(name: str, value: Value) -> Iterator[Finding]:
    is_tap = name in ("netdev", "nic", "net") and value.get("type") == "tap"
    if is_tap and value.get("ifname"):
        yield finding(
            "tap-in-use",
            f"network {value.get('id') or 'tap'} uses the interface {value.get('ifname')}, which the source has open "
            "on the same machine",
        )
