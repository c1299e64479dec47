"""QMP sockets of a host, the processes behind them and who is connected to them; in one command."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from migrator.errors import HostError
from migrator.hosts import processes
from migrator.hosts.access import HostAccess, Output, also_read_process, read_besides
from migrator.hosts.host_output import reading_output
from migrator.hosts.processes import QemuProcesses, guest_name, option_value, uuid_of
from migrator.ports import GuestProcess

# Sections end in a NUL, names of files too: anything else may stand in a name. The patterns come as arguments: a
# pattern that is expanded unquoted with an empty IFS is matched against files, and nothing else happens to it.
# What tells sockets apart is the inode of their file, as ss says it: names in the kernel's table may be relative, or
# of before a file was renamed. What it does not show are clients in other network namespaces. Of what /proc links to,
# net:[…] and socket:[…] are looked for: networks of processes, and sockets that they hold.
_SCRIPT = (
    rb"""
IFS=
for pattern; do
  for path in $pattern; do
    if [ -S "$path" ]; then printf '%s\0' "$path"; fi
  done
done | xargs -0 -r stat -L --printf '%d %i %n\0' -- 2>/dev/null
printf '@table\0'
if command -v ss >/dev/null; then ss -xaneHO 2>/dev/null || printf '\n@failed'; else printf '@no-ss'; fi
printf '\0@held\0'
find /proc/[0-9]*/ns/net /proc/[0-9]*/fd -maxdepth 1 -lname '[ns]*et:*' -printf '%h %l\n' 2>/dev/null
printf '\0@arguments\0'
grep -azHZ --no-group-separator -A1 """
    + processes.READ
    + rb""" -e charmonitor -e /libvirt/qemu/ /proc/[0-9]*/cmdline 2>/dev/null
printf '\0@stats\0'; grep -aH '' /proc/[0-9]*/stat 2>/dev/null
printf '@end\0'
"""
)
_LIBVIRT_DAEMONS = frozenset({"libvirtd", "virtqemud"})
_LIBVIRT_DIRECTORY = "/var/lib/libvirt/qemu/"
#: Sockets of one host beside each other in ss's answer; a name may have newlines of its own.
_ENTRY = re.compile(r"\n(?=u_(?:str|dgr|seq) +[A-Z0-9-]+ +\d+ +\d+ )")
# In parts, each of which is searched for once: a name may be anything, also what costs a search without end.
_HEAD = re.compile(r"u_str +(?P<state>[A-Z0-9-]+) +(?P<waiting>\d{1,18}) +(?P<room>\d{1,18}) +")
_TAIL = re.compile(r" +ino:(?P<file>\d{1,20}) dev:(?P<high>\d{1,18})/(?P<low>\d{1,18}) ")
_Stream = dict[str, str]


def _stream(entry: str) -> _Stream | None:
    """One line of ss about a stream socket: its name, its inode, the name and the inode of its peer, its file."""
    head, (rest, _, tail) = _HEAD.match(entry), entry.rpartition("<->")
    file = _TAIL.match(tail)
    if head is None or file is None:
        return None
    words = rest[head.end() :].rstrip(" ").split(" ")
    if not words[-1].isdecimal():
        return None
    # The last number that has the name of the peer after it; there may be numbers in that of the socket.
    for at in range(len(words) - 3, 0, -1):
        if words[at].isdecimal() and any(words[at + 1 : -1]):
            name = " ".join(words[:at])
            return {
                **head.groupdict(),
                **file.groupdict(),
                "name": name,
                "inode": words[at],
                "peer": words[-1],
            }
    return None


@dataclass(frozen=True, kw_only=True)
class SocketClient:
    """Process that is connected to a socket."""

    pid: int
    #: The name of its program, as the kernel keeps it.
    command: str
    #: Inode of its end of the connection.
    inode: str = ""

    def __str__(self) -> str:
        return f"{self.command!r} (pid {self.pid})"


@dataclass(frozen=True, kw_only=True)
class FoundSocket:
    """One unix socket that a pattern matches."""

    path: str
    #: Some process listens; else the file was left by one that was killed.
    listening: bool = False
    #: Pid of the process that listens; ``None`` where none does, or the rights do not suffice to tell.
    pid: int | None = None
    #: Somebody is connected to it.
    busy: bool = False
    #: Connections that it has not accepted yet, and how many may wait; one more is refused.
    waiting: int = 0
    room: int = 0
    #: Who, where that can be told.
    clients: tuple[SocketClient, ...] = ()
    #: True for the monitor by which libvirt manages the guest.
    libvirt: bool = False
    #: As the process's command line has them; empty where it has none.
    name: str = ""
    uuid: str = ""

    @property
    def full(self) -> bool:
        """True where no other connection can wait: one more would be refused."""
        return self.waiting > self.room

    @property
    def holders(self) -> str:
        """Processes that are connected, for a message."""
        return ", ".join(str(client) for client in self.clients) or "a client that cannot be told from here"


@dataclass(frozen=True, kw_only=True)
class HostSurvey:
    """Monitors and QEMU processes of a host, seen at one and the same moment."""

    sockets: list[FoundSocket]
    processes: QemuProcesses


async def survey_host(access: HostAccess, patterns: Sequence[str], *, timeout: float = 20.0) -> HostSurvey:
    """Find every unix socket that one of the glob patterns matches, sorted by path, and every QEMU process.

    :raise HostError: when the host cannot be asked, or not everything of it.
    """
    output = await access.run(
        ["sh", "-s", "--", *patterns], stdin=processes.SCRIPT + _SCRIPT, timeout=timeout
    )
    text = _whole(access, output)
    mine, rest = _cut(text, "\0@sockets\0")
    with reading_output(access.name, "its sockets and processes"):
        read = _Read(rest)
        sockets = read.sockets()
        found = processes.parse(mine, read.words, read.networks, read.stats)
    if found is None:
        raise HostError(access.name, "its processes cannot be seen: /proc is not what it should be there")
    listeners = {
        pid
        for streams in read.streams.values()
        for match in streams
        if match["state"] == "LISTEN"
        for pid in read.pids.get(match["inode"], ())
    }
    qemus = tuple(replace(each, listens=each.pid in listeners) for each in found.qemus)
    return HostSurvey(sockets=sockets, processes=replace(found, qemus=qemus))


async def find_sockets(
    access: HostAccess, patterns: Sequence[str], *, timeout: float = 10.0
) -> list[FoundSocket]:
    """Find every unix socket that one of the glob patterns matches, sorted by path.

    :param patterns: absolute; as a shell matches them. :func:`literal` makes one of a path.
    :raise HostError: when the host cannot be asked.
    """
    if not patterns:
        return []
    output = await access.run(["sh", "-s", "--", *patterns], stdin=_SCRIPT, timeout=timeout)
    with reading_output(access.name, "its sockets"):
        return parse(_whole(access, output))


async def find_listener(
    access: HostAccess, path: str, likely: int, *, timeout: float = 10.0
) -> tuple[int | None, Output | None]:
    """Find the process that listens at a unix socket: its pid, ``None`` where that cannot be told.

    :param likely: pid of the process that listened there a moment ago. What
        :meth:`~migrator.hosts.access.HostAccess.process` must know of it is read by the same command, after the
        socket, and returned.
    :raise HostError: when the host cannot be asked.
    """
    besides = also_read_process(access.process_script)
    script = _SCRIPT + f"IFS=' '; p={likely}; printf '\\n'\n{besides}".encode()
    output = await access.run(["sh", "-s", "--", literal(path)], stdin=script, timeout=timeout)
    stdout, _, read = output.stdout.rpartition(b"\n")
    with reading_output(access.name, "its sockets"):
        found = parse(_whole(access, replace(output, stdout=stdout)))
    return (found[0].pid if len(found) == 1 else None), read_besides(read)


def _whole(access: HostAccess, output: Output) -> str:
    """Return the answer if it is complete: what is missing from it must never look like what is not there."""
    if not output.stdout.endswith(b"@end\0"):
        raise HostError(access.name, f"its sockets cannot be listed: {output.complaint or 'no answer'}")
    if b"@table\0@no-ss" in output.stdout:
        raise HostError(access.name, "its sockets cannot be listed: install ss there (package iproute2)")
    if b"\n@failed\0@held\0" in output.stdout:
        raise HostError(access.name, "its sockets cannot be listed: ss -xaneHO fails there")
    return output.text


def literal(path: str) -> str:
    """Return a pattern that matches this path alone."""
    # In brackets each: where nothing is left to match, some shells keep the backslashes of a pattern.
    return re.sub(r"[*?[\\]", lambda found: "[\\\\]" if found[0] == "\\" else f"[{found[0]}]", path)


def parse(text: str) -> list[FoundSocket]:
    """Parse the script's answer. Pure."""
    return _Read(text).sockets()


class _Read:
    """The script's answer, taken apart."""

    def __init__(self, text: str) -> None:
        self._files, rest = _cut(text, "@table\0")
        table, rest = _cut(rest, "\0@held\0")
        held, rest = _cut(rest, "\0@arguments\0")
        # The last mark is ours: an argument may be like it, the name of a program has no NUL.
        arguments, _, stats = rest.removesuffix("@end\0").rpartition("\0@stats\0")
        self.networks, self.pids = _links(held)
        self.stats = processes.parse_stats(stats)
        self.names = {pid: stat.name for pid, stat in self.stats.items()}
        self.words = _arguments(arguments)
        self.streams: dict[str, list[_Stream]] = defaultdict(list)
        for entry in _ENTRY.split("\n" + table):
            if (stream := _stream(entry)) is not None:
                self.streams[stream["file"]].append(stream)

    def sockets(self) -> list[FoundSocket]:
        """Return the sockets whose files the patterns matched."""
        found = {}
        for file in self._files.split("\0")[:-1]:
            device, inode, path = file.split(" ", 2)
            found[path] = self._socket(path, _of_file(self.streams.get(inode, []), int(device), path))
        return [found[path] for path in sorted(found)]

    def _socket(self, path: str, mine: Sequence[_Stream]) -> FoundSocket:
        listening = [match for match in mine if match["state"] == "LISTEN"]
        pid = _listener([match["inode"] for match in listening], self.pids, self.names)
        peers = [match["peer"] for match in mine if match["state"] == "ESTAB"]
        clients = tuple(
            SocketClient(pid=pid, command=self.names.get(pid, ""), inode=peer)
            for peer in peers
            for pid in self.pids.get(peer, ())
        )
        said = self.words.get(pid, []) if pid is not None else []
        return FoundSocket(
            path=path,
            listening=bool(listening),
            pid=pid,
            busy=bool(peers),
            waiting=sum(int(match["waiting"]) for match in listening),
            room=sum(int(match["room"]) for match in listening),
            clients=clients,
            libvirt=path.startswith(_LIBVIRT_DIRECTORY)
            or any(client.command in _LIBVIRT_DAEMONS for client in clients)
            or any("id=charmonitor" in word or _LIBVIRT_DIRECTORY in word for word in said),
            name=guest_name(option_value(said, "name")),
            uuid=uuid_of(said),
        )


def _of_file(streams: Sequence[_Stream], device: int, path: str) -> Sequence[_Stream]:
    """Return the streams with this file's inode and file system; where that cannot be told, those of its name."""
    # The kernel has another way to write a device's number than stat, and ss shows the halves of either.
    kernels = os.major(device) << 20 | os.minor(device)
    same = [match for match in streams if (int(match["high"]) << 16 | int(match["low"])) in (device, kernels)]
    return same or [
        match for match in streams if PurePosixPath(match["name"]).name == PurePosixPath(path).name
    ]


def _cut(text: str, mark: str) -> tuple[str, str]:
    # The last one: a name may contain whatever it likes, but no NUL, and what follows is made by the kernel.
    head, _, tail = text.partition(mark)
    return head, tail


def _links(text: str) -> tuple[dict[int, str], Mapping[str, list[int]]]:
    """Return the network namespace of each process, and the pids by the inode of a socket that they hold."""
    networks: dict[int, str] = {}
    pids: dict[str, list[int]] = defaultdict(list)
    for line in text.splitlines():
        place, _, link = line.partition(" ")
        pid = int(place.split("/")[2])
        if link.startswith("socket:"):
            inode = link.removeprefix("socket:[").removesuffix("]")
            if pid not in pids[inode]:
                pids[inode].append(pid)
        elif place.endswith("/ns"):
            networks[pid] = link
    return networks, pids


def _arguments(text: str) -> Mapping[int, list[str]]:
    words: dict[int, list[str]] = defaultdict(list)
    parts = text.split("\0")
    for place, word in zip(parts[::2], parts[1::2], strict=False):
        if match := re.fullmatch(r"/proc/(\d+)/cmdline", place):
            words[int(match[1])].append(word)
    return words


def _listener(inodes: Sequence[str], pids: Mapping[str, list[int]], names: Mapping[int, str]) -> int | None:
    if len(inodes) != 1:
        return None  # nobody; or two entries that claim the same file, of which one is made up
    holders = pids.get(inodes[0], [])
    if len(holders) > 1:  # passed on by whoever started it, and kept there too
        holders = [pid for pid in holders if names.get(pid, "").startswith(("qemu", "kvm"))]
    return holders[0] if len(holders) == 1 else None


class RemoteMonitorTransport:
    """A QMP socket of a host that is not this machine, and the process behind it.

    Every call raises :class:`~migrator.errors.HostError` when the host cannot be asked.

    :param listener: the process that made the socket, where that is certain: we started it, and nobody else may enter
        the directory that the socket is in.
    :param likely: pid of the one that listened there when it was looked for the last time.
    """

    def __init__(
        self,
        access: HostAccess,
        path: str,
        *,
        listener: GuestProcess | None = None,
        likely: int | None = None,
    ) -> None:
        self._access = access
        self._path = path
        self._listener = listener
        self._likely = likely
        #: What was read of that process when it was looked for.
        self._read: Output | None = None

    async def socket_path(self) -> str:
        """Return a path on this machine that leads there."""
        return await self._access.forward(self._path)

    async def listener_pid(self) -> int | None:
        """Return the pid of the process that listens there now; ``None`` where that cannot be told."""
        if self._listener is not None and self._listener.alive:
            return self._listener.pid
        if self._likely is not None:
            pid, read = await find_listener(self._access, self._path, self._likely)
            self._read = read if pid == self._likely else None
            return pid
        found = await find_sockets(self._access, [literal(self._path)])
        return found[0].pid if len(found) == 1 else None

    async def find_process(self, pid: int) -> GuestProcess | None:
        """Return a handle on a process of that host."""
        read, self._read = self._read, None
        return await self._access.process(pid, read if pid == self._likely else None)
