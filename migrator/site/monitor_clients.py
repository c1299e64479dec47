"""Connections that hold each host's monitors, noted for the controller that takes this one's place.

A QMP socket serves one client at a time, and a controller that was frozen keeps those that it had. So each controller
has it written down, before it opens the first monitor of a host, which process of that host holds its connections
there, and under which of its leases; and ends those of controllers whose lease is over.
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

#: Of one controller at one host: more were never there at a time, and what is older is gone.
_MOST = 16
#: Of a controller: the token of its lease when it was noted.
_LEASE = "lease"


class ClientHost(Protocol):
    """A host, as far as it knows which process holds connections there."""

    @property
    def name(self) -> str:
        """Return its name."""

    async def client_identity(self) -> Mapping[str, Any]:
        """See :meth:`migrator.hosts.access.HostAccess.client_identity`."""


class MonitorClients:
    """The processes that hold controllers' connections, host by host.

    :param name: of this controller.
    :param read: everything that was kept under names which begin so.
    :param keep: keeps a text under a name; on disk when it returns.
    :param live: the controllers whose leases hold, this one among them, each with its token, as they were seen last.
    :param live_now: the same, seen now: before anything of another is ended.
    :param last_tokens: the token that each controller had last, whether or not its lease still holds. One that came and
        went while nothing was connected here has left connections behind, though the same ones live as before.
    :param disconnect: see :func:`migrator.hosts.disconnect.disconnect`; only a simulated host needs another.
    """

    def __init__(
        self,
        *,
        name: str,
        read: Callable[[str], Awaitable[Mapping[str, str]]],
        keep: Callable[[str, str], Awaitable[None]],
        live: Callable[[], Mapping[str, int]],
        live_now: Callable[[], Awaitable[Mapping[str, int]]],
        last_tokens: Callable[[], Mapping[str, int]],
        disconnect: Callable[[Any, Sequence[str], Mapping[str, Any]], Awaitable[int]] = disconnect,
    ) -> None:
        self._name, self._read, self._keep, self._live = name, read, keep, live
        self._live_now, self._last_tokens = live_now, last_tokens
        self._disconnect = disconnect
        #: What is written down of this controller at each host.
        self._written: dict[str, list[Mapping[str, Any]]] = {}
        #: By host: for which process of this controller, beside whom, and after whom, it was seen to that nobody else
        #: holds one.
        self._settled: dict[str, tuple[Mapping[str, Any], Mapping[str, int], Mapping[str, int]]] = {}
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
            live, last_tokens = dict(self._live()), dict(self._last_tokens())
            mine = {**await access.client_identity(), _LEASE: live.get(self._name, 0)}
            if self._settled.get(host) == (mine, live, last_tokens):
                return
            async with self._locks[host]:
                await self._prepare(access, patterns, mine, live)
                self._settled[host] = mine, live, last_tokens
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

    async def _prepare(
        self,
        access: ClientHost,
        patterns: Sequence[str],
        mine: Mapping[str, Any],
        live: Mapping[str, int],
    ) -> None:
        host, identity = access.name, _identity(mine)
        found = await self._found(host)
        own = [each for each in found.pop(self._name, ()) if _identity(each) != identity]
        await self._write(host, [*own, mine])
        if _over(found, live):
            # One that has just come wrote down its lease after it took it, and before it connected.
            live = await self._live_now()
        former = own + _over(found, live)
        self._former[host] = [_identity(each) for each in former if _identity(each) != identity]
        for client in self._former[host]:
            if ended := await self._disconnect(access, patterns, client):
                logs.logger().info("connections of a former controller are ended", host=host, count=ended)
        await self._write(host, [mine])
        if found.get(""):
            await self._keep(_key(host), "[]")  # controllers of older versions have gone for good

    async def _found(self, host: str) -> dict[str, list[Mapping[str, Any]]]:
        """Return what is written down of a host, by the controllers' names; under an empty one, of older versions."""
        key = _key(host)
        kept = await self._read(key)
        return {
            name.removeprefix(key).removeprefix("/"): _clients(text)
            for name, text in kept.items()
            if name == key or name.startswith(f"{key}/")
        }

    async def _write(self, host: str, clients: list[Mapping[str, Any]]) -> None:
        if clients != self._written.get(host):
            await self._keep(f"{_key(host)}/{self._name}", json.dumps(clients[-_MOST:]))
            self._written[host] = clients


def _key(host: str) -> str:
    return f"clients/{host}"


def _over(
    found: Mapping[str, Sequence[Mapping[str, Any]]], live: Mapping[str, int]
) -> list[Mapping[str, Any]]:
    """Return what is written down under leases that are over."""
    return [
        each for name, clients in found.items() for each in clients if live.get(name) != each.get(_LEASE, 0)
    ]


def _identity(client: Mapping[str, Any]) -> dict[str, Any]:
    """Return the process alone."""
    return {key: value for key, value in client.items() if key != _LEASE}


def _clients(text: str | None) -> list[Mapping[str, Any]]:
    """Read what was kept; what cannot be read is nobody's."""
    try:
        found = json.loads(text or "[]")
        return [dict(each) for each in found]
    except (ValueError, TypeError):
        return []
