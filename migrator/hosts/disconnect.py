"""Ends the connections that one process of a host has to unix sockets there, and those of nobody else.

A QMP socket serves one client at a time, and a client that was frozen keeps it. What the kernel knows is enough to end
such a connection without the client: its descriptor is taken (:mod:`migrator.process_sockets`) and shut down, so that
QEMU sees the end of it and takes the next one. The client itself is left alone: when it wakes up, it finds that
connection closed. A client that came over SSH is the server's process of its connection, which nobody may look into:
that one is ended, and with it everything of that connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import find_sockets

#: Seconds that the end of the SSH server's process may take.
_KILL_SECONDS = 2.0


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
    process = {key: client.get(key) for key in ("pid", "start_time", "boot_id")}
    inodes = [each.inode for each in ends]
    answer = await access.ask_sockets({"do": "shut_down", "process": process, "inodes": inodes})
    if error := answer.get("error"):
        raise HostError(access.name, f"a connection there cannot be ended: {str(error)[-500:]}")
    with reading_output(access.name, "how many connections were ended"):
        return int(answer["count"])


async def _end_ssh_session(access: HostAccess, client: Mapping[str, Any]) -> bool:
    """The server's process of one SSH connection may not be looked into by its own user; it may be killed."""
    process = await access.process(int(client["pid"]))
    if process is None:
        return False
    try:
        return process.identity == dict(client) and await process.kill(_KILL_SECONDS)
    finally:
        process.close()
