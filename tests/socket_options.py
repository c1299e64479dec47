"""Options of the sockets of a process, as the kernel has them."""

from __future__ import annotations

import socket
import struct

from migrator import process_sockets
from migrator.machine import LocalProcess


def socket_options(pid: int, port: int) -> list[tuple[int, int]]:
    """Bytes that may wait unsent, and the pace, of every connection of a process to that port."""
    found = []
    process = LocalProcess(pid)
    try:
        with process_sockets._held(process.identity) as pidfd:
            for number, inode in list(process_sockets._names(pid)):
                with process_sockets._taken(pidfd, number, inode) as taken:
                    if taken is None or taken.family is not socket.AF_INET:
                        continue
                    try:
                        peer = taken.getpeername()
                    except OSError:
                        continue
                    if peer[1] == port:
                        unsent = taken.getsockopt(socket.IPPROTO_TCP, process_sockets._TCP_NOTSENT_LOWAT)
                        pace = taken.getsockopt(socket.SOL_SOCKET, process_sockets._SO_MAX_PACING_RATE, 8)
                        found.append((unsent, struct.unpack("L", pace)[0]))
    finally:
        process.close()
    return found
