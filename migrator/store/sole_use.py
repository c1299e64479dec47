"""A journal on a server is one service's: a lease does for it what a lock does for a file."""

from __future__ import annotations

import asyncio
from typing import Self

from migrator import logs
from migrator.errors import JournalError, LeaseLost
from migrator.ports import Lease
from migrator.store.journal import SqlJournal

#: The lease's name.
NAME = "service"
#: After the death of a service another waits so long, unless it has the same state directory.
_SECONDS = 15.0
_RENEW_SECONDS = 4.0
_RETRY_SECONDS = 1.0


class SoleUse:
    """Every write of a journal is refused from the moment at which another service has it."""

    def __init__(self, journal: SqlJournal, owner: str, lease: Lease) -> None:
        self._journal = journal
        self._owner = owner
        self._lease = journal.lease = lease

    @classmethod
    async def begin(cls, journal: SqlJournal, *, owner: str) -> Self:
        """Take it; one that was killed elsewhere is waited for.

        :param owner: the controller's id: who has it takes it anew at once.
        :raise JournalError: another service has it, or it cannot be written.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SECONDS + _RETRY_SECONDS
        said = False
        while True:
            lease = await journal.leases.acquire(NAME, owner=owner, seconds=_SECONDS)
            if lease is not None:
                return cls(journal, owner, lease)
            if loop.time() > deadline:
                raise JournalError(
                    f"the journal {journal.name} is in use by another service: there can be one; stop it first"
                )
            if not said:
                logs.logger().info(
                    "waits for the journal: another service has it, or had it until a moment ago"
                )
                said = True
            await asyncio.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """Keep it, until cancelled. A server that is away for however long is no reason to give it up.

        :raise LeaseLost: another service has it, or had it meanwhile: this one must not do anything any more.
        """
        failing = False
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                await self._renew()
                failing = False
            except LeaseLost:
                raise
            except JournalError as error:
                if not failing:
                    logs.logger().warning("the lease of the journal cannot be renewed now", error=str(error))
                failing = True

    async def _renew(self) -> None:
        [renewed] = await self._journal.leases.renew([self._lease], seconds=_SECONDS)
        if renewed is None:  # the server was away for longer
            renewed = await self._journal.leases.acquire(NAME, owner=self._owner, seconds=_SECONDS)
            if renewed is None or renewed.token != self._lease.token + 1:
                raise LeaseLost(f"another service has taken the journal {self._journal.name} over")
        self._lease = self._journal.lease = renewed

    async def end(self) -> None:
        """Let the next one have it at once, if that can be said now."""
        self._journal.lease = None
        try:
            await self._journal.leases.release(self._lease)
        except JournalError:
            pass  # it ends by itself
