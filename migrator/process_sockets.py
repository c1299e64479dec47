"""Sockets of another process, each taken for an instant by its pidfd: shut down, given options, or measured.

A stand-alone program as well: a host that is not this machine gets this very text on the standard input of its python3
(see :data:`PROGRAM`), and then requests, a line of JSON each. So nothing of the project is imported here.

What the kernel allows decides: ``pidfd_getfd(2)`` takes the right to trace the process. A socket that two processes
hold is closed only once both let go of it, so nothing is held beyond one request.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import json
import os
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: The same on every architecture.
_PIDFD_GETFD = 438
_TCP_NOTSENT_LOWAT = 25
_SO_MAX_PACING_RATE = 47
_ESTABLISHED = "01"
#: Bytes that were written and are not acknowledged; the same number as TIOCOUTQ.
_SIOCOUTQ = 0x5411
#: Bytes that wait to be read by whoever passes them on, in half of the kernel's own count.
_TO_BE_READ = 64 << 10
#: In struct tcp_info: bytes acknowledged, received, and not sent yet; and microseconds in which something was on its
#: way, and in which the reader's window was full.
_ACKNOWLEDGED_AT, _RECEIVED_AT, _UNSENT_AT, _BUSY_AT, _TCP_INFO_BYTES = 120, 128, 144, 168, 192
#: No pacing, in the kernel's words.
_UNPACED = 2 ** (8 * struct.calcsize("L")) - 1
#: Command line for python3 at another host: the first line is how long the text of this module is, which follows.
PROGRAM = (
    "import sys; source = sys.stdin.buffer; n = int(source.readline()); "
    "exec(compile(source.read(n), 'process_sockets', 'exec'))"
)


class ProcessGone(Exception):
    """The process that a request is about has ended."""


@contextlib.contextmanager
def _held(process: dict[str, Any]) -> Iterator[int]:
    """Yield a pidfd of the process with that ``pid``, ``start_time`` and ``boot_id``.

    :raise ProcessGone: there is none.
    """
    pid = int(process["pid"])
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ProcessGone from None
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        started = words.rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        if (started, boot) != (str(process["start_time"]), process["boot_id"]):
            raise ProcessGone
        yield pidfd
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone from None
    finally:
        os.close(pidfd)


def _names(pid: int) -> Iterator[tuple[int, str]]:
    """Yield number and inode of every socket that a process has open.

    :raise PermissionError: it may not be looked into.
    """
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = str(link.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        if name.startswith("socket:["):
            yield int(link.name), name[8:-1]


def _duplicated(pidfd: int, number: int) -> int | None:
    """Return a descriptor of what a process has open; ``None`` where it is closed by now.

    :raise PermissionError: the process may not be traced.
    """
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, number, 0)
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code == errno.EBADF:
        return None
    if code == errno.ESRCH:
        raise ProcessGone
    raise PermissionError(code, f"pidfd_getfd: {os.strerror(code)}")


@contextlib.contextmanager
def _taken(pidfd: int, number: int, inode: str) -> Iterator[socket.socket | None]:
    """Yield a socket of a process for as long as the block lasts; ``None`` where that descriptor is another by now.

    :raise PermissionError: the process may not be traced.
    """
    fd = _duplicated(pidfd, number)
    if fd is None:
        yield None
        return
    with socket.socket(fileno=fd) as taken:
        yield taken if str(Path(f"/proc/self/fd/{fd}").readlink()) == f"socket:[{inode}]" else None


def shut_down(process: dict[str, Any], inodes: list[str]) -> int:
    """Shut down those connections of a process; return how many there were."""
    ended = 0
    with _held(process) as pidfd:
        for number, inode in list(_names(int(process["pid"]))):
            if inode in inodes:
                with _taken(pidfd, number, inode) as connection:
                    if connection is not None:
                        connection.shutdown(socket.SHUT_RDWR)
                        ended += 1
    return ended


def _plain(address: str) -> str:
    """Write an address in one way, without its scope; IPv4 inside IPv6 as IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def _addresses(peers: list[list[Any]]) -> set[tuple[str, int]]:
    """Return every address and port that the names and ports may be."""
    found = set()
    for host, port in peers:
        try:
            found.add((_plain(str(host)), int(port)))
        except ValueError:
            named = socket.getaddrinfo(str(host), int(port), type=socket.SOCK_STREAM)
            found |= {(_plain(str(each[4][0])), int(port)) for each in named}
    return found


#: Of processes whose streams were looked at: number and inode of the sockets that were found.
_found: dict[tuple[int, str], list[tuple[int, str]]] = {}
#: Streams that were paced here, and not lifted since: the process and the peers of each.
_paced: dict[tuple[int, str], tuple[dict[str, Any], list[list[Any]]]] = {}


def streams(
    process: dict[str, Any],
    peers: list[list[Any]],
    unsent: int | None = None,
    pacing: int | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Look at the TCP connections of a process to these peers, and give them options.

    :param peers: address (or name) and port of each.
    :param unsent: bytes that may wait unsent in each of them (TCP_NOTSENT_LOWAT); ``None`` leaves it.
    :param pacing: most bytes per second that each sends; 0 lifts it, ``None`` leaves it.
    :param again: only those that were found the last time; for a look that has to be cheap.
    :return: ``sockets``: how many there are; ``queued``: bytes that the peer's kernel has not acknowledged, ``null``
        where there are none, or that cannot be told; ``refused``: why options could not be set, empty where all is set;
        ``counted``: see :func:`_counted`, ``null`` likewise.
    """
    key = (int(process["pid"]), str(process["start_time"]))
    sockets, queued = 0, 0
    counted: list[tuple[int, int, int]] = []
    wanted = _addresses(peers)
    try:
        with _held(process) as pidfd:
            known = _found.get(key) if again else None
            kept = []
            for number, inode in known or list(_names(key[0])):
                with _taken(pidfd, number, inode) as connection:
                    if connection is None or not _leads_to(connection, wanted):
                        continue
                    kept.append((number, inode))
                    _give(connection, unsent, pacing)
                    queued += struct.unpack("i", fcntl.ioctl(connection.fileno(), _SIOCOUTQ, bytes(4)))[0]
                    sockets += 1
                    if (each := _info(connection)) is not None:
                        counted.append(each)
            _found.pop(key, None)
            if kept:
                _found[key] = kept
            if pacing is not None:
                _paced.pop(key, None)
            if pacing and kept:
                _paced[key] = (process, peers)
            while len(_found) > 256:
                _found.pop(next(iter(_found)))
    except PermissionError as error:
        try:
            sockets, total = _seen_in_table(key[0], wanted)
        except OSError:
            return {"sockets": 0, "queued": None, "refused": str(error)}
        return {"sockets": sockets, "queued": total if sockets else None, "refused": str(error)}
    seen = _counted(counted) if sockets and len(counted) == sockets else None
    return {"sockets": sockets, "queued": queued if sockets else None, "refused": "", "counted": seen}


def _info(connection: socket.socket) -> tuple[int, int, int] | None:
    """Return bytes acknowledged, and microseconds busy and held up by the reader; ``None`` where the kernel is old."""
    said = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(said) < _TCP_INFO_BYTES:
        return None
    busy, reader = struct.unpack_from("QQ", said, _BUSY_AT)
    return struct.unpack_from("Q", said, _ACKNOWLEDGED_AT)[0], busy, reader


def _counted(sockets: list[tuple[int, int, int]]) -> dict[str, float]:
    """Return when this was (on this host's clock), the bytes of all, and the seconds of the one that sent most."""
    _, busy, reader = max(sockets)
    return {
        "at": time.monotonic(),
        "acknowledged": sum(each[0] for each in sockets),
        "busy": busy / 1e6,
        "reader": reader / 1e6,
    }


def _leads_to(connection: socket.socket, peers: set[tuple[str, int]]) -> bool:
    return _peer(connection) in peers


def _peer(connection: socket.socket) -> tuple[str, int] | None:
    """Return address and port of a TCP connection's peer; ``None`` where it is none."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return None
    try:
        name = connection.getpeername()
    except OSError:
        return None  # not connected yet, or not any more
    return _plain(name[0]), name[1]


def _give(connection: socket.socket, unsent: int | None, pacing: int | None) -> None:
    if unsent is not None:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, unsent)
    if pacing is not None:
        rate = struct.pack("L", pacing or _UNPACED)
        connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)


def _seen_in_table(pid: int, peers: set[tuple[str, int]]) -> tuple[int, int]:
    """Count the connections to a peer, and what is queued in them, as the kernel's table of that network shows them.

    For a process that may not be traced: a peer's port belongs to one destination, so these are its streams.
    """
    sockets, queued = 0, 0
    for table, size in (("tcp", 8), ("tcp6", 32)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            address, _, port = words[2].partition(":")
            if len(address) != size or int(port, 16) not in {each[1] for each in peers}:
                continue
            if (_plain(_address(address)), int(port, 16)) in peers and words[3] == _ESTABLISHED:
                sockets += 1
                queued += int(words[4].partition(":")[0], 16)
    return sockets, queued


def _address(text: str) -> str:
    """Read an address of the kernel's table: words of four bytes, each in the machine's own order."""
    parts = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(parts)))


def forwarder(process: dict[str, Any], port: int, unsent: int) -> dict[str, Any]:
    """Look at the connections of an SSH client that passes on what it takes at a port, and have little wait there.

    :param unsent: bytes that may wait unsent in each of its connections (TCP_NOTSENT_LOWAT). Those that come from here
        have little to be read as well (SO_RCVBUF).
    :return: ``counted``: what they have counted, as :class:`migrator.core.migration.tunnel_queue.TunnelCounters` has
        it; ``null`` where that cannot be told; ``refused``: why.
    """
    entered = left = waits = unsent_now = ways = 0
    try:
        with _held(process) as pidfd:
            for number, inode in list(_names(int(process["pid"]))):
                with _taken(pidfd, number, inode) as connection:
                    if connection is None or _peer(connection) is None:
                        continue
                    _give(connection, unsent, None)
                    for what in (_SIOCOUTQ, termios.FIONREAD):
                        waits += struct.unpack("i", fcntl.ioctl(connection.fileno(), what, bytes(4)))[0]
                    said = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                    if len(said) < _TCP_INFO_BYTES:
                        return {"counted": None, "refused": "the kernel is too old"}
                    if connection.getsockname()[1] == port:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TO_BE_READ)
                        entered += struct.unpack_from("Q", said, _RECEIVED_AT)[0]
                    else:
                        ways += 1
                        left += struct.unpack_from("Q", said, _ACKNOWLEDGED_AT)[0]
                        unsent_now += struct.unpack_from("I", said, _UNSENT_AT)[0]
    except PermissionError as error:
        return {"counted": None, "refused": str(error)}
    if ways != 1:
        return {"counted": None, "refused": "it has no connection of its own that leads to the other host"}
    now = time.monotonic()
    counted = {"at": now, "entered": entered, "left": left, "unsent": unsent_now, "waiting": waits}
    return {"counted": counted, "refused": ""}


def reach(process: dict[str, Any]) -> dict[str, Any]:
    """Try whether what a process has open can be taken: ``refused`` says why not, and is empty where it can."""
    try:
        with _held(process) as pidfd:
            fd = _duplicated(pidfd, 0)
    except PermissionError as error:
        return {"refused": str(error)}
    if fd is not None:
        os.close(fd)
    return {"refused": ""}


def answer_at_once(process: dict[str, Any], port: int) -> int:
    """Have connections that a process will accept at a TCP port send what they are given at once; return at how many
    sockets it listens there.
    """
    found = 0
    with _held(process) as pidfd:
        for number, inode in list(_names(int(process["pid"]))):
            with _taken(pidfd, number, inode) as listening:
                if listening is not None and _listens_at(listening, port):
                    # A connection has what the socket has that it is accepted from.
                    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    found += 1
    return found


def _listens_at(found: socket.socket, port: int) -> bool:
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        return False
    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return bool(listens) and found.getsockname()[1] == port


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request: ``do`` names it, the rest are its arguments. Never raises for what the kernel refuses."""
    arguments = {key: value for key, value in request.items() if key != "do"}
    try:
        if request["do"] == "shut_down":
            return {"count": shut_down(**arguments)}
        if request["do"] == "reach":
            return reach(**arguments)
        if request["do"] == "forwarder":
            return forwarder(**arguments)
        if request["do"] == "answer_at_once":
            return {"count": answer_at_once(**arguments)}
        return streams(**arguments)
    except ProcessGone:
        return {"count": 0, "sockets": 0, "queued": None, "refused": "the process has ended"}
    except OSError as error:
        return {"error": str(error), "count": 0, "sockets": 0, "queued": None, "refused": str(error)}


def lift_all() -> None:
    """Pace nothing any more: whoever had it paced is gone, and nobody would change it with what the link carries."""
    for process, peers in list(_paced.values()):
        with contextlib.suppress(ProcessGone, OSError):
            streams(process, peers, pacing=0)


def serve() -> None:
    """Answer requests until the input ends, which it does with the connection that it came over."""
    try:
        for line in sys.stdin.buffer:
            sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="ascii")  # noqa: PTH123, SIM115 - nothing is left to be told
    finally:
        lift_all()


if __name__ == "__main__":
    serve()
