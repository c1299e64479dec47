"""Reservations of what somebody is about to change: from before the first look at it until it is done or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from migrator.core.drain.snapshot import Name


class Reservations:
    """Guests, hosts, evacuations and migrations that are being changed now.

    ::

        async with reserved.hold(("host", name)):
            ...                                     # nobody else begins anything with that host meanwhile

    Whoever comes second waits, and then sees what the first has done.
    """

    def __init__(self) -> None:
        self._locks: dict[Name, asyncio.Lock] = {}
        self._users: dict[Name, int] = {}

    @property
    def names(self) -> frozenset[Name]:
        """Return everything that somebody changes now, or waits to change."""
        return frozenset(self._users)

    def taken(self, *names: Name) -> bool:
        """Tell whether somebody changes one of these, or waits to change it."""
        return any(name in self._users for name in names)

    @asynccontextmanager
    async def hold(self, *names: Name) -> AsyncIterator[None]:
        """Have all of these for oneself; one who holds some already may ask only for later kinds of the alphabet."""
        async with AsyncExitStack() as stack:
            for name in sorted(set(names)):
                await stack.enter_async_context(self._one(name))
            yield

    @asynccontextmanager
    async def _one(self, name: Name) -> AsyncIterator[None]:
        self._users[name] = self._users.get(name, 0) + 1
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name], self._locks[name]
