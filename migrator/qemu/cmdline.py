"""From the command line of a QEMU that runs a guest, the one of the QEMU that shall take it. Pure.

Whatever the guest can see stays as it is. What belongs to the process (monitors, sockets, pid file, log) becomes the
new process's own; running it over its own result changes nothing, so a guest may move as often as it likes.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from migrator.core.model import Finding
from migrator.core.process.command_line import only_of_qmp
from migrator.core.process.options import FIRST, Value, read, write
from migrator.core.process.replica import Replica, TargetEnvironment
from migrator.qemu.current_command_line import current_command_line
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.image_locations import relocated_option
from migrator.qemu.option_checks import (
    TargetResources,
    check_option,
    is_capture,
    is_sound,
    is_window,
    silenced,
)
from migrator.qemu.port_assignment import PortAssignment

#: Bytes in the path of a unix socket (sun_path of struct sockaddr_un, without its last NUL).
SOCKET_PATH_BYTES = 107
CONTROL, RESCUE = "migrator-control", "migrator-rescue"

#: Of the process, not of the guest; those that the new process needs it gets anew. It is put into the background, and
#: its standard error into a log, by whoever starts it.
_DROPPED = frozenset(
    {
        *("S", "D", "daemonize", "dump-vmstate", "incoming", "loadvm", "pidfile", "writeconfig"),
        "loadstate",  # as Proxmox VE has it: a guest that was saved into a file before
    }
)
_CHARACTER = frozenset({"serial", "parallel", "monitor", "debugcon"})
_WITH_SOCKETS = frozenset({"netdev", "nic", "net", "vnc", "spice"})


#: Where they stand in the options that have parts.
_PATHS = {
    "net": ("local.path", "addr.path"),
    "netdev": ("local.path", "addr.path"),
    "nic": ("local.path", "addr.path"),
    "object": ("mem-path",),
}


def paths(argv: Sequence[str], directory: str = "") -> tuple[str, ...]:
    """Return the paths in a command line of which :class:`TargetEnvironment` must know whether they can be had there.

    :param directory: from where relative ones go; empty: that is not known, and they are left out.
    """
    found: list[str] = []
    for name, text in read(argv[1:]):
        value = Value(text or "", first=FIRST.get(name, ""))
        if name in _CHARACTER and text is not None:
            kind, rest = _character(text)
            found += [Value(rest, first="path").get("path")] if kind == "unix" else []
        elif name == "vnc" and text is not None and text.startswith("unix:"):
            found.append(value.get("vnc").removeprefix("unix:"))
        elif name == "chardev" and value.get("backend") in ("socket", "pty"):
            found.append(value.get("path"))
        elif name == "spice" and value.is_on("unix"):
            found.append(value.get("addr"))
        found += [value.get(key) for key in _PATHS.get(name, ())]
    found = [posixpath.join(directory, path) for path in found if path]
    return tuple(dict.fromkeys(path for path in found if path.startswith("/")))


def memory_files(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the files that the guest's memory is in, where others may map it too; such a file outlives its QEMU."""
    values = [Value(text or "", first=FIRST["object"]) for name, text in read(argv[1:]) if name == "object"]
    return tuple(value.get("mem-path") for value in values if value.is_on("share") and value.get("mem-path"))


def replicate(
    argv: Sequence[str], *, machine: str, current_devices: CurrentDevices, place: TargetEnvironment
) -> Replica:
    """Return the command line of a QEMU that the guest of `argv` can move into.

    :param argv: of the source's process, its program first.
    :param machine: its machine type with the alias resolved (``qom-get /machine type``).
    """
    now = current_command_line(read(argv[1:]), machine=machine, current_devices=current_devices)
    work = _Work(now.options, place)
    options = [relocated_option(*option, place.images) for option in work.options()]
    options = _with_machine(options, machine, graphics="nographic" not in {name for name, _ in work.source})
    options.append(("pidfile", place.pid_file))
    for monitor, path in ((CONTROL, place.control), (RESCUE, place.rescue)):
        listen = Value(f"socket,id={monitor},server=on,wait=off", first="backend")
        listen.set("path", path)
        options += [("chardev", str(listen)), ("mon", f"chardev={monitor},mode=control")]
    options += [("S", None), ("incoming", "defer")]
    return Replica(
        argv=(place.binary, *write(options)), findings=(*now.findings, *work.findings), moved=dict(work.moved)
    )


def _with_machine(
    options: list[tuple[str, str | None]], machine: str, *, graphics: bool
) -> list[tuple[str, str | None]]:
    changed, named = [], False
    for name, text in options:
        if name in ("machine", "M"):
            value = Value(text or "", first="type")
            if value.get("type"):
                value.set("type", machine)
                named = True
            name, text = "machine", str(value)
        changed.append((name, text))
    if not named:
        changed.append(("machine", f"type={machine}"))
    if not graphics:
        changed.append(("machine", "graphics=off"))
    return changed


def _character(text: str) -> tuple[str, str]:
    kind, _, rest = text.removeprefix("mon:").partition(":")
    return kind, rest


class _Work:
    """One pass over the source's options."""

    def __init__(self, source: list[tuple[str, str | None]], place: TargetEnvironment) -> None:
        self.source, self._place = source, place
        self.findings: list[Finding] = []
        self.moved: dict[str, str] = {}
        self._our_chardevs = only_of_qmp(source)
        self._old_directory = self._our_directory()
        self._there = TargetResources(
            occupied=place.occupied,
            same_machine=place.same_machine,
            same_network=place.same_network,
            sockets=self._connected_sockets(),
            started=frozenset(place.served),
        )
        self._ports = PortAssignment(place.network, same=place.same_network)
        self._counted: Counter[str] = Counter()

    def _our_directory(self) -> str:
        """The run directory of a source that was started by us."""
        values = [Value(text or "", first="backend") for name, text in self.source if name == "chardev"]
        paths = [value.get("path") for value in values if value.get("id") == CONTROL]
        return posixpath.dirname(paths[0]) if paths else ""

    def _connected_sockets(self) -> dict[str, str]:
        values = [Value(text or "", first="backend") for name, text in self.source if name == "chardev"]
        return {value.get("id"): value.get("path") for value in values if not value.is_on("server")}

    def options(self) -> Iterator[tuple[str, str | None]]:
        directories = set()
        for name, text in self.source:
            if name in _DROPPED or name in ("qmp", "qmp-pretty"):
                continue
            if name == "L":  # a program that adds its own each time would make it longer with every move
                if text in directories:
                    continue
                directories.add(text)
            value = Value(text or "", first=FIRST.get(name, ""))
            if name in ("mon", "chardev") and self._is_ours(name, value):
                continue
            self.findings += check_option(name, text or "", value, self._there)
            if text is not None:
                text, said = self._ports.assign(name, text)
                value, self.findings = Value(text, first=FIRST.get(name, "")), [*self.findings, *said]
            if name in _CHARACTER:
                self._counted[name] += 1
                yield from self._character_option(name, text or "")
            else:
                changed = self._changed(name, text, value)
                if changed is not None:
                    yield changed

    def _is_ours(self, name: str, value: Value) -> bool:
        if name == "mon":
            return value.get("mode") == "control"
        return value.get("id") in self._our_chardevs

    # --- what is changed -------------------------------------------------------------------------------------------

    def _changed(self, name: str, text: str | None, value: Value) -> tuple[str, str | None] | None:
        if name in ("s", "gdb") or is_capture(name, value):
            return None
        if name == "nographic" or is_window(name, value):
            return ("display", "none")
        before = str(value)
        if name == "chardev":
            self._chardev(value)
        elif name in _WITH_SOCKETS:
            self._listening(name, value)
        elif is_sound(name, value):
            return (name, silenced(value))
        elif name == "trace":
            value.remove("file")  # its standard error is kept, by whoever starts it
            if not value.keys:
                return None
        return (name, text if str(value) == before else str(value))

    def _listening(self, name: str, value: Value) -> None:
        if name == "vnc":
            if value.get("vnc").startswith("unix:"):
                value.set("vnc", "unix:" + self._moved_path(value.get("vnc").removeprefix("unix:")))
        elif name == "spice":
            if value.is_on("unix"):
                value.set("addr", self._moved_path(value.get("addr")))
        elif value.get("local.type") == "unix":
            value.set("local.path", self._moved_path(value.get("local.path")))
        elif value.is_on("server") and value.get("addr.type") == "unix":
            value.set("addr.path", self._moved_path(value.get("addr.path")))

    def _chardev(self, value: Value) -> None:
        backend = value.get("backend")
        if backend == "socket" and value.is_on("server"):
            if value.get("path"):
                value.set("path", self._moved_path(value.get("path")))
            value.set("wait", "off")  # else it would wait for a client before it answers anybody
        elif backend == "socket" and value.get("path") in self._place.served:
            value.set("path", self._place.served[value.get("path")])
        elif backend == "file":
            value.set("append", "on")  # where both see the file, what the guest said before stays in it
        elif backend == "stdio":
            value.set("backend", "null")
        elif backend == "pty" and value.get("path"):
            value.set("path", self._moved_path(value.get("path")))
        if value.get("logfile"):
            value.set("logappend", "on")

    def _character_option(self, name: str, text: str) -> Iterator[tuple[str, str | None]]:
        kind, rest = _character(text)
        mux = "mon:" if text.startswith("mon:") else ""
        if kind == "stdio":
            yield (name, "none" if name == "monitor" else "null")
        elif kind == "file" and not rest.startswith("/dev/"):
            identity = self._label(name)
            value = Value(f"file,id={identity},append=on", first="backend")
            value.set("path", rest)
            if mux:
                value.set("mux", "on")
            yield ("chardev", str(value))
            if mux:
                yield ("mon", f"chardev={identity},mode=readline")
            if name == "debugcon":  # which takes no character device that is there already
                yield ("device", f"isa-debugcon,chardev={identity},id={identity}")
            else:
                yield (name, f"chardev:{identity}")
        elif kind in ("unix", "tcp", "telnet", "websocket"):
            value = Value(rest, first="path" if kind == "unix" else "address")
            if value.is_on("server"):
                if kind == "unix":
                    value.set("path", self._moved_path(value.get("path")))
                value.set("wait", "off")
            yield (name, f"{mux}{kind}:{value}")
        else:
            yield (name, text)

    def _label(self, name: str) -> str:
        """Return QEMU's name for the character device of the option that was read last."""
        if name == "monitor":  # of these it numbers those for QMP, too
            return f"migrator-monitor{self._counted[name]}"
        return name if name == "debugcon" else f"{name}{self._counted[name] - 1}"

    def _moved_path(self, path: str) -> str:
        """`path`, or where its socket is put because it cannot be had there."""
        place = self._place
        free = path.startswith("/") and path not in place.occupied and path not in place.missing_directories
        if self._old_directory and path.startswith(f"{self._old_directory}/"):
            free = False  # it goes with the old process
        if not path or free:
            return path
        if path in self.moved:
            return self.moved[path]
        stem, suffix = posixpath.splitext(posixpath.basename(path))
        room = SOCKET_PATH_BYTES - len(place.run_directory.encode()) - len(suffix.encode()) - 5
        stem = stem.encode()[: max(1, room)].decode(errors="ignore") or "socket"
        taken = {*self.moved.values(), place.control, place.rescue}
        number, new = 1, f"{place.run_directory}/{stem}{suffix}"
        while new in taken:
            number += 1
            new = f"{place.run_directory}/{re.sub('-[0-9]+$', '', stem)}-{number}{suffix}"
        self.moved[path] = new
        return new
