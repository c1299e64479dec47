"""The libvirt daemons of the site's hosts, reached over each host's own way: a path here, or a socket over SSH."""

from __future__ import annotations

import asyncio
import functools
import stat
from pathlib import Path

from migrator.core.managed_guest import DaemonAddress
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.local import LocalAccess
from migrator.libvirt.connection import LibvirtConnection
from migrator.site.host_directory import HostDirectory

#: Says which of the paths that it is given are sockets.
_FIND = b'for path; do if [ -S "$path" ]; then printf "%s\\0" "$path"; fi; done; printf "end\\0"\n'
#: Seconds to find the socket of a daemon.
_FIND_SECONDS = 10.0


async def find_daemons(access: HostAccess, address: DaemonAddress) -> list[str]:
    """Return the paths at a host at which a daemon may listen, and there is a socket.

    :raise HostError: the host cannot be asked.
    """
    if isinstance(access, LocalAccess):  # whose sockets are this machine's
        return [path for path in address.sockets if _is_socket(path)]
    done = await access.run(["sh", "-s", "--", *address.sockets], stdin=_FIND, timeout=_FIND_SECONDS)
    if not done.stdout.endswith(b"end\0"):
        raise HostError(
            access.name, f"whether libvirt is there cannot be told: {done.complaint or 'no answer'}"
        )
    return done.text.split("\0")[:-2]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False


class LibvirtConnections:
    """Connections to the libvirt daemons of hosts, by the hosts' names; each is opened when it is first needed."""

    def __init__(self, hosts: HostDirectory) -> None:
        self._hosts = hosts
        self._connections: dict[str, tuple[DaemonAddress, LibvirtConnection]] = {}

    def connection(self, host: str) -> LibvirtConnection | None:
        """Return the connection to the daemon of a host; ``None``: its guests are left to libvirt.

        :raise HostError: no host of that name is configured.
        """
        address = self._hosts.config(host).libvirt
        if address is None:
            return None
        known = self._connections.get(host)
        if known is None or known[0] != address:  # what it was before is let go of by :meth:`close`
            known = address, LibvirtConnection(host, functools.partial(self._uris, host, address))
            self._connections[host] = known
        return known[1]

    def is_optional(self, host: str) -> bool:
        """Return whether the host may as well have no libvirt."""
        address = self._hosts.config(host).libvirt
        return address is None or address.optional

    async def sockets(self, host: str) -> list[str]:
        """Return the paths at that host at which a daemon may listen, and there is a socket.

        :raise HostError: the host cannot be asked.
        """
        address = self._hosts.config(host).libvirt
        return [] if address is None else await find_daemons(self._hosts.access(host), address)

    async def _uris(self, host: str, address: DaemonAddress) -> list[str]:
        access = self._hosts.access(host)
        found = await self.sockets(host)
        if not found:
            raise HostError(host, f"libvirt is not there: no socket {' or '.join(address.sockets)}")
        return [address.uri(await access.forward(path)) for path in found]

    async def close(self) -> None:
        """Let go of every daemon; their guests are left alone."""
        connections, self._connections = self._connections, {}
        await asyncio.gather(*(connection.close() for _, connection in connections.values()))
