"""Ends the connections that one process of a host has to unix sockets there, and those of nobody else.

A QMP socket serves one client at a time, and a client that was frozen keeps it. What the kernel knows is enough to end
such a connection without the client: its descriptor is taken with ``pidfd_getfd(2)`` and shut down, so that QEMU sees
the end of it and takes the next one. The client itself is left alone: when it wakes up, it finds that connection
closed. A client that came over SSH is the server's process of its connection, which nobody may look into: that one is
ended, and with it everything of that connection.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import find_sockets

#: Seconds that the end of the SSH server's process may take.
_KILL_SECONDS = 2.0
#: Arguments: pid, start time and boot of the process, then inodes of its ends of connections. Prints how many it ended.
#: 438 is pidfd_getfd on every architecture.
_SCRIPT = r"""
import ctypes, os, socket, sys
pid, started, boot, *inodes = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
try:
    held = os.pidfd_open(int(pid))
    with open(f"/proc/{pid}/stat") as stat, open("/proc/sys/kernel/random/boot_id") as kernel:
        if (stat.read().rpartition(")")[2].split()[19], kernel.read().strip()) != (started, boot):
            raise ProcessLookupError
except (ProcessLookupError, FileNotFoundError):
    print(0)
    raise SystemExit
ended = 0
for fd in os.listdir(f"/proc/{pid}/fd"):
    try:
        name = os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        continue
    if name not in [f"socket:[{inode}]" for inode in inodes]:
        continue
    taken = libc.syscall(438, held, int(fd), 0)
    if taken < 0:
        raise SystemExit(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    with socket.socket(fileno=taken) as connection:
        if os.readlink(f"/proc/self/fd/{taken}") == name:
            connection.shutdown(socket.SHUT_RDWR)
            ended += 1
print(ended)
"""


async def disconnect(access: HostAccess, patterns: Sequence[str], client: Mapping[str, Any]) -> int:
    """End the connections of the process that `client` describes to unix sockets of a host; return how many there were.

    Safe to repeat. Connections of other processes stay, also where one of them has that pid by now.

    :param patterns: of the sockets' paths; see :func:`~migrator.hosts.sockets.find_sockets`.
    :param client: ``pid``, ``start_time`` and ``boot_id``, as :meth:`HostAccess.client_identity` gives them.
    :raise HostError: the host cannot be asked, it has no python3, or the rights there do not suffice: the process is
        of another user, or ``kernel.yama.ptrace_scope`` forbids it to all but root.
    """
    found = await find_sockets(access, patterns)
    if isinstance(access, LocalAccess):
        # Its network may be another than that of the client, in which the kernel counts both ends.
        found += await find_sockets(LocalAccess(access.name), patterns)
    ends = {each for one in found for each in one.clients if each.pid == client.get("pid")}
    if not ends:
        return 0
    if all(each.command.startswith("sshd") for each in ends):
        return len(ends) if await _end_ssh_session(access, client) else 0
    python = sys.executable if isinstance(access, LocalAccess) else "python3"
    words = [str(client.get(key)) for key in ("pid", "start_time", "boot_id")]
    output = await access.run([python, "-c", _SCRIPT, *words, *(each.inode for each in ends)], timeout=5.0)
    if output.status == 127:
        raise HostError(access.name, "a connection there cannot be ended: install python3 on that host")
    if output.status != 0:
        raise HostError(access.name, f"a connection there cannot be ended: {output.complaint}")
    with reading_output(access.name, "how many connections were ended"):
        return int(output.text)


async def _end_ssh_session(access: HostAccess, client: Mapping[str, Any]) -> bool:
    """The server's process of one SSH connection may not be looked into by its own user; it may be killed."""
    process = await access.process(int(client["pid"]))
    if process is None:
        return False
    try:
        return process.identity == dict(client) and await process.kill(_KILL_SECONDS)
    finally:
        process.close()
