"""The files that a QEMU started anew with a command line has to find on its host; disks and network left out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from migrator.core.process.command_line import CommandLine, Option, only_of_qmp
from migrator.core.process.options import Value

_ON = ("on", "yes", "true")


@dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A file that the command line names."""

    path: str
    #: For a message: ``the kernel``.
    what: str
    #: Its contents belong to the guest's start: another size there means another version.
    compared: bool = False
    #: QEMU takes this one where the other is not there.
    instead: str = ""


#: Options that are a path as a whole.
_WHOLE = {
    "bios": ("the firmware", True),
    "dtb": ("the device tree", True),
    "initrd": ("the initrd", True),
    "kernel": ("the kernel", True),
    "readconfig": ("a configuration of QEMU", False),
    "shim": ("the shim of the kernel", True),
}
#: Keys whose values are paths of files that must exist, for options with parts.
_PARTS = {
    "M": ("dtb", "firmware", "initrd", "kernel", "shim"),
    "acpitable": ("file",),
    "display": ("rendernode",),
    "fsdev": ("path", "socket"),
    "fw_cfg": ("file",),
    "machine": ("dtb", "firmware", "initrd", "kernel", "shim"),
    "net": ("smb", "tftp", "sock"),
    "netdev": ("smb", "tftp", "sock"),
    "nic": ("smb", "tftp", "sock"),
    "option-rom": ("romfile",),
    "plugin": ("file",),
    "smbios": ("file",),
    "spice": (
        *("x509-dir", "x509-cacert-file", "x509-cert-file", "x509-key-file", "x509-dh-key-file"),
        "rendernode",
    ),
    "tpmdev": ("path", "cancel-path"),
    "trace": ("events",),
    "virtfs": ("path", "socket"),
    "vnc": ("x509", "x509verify"),
}
#: Options and keys whose files QEMU also looks for in its own directories, where they have no directory.
_SEARCHED = frozenset({"bios", "firmware", "romfile"})
#: Options whose files are another version where they have another size.
_COMPARED = frozenset({"M", "acpitable", "fw_cfg", "machine", "option-rom", "plugin", "smbios"})
#: Properties of devices that name a file, and what that file is.
_OF_DEVICES = {
    "evdev": "an input device",
    "frudatafile": "a table of the BMC",
    "hidraw": "a device of the host",
    "romfile": "the ROM",
    "rootdir": "a directory that the guest shares",
    "sdrfile": "a table of the BMC",
    "vhostdev": "a device of the host",
}
_OF_OBJECTS = {
    "authz-list-file": ("filename",),
    "authz-listfile": ("filename",),
    "input-linux": ("evdev",),
    "pr-manager-helper": ("path",),
    "rng-random": ("filename",),
    "secret": ("file",),
    "sev-guest": ("dh-cert-file", "session-file", "sev-device"),
    "tls-creds-anon": ("dir",),
    "tls-creds-psk": ("dir",),
    "tls-creds-x509": ("dir",),
}
_CHARACTER = ("serial", "parallel", "monitor", "debugcon")
_TERMINALS = frozenset({"serial", "tty", "parallel", "parport"})


def named_files(command: CommandLine) -> list[NamedFile]:
    """Return all files that the command line names, each once."""
    found: list[NamedFile] = []
    # What only a QMP monitor uses is not made again as it is.
    others = {*served(command), *only_of_qmp((option.name, option.text) for option in command.options)}
    for option in command.options:
        if option.name in _WHOLE:
            what, compared = _WHOLE[option.name]
            path = _path(option.name, option.text)
            found.append(NamedFile(path=path, what=what, compared=compared))
        for key in _PARTS.get(option.name, ()):
            what = f"a file for -{option.name}"
            found.append(
                NamedFile(path=_path(key, option[key]), what=what, compared=option.name in _COMPARED)
            )
        if option.name == "acpitable":
            paths = option["data"].split(":")
            found += [NamedFile(path=path, what="a table for -acpitable", compared=True) for path in paths]
        elif option.name == "smbios":
            paths = Value(option.text, first="").all("path")
            found += [NamedFile(path=path, what="a string for -smbios", compared=True) for path in paths]
        elif option.name == "device":
            found += _of_device(option)
        elif option.name == "object":
            kind = option["qom-type"]
            what = f"a file of {kind} {option['id']}"
            found += [NamedFile(path=option[key], what=what) for key in _OF_OBJECTS.get(kind, ())]
        elif option.name in ("netdev", "nic", "net"):
            found += _of_stream(option)
        elif option.name == "chardev" and option["id"] not in others:
            found += _of_chardev(
                option["backend"], option["path"], option["server"], f"chardev {option['id']}"
            )
        elif option.name in _CHARACTER:
            found += _of_character(option)
    return [file for file in dict.fromkeys(found) if file.path]


def _path(key: str, text: str) -> str:
    """Return the path as it must be there; empty for one that QEMU may have in a directory of its own."""
    return "" if key in _SEARCHED and "/" not in text else text


def _of_stream(option: Option) -> Iterator[NamedFile]:
    """Yield the socket of a network to another program, which listens before QEMU starts."""
    if option["type"] == "stream" and option["server"] not in _ON and option["addr.type"] == "unix":
        yield NamedFile(path=option["addr.path"], what=f"the socket of network {option['id']}")


def _of_device(option: Option) -> Iterator[NamedFile]:
    driver = option["driver"]
    if driver in ("loader", "guest-loader"):
        for key in ("file", "kernel", "initrd"):
            yield NamedFile(path=option[key], what="a file to load", compared=True)
    for key, what in _OF_DEVICES.items():
        yield NamedFile(
            path=_path(key, option[key]), what=f"{what} of {driver}", compared=key.endswith("file")
        )
    if driver.startswith("vhost-vsock"):
        yield NamedFile(path="/dev/vhost-vsock", what="vhost of vsock")
    if driver.startswith("vhost-scsi"):
        yield NamedFile(path="/dev/vhost-scsi", what="vhost of SCSI")


def _of_chardev(backend: str, path: str, server: str, who: str) -> Iterator[NamedFile]:
    if backend == "socket" and server not in _ON:
        yield NamedFile(path=path, what=f"the socket of {who}")
    elif backend == "pipe" and path:
        yield NamedFile(path=f"{path}.in", what=f"the pipe of {who}", instead=path)
    elif backend in _TERMINALS:
        yield NamedFile(path=path, what=f"the device of {who}")


def _of_character(option: Option) -> Iterator[NamedFile]:
    """Yield the files of ``-serial`` and the like."""
    text = option.text.removeprefix("mon:")
    kind, _, rest = text.partition(":")
    who = f"-{option.name}"
    if text.startswith("/dev/"):
        yield NamedFile(path=text, what=f"the device of {who}")
    elif kind == "pipe":
        yield from _of_chardev("pipe", rest, "", who)
    elif kind == "unix":
        value = Value(rest, first="path")
        yield from _of_chardev("socket", value.get("path"), "on" if value.is_on("server") else "", who)


def served(command: CommandLine) -> dict[str, str]:
    """Return the chardevs behind which another process serves a device, and which one."""
    found = {}
    for option in command.all("device", "netdev"):
        kind = option["driver"] or option["type"]
        if kind.startswith("vhost-user") and option["chardev"]:
            found[option["chardev"]] = option["id"] or kind
    for option in command.all("tpmdev"):
        if option["chardev"]:
            found[option["chardev"]] = option["id"] or "tpm"
    return found
