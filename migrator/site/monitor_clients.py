"""Connections that hold each host's monitors, noted for the controller that takes this one's place.

A QMP socket serves one client at a time, and a controller that was frozen keeps those that it had. So each controller
has it written down, before it opens the first monitor of a host, which process of that host holds its connections
there; and ends those of the controllers before it.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from migrator import logs
from migrator.errors import HostError, JournalError
from migrator.hosts.disconnect import disconnect

#: Of one host: more were never there at a time, and what is older is gone.
_MOST = 16


class ClientHost(Protocol):
    """A host, as far as it knows which process holds connections there."""

    @property
    def name(self) -> str:
        """Return its name."""

    async def client_identity(self) -> Mapping[str, Any]:
        """See :meth:`migrator.hosts.access.HostAccess.client_identity`."""


class MonitorClients:
    """The processes that hold controllers' connections, host by host.

    :param read: what was kept under a name, ``None`` where nothing was.
    :param keep: keeps a text under a name; on disk when it returns.
    :param disconnect: see :func:`migrator.hosts.disconnect.disconnect`; only a simulated host needs another.
    """

    def __init__(
        self,
        *,
        read: Callable[[str], Awaitable[str | None]],
        keep: Callable[[str, str], Awaitable[None]],
        disconnect: Callable[[Any, Sequence[str], Mapping[str, Any]], Awaitable[int]] = disconnect,
    ) -> None:
        self._read, self._keep, self._disconnect = read, keep, disconnect
        #: What is written down of each host.
        self._written: dict[str, list[Mapping[str, Any]]] = {}
        #: Controllers before this one, by host: one that is only cut off from the journal connects again.
        self._former: dict[str, list[Mapping[str, Any]]] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def prepare(self, access: ClientHost, patterns: Sequence[str]) -> None:
        """See to it that no former controller holds a monitor of a host, and that a later one can do the same.

        What cannot be done now is tried again the next time; it is no reason not to go on.

        :param patterns: of the monitors' sockets there.
        """
        host = access.name
        try:
            mine = dict(await access.client_identity())
            if self._written.get(host) == [mine]:
                return
            async with self._locks[host]:
                await self._prepare(access, patterns, mine)
        except (HostError, JournalError) as error:
            logs.logger().warning("who holds monitors is not settled", host=host, error=str(error))

    def may_hold(self, host: str) -> bool:
        """Tell whether a former controller may have connected again to a monitor of a host."""
        return bool(self._former.get(host))

    async def disconnect_again(self, access: ClientHost, patterns: Sequence[str]) -> int:
        """End what former controllers hold at a host by now; return how many connections that were.

        :raise HostError: that cannot be done now.
        """
        ended = 0
        for client in self._former.get(access.name, ()):
            ended += await self._disconnect(access, patterns, client)
        return ended

    async def _prepare(self, access: ClientHost, patterns: Sequence[str], mine: Mapping[str, Any]) -> None:
        host = access.name
        if host not in self._written:
            self._written[host] = _clients(await self._read(_key(host)))
        others = [client for client in self._written[host] if client != mine]
        await self._write(host, [*others, mine])
        self._former[host] = others
        for client in others:
            if ended := await self._disconnect(access, patterns, client):
                logs.logger().info("connections of a former controller are ended", host=host, count=ended)
        await self._write(host, [mine])

    async def _write(self, host: str, clients: list[Mapping[str, Any]]) -> None:
        if clients != self._written[host]:
            await self._keep(_key(host), json.dumps(clients[-_MOST:]))
            self._written[host] = clients


def _key(host: str) -> str:
    return f"clients/{host}"


def _clients(text: str | None) -> list[Mapping[str, Any]]:
    """Read what was kept; what cannot be read is nobody's."""
    try:
        found = json.loads(text or "[]")
        return [dict(each) for each in found]
    except (ValueError, TypeError):
        return []
