"""Monitors, sockets, pid file and log that the operator has at a guest's process, and their new places. Pure.

A destination's process has all of it in its own directory and in its own log. The paths that the operator knows lead
there as symbolic links, made once the guest has arrived and removed when it leaves. Which path leads where is kept
beside the process (:mod:`migrator.hosts.path_links`), so that a guest may move as often as it likes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from migrator.core.process.options import FIRST, Value, read, write
from migrator.core.process.replica import TargetEnvironment
from migrator.qemu.cmdline import CONTROL, RESCUE, SOCKET_PATH_BYTES

_OURS = frozenset({CONTROL, RESCUE})
_QMP = {"qmp": False, "qmp-pretty": True}


@dataclass(frozen=True, kw_only=True)
class OperatorMonitor:
    """One QMP monitor of the operator's, at a unix socket."""

    #: Id of its character device; empty: QEMU chose one.
    id: str
    #: As the operator knows it.
    path: str
    pretty: bool = False


@dataclass(frozen=True, kw_only=True)
class OperatorFiles:
    """Files and sockets that the operator has at one process, by the paths that he knows."""

    monitors: tuple[OperatorMonitor, ...] = ()
    pid_file: str = ""
    log: str = ""
    #: Files and sockets that cannot be had elsewhere, each in a few words.
    lost: tuple[str, ...] = ()
    #: From where the process's relative paths go; empty: that is not known.
    directory: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that the operator knows."""
        found = [monitor.path for monitor in self.monitors] + [self.pid_file, self.log]
        return tuple(path for path in found if path)


def own_directory(argv: Sequence[str]) -> str:
    """Return the run directory of a process that was started by us; empty for another's."""
    for name, text in read(argv[1:]):
        value = Value(text or "", first=FIRST["chardev"])
        if name == "chardev" and value.get("id") == CONTROL:
            return posixpath.dirname(value.get("path"))
    return ""


def operator_files(
    argv: Sequence[str], names: Mapping[str, str], *, log: str = "", directory: str = ""
) -> OperatorFiles:
    """Return the files and sockets that the operator has at the process with this command line.

    :param names: of a process that was started by us: the operator's path of each path of its own.
    :param log: where such a process writes what QEMU says.
    :param directory: from where its relative paths go; empty: that is not known.
    """
    own, lost = own_directory(argv), []
    monitors: list[OperatorMonitor] = []
    for monitor, said in _monitors(read(argv[1:])):
        inside = bool(own) and posixpath.dirname(monitor.path) == own
        path = names.get(monitor.path, "" if inside else absolute(monitor.path, directory))
        if path.startswith("/"):
            monitors.append(OperatorMonitor(id=monitor.id, path=path, pretty=monitor.pretty))
        elif not inside:  # one of ours of which nobody knows any more what it was called
            lost.append(f"QMP monitor {said}")
    files = {}
    for option, kind in (("pidfile", "pid file"), ("D", "log file")):
        given = [text for name, text in read(argv[1:]) if name == option and text]
        if option == "D":
            given = [*_traces(argv), *given]
        path = given[-1] if given else ""
        inside = bool(own) and posixpath.dirname(path) == own
        files[option] = names.get(path, "" if inside else absolute(path, directory))
        if files[option] and not files[option].startswith("/"):
            lost.append(f"{kind} {files[option]}, which is not an absolute path,")
            files[option] = ""
    return OperatorFiles(
        monitors=tuple(monitors),
        pid_file=files["pidfile"],
        log=files["D"] or names.get(log, ""),
        lost=tuple(lost),
        directory=directory,
    )


def absolute(path: str, directory: str) -> str:
    """Return `path` seen from that directory; as it is where it is absolute or empty, or the directory is not known."""
    return posixpath.normpath(posixpath.join(directory, path)) if path and directory else path


def _traces(argv: Sequence[str]) -> Iterator[str]:
    """Yield the file that its trace events go to."""
    for name, text in read(argv[1:]):
        if name == "trace" and (file := Value(text or "", first=FIRST["trace"]).get("file")):
            yield file


def _monitors(options: Sequence[tuple[str, str | None]]) -> Iterator[tuple[OperatorMonitor, str]]:
    """Yield every QMP monitor but our own and its option's text; its path is empty where it is at no unix socket."""
    sockets: dict[str, Value] = {}
    for name, text in options:
        if name == "chardev":
            value = Value(text or "", first=FIRST["chardev"])
            sockets[value.get("id")] = value
    for name, text in options:
        said = text or ""
        if name in _QMP and said.startswith("chardev:"):
            yield _of_chardev(sockets, said.removeprefix("chardev:"), pretty=_QMP[name]), said
        elif name in _QMP:
            kind, _, rest = said.partition(":")
            value = Value(rest, first="path")
            usable = kind == "unix" and value.is_on("server")
            yield OperatorMonitor(id="", path=value.get("path") if usable else "", pretty=_QMP[name]), said
        elif name == "mon":
            control = Value(said, first=FIRST["mon"])
            identity = control.get("chardev")
            if control.get("mode") != "control" or identity in _OURS:
                continue
            yield _of_chardev(sockets, identity, pretty=control.is_on("pretty")), said


def _of_chardev(sockets: Mapping[str, Value], identity: str, *, pretty: bool) -> OperatorMonitor:
    value = sockets.get(identity, Value("", first="backend"))
    usable = value.get("backend") == "socket" and value.is_on("server")
    return OperatorMonitor(id=identity, path=value.get("path") if usable else "", pretty=pretty)


@dataclass(frozen=True, kw_only=True)
class RelocatedFiles:
    """The operator's files at the destination."""

    #: Further words of its command line.
    words: tuple[str, ...] = ()
    #: Where each path of the operator's shall lead.
    links: Mapping[str, str] = field(default_factory=dict)


def relocate(
    having: OperatorFiles,
    place: TargetEnvironment,
    *,
    log: str,
    moved: Mapping[str, str],
    names: Mapping[str, str],
    taken: Collection[str] = (),
) -> RelocatedFiles:
    """Return the further options that the destination is started with, and the links that shall lead to its files.

    :param log: where the destination writes what QEMU says.
    :param moved: sockets that had to go into its directory for other reasons: the new path of each old one.
    :param names: as for :func:`operator_files`, of the source.
    :param taken: ids of character devices that the destination has.
    """
    words: list[tuple[str, str | None]] = []
    links = {names.get(old, absolute(old, having.directory)): new for old, new in moved.items()}
    used = {place.control, place.rescue, *moved.values()}
    for number, monitor in enumerate(having.monitors):
        path = _free(place.run_directory, monitor.path, used)
        used.add(path)
        identity = monitor.id or f"monitor-{number}"
        while not monitor.id and identity in taken:
            identity += "-"
        listen = Value(f"socket,id={identity},server=on,wait=off", first="backend")
        listen.set("path", path)
        pretty = ",pretty=on" if monitor.pretty else ""
        words += [("chardev", str(listen)), ("mon", f"chardev={identity},mode=control{pretty}")]
        links[monitor.path] = path
    if having.pid_file:
        links[having.pid_file] = place.pid_file
    if having.log:
        links[having.log] = log
    return RelocatedFiles(words=tuple(write(words)), links=links)


def _free(directory: str, path: str, used: Collection[str]) -> str:
    stem, suffix = posixpath.splitext(posixpath.basename(path))
    room = SOCKET_PATH_BYTES - len(directory.encode()) - len(suffix.encode()) - 5
    stem = stem.encode()[: max(1, room)].decode(errors="ignore") or "monitor"
    return next(new for new in _numbered(directory, stem, suffix) if new not in used)


def _numbered(directory: str, stem: str, suffix: str) -> Iterator[str]:
    yield f"{directory}/{stem}{suffix}"
    number = 2
    while True:
        yield f"{directory}/{stem}-{number}{suffix}"
        number += 1
