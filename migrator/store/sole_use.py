"""One controller acts on a journal that several share; the others stand by. A lease says whose turn it is."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Self

from migrator import logs
from migrator.errors import JournalError, LeaseLost
from migrator.ports import Lease
from migrator.store.journal import SqlJournal
from migrator.store.schema import CONTROLLER

#: The lease's name.
NAME = "site"
#: A lease is renewed so many times before it could end.
_RENEWALS = 4
_RETRY_SECONDS = 0.5
#: It is looked so often whether the lease may have ended: well within the margin of the shortest.
_WATCH_SECONDS = 0.05


class SoleUse:
    """The right to act: every write of the journal is refused from the moment at which another controller has it.

    :ivar controller: what QEMUs are marked with, the same for all who share the journal.
    """

    def __init__(
        self, journal: SqlJournal, *, owner: str, seconds: float, lease: Lease, controller: str
    ) -> None:
        self._journal = journal
        self._owner, self._seconds = owner, seconds
        self._lease = journal.lease = lease
        #: Seconds that the last renewal took.
        self._took = 0.0
        self.controller = controller
        #: Who acted before and let the lease end without a word; empty: it was given back, or nobody did.
        self.taken_from = lease.taken_from

    @classmethod
    async def begin(
        cls,
        journal: SqlJournal,
        *,
        owner: str,
        seconds: float,
        stop: Callable[[], Awaitable[None]],
        standing_by: Callable[[], None],
        may: Callable[[], bool] = lambda: True,
        newer: Callable[[], str] = lambda: "",
    ) -> Self | None:
        """Take it; while another controller has it, stand by, however long that is.

        :param owner: this controller's id: it takes its own lease anew at once.
        :param seconds: how long the lease holds without being renewed.
        :param stop: returns when nobody wants it any more.
        :param standing_by: called each time that another was found to have it.
        :param may: whether the id is this process's own: otherwise nothing of that id is taken.
        :param newer: a controller of a newer version that is there: it goes first, as it reads what older ones wrote.
        :return: ``None`` when `stop` returned first.
        """
        log = logs.logger()
        said = ""
        stopped = asyncio.ensure_future(stop())
        try:
            while not stopped.done():
                try:
                    why = "" if may() else "its own lease does not hold"
                    if not why and (first := newer()):
                        why = f"{first} is of a newer version and goes first"
                    if not why:
                        lease = await journal.leases.acquire(NAME, owner=owner, seconds=seconds)
                        if lease is not None:
                            return await cls._first(journal, owner, seconds, lease)
                        why = "another controller has the journal"
                except JournalError as error:
                    why = str(error)
                if why != said:
                    log.info("stands by", why=why)
                    said = why
                standing_by()
                await asyncio.wait({stopped}, timeout=_RETRY_SECONDS)
            return None
        finally:
            stopped.cancel()

    @classmethod
    async def _first(cls, journal: SqlJournal, owner: str, seconds: float, lease: Lease) -> Self:
        controller = await journal.meta(CONTROLLER)
        if controller is None:  # nobody else writes it now
            controller = secrets.token_hex(8)
            await journal.keep_meta(CONTROLLER, controller)
        return cls(journal, owner=owner, seconds=seconds, lease=lease, controller=controller)

    @property
    def lease(self) -> Lease:
        """Return the lease as it was renewed last."""
        return self._lease

    @property
    def token(self) -> int:
        """Return the lease's token: larger than that of every controller which acted before."""
        return self._lease.token

    def holds(self) -> bool:
        """Tell whether no other controller can have the lease yet."""
        return self._lease.may_act

    @property
    def too_short(self) -> str:
        """Return why it may never be renewed in time, as a clause with what to do; empty where it was soon enough."""
        if self._took <= self._seconds / _RENEWALS:
            return ""
        return (
            f" (renewing it took {self._took:.1f} s, with a [controller] lease of {self._seconds:g} s: make that "
            "longer, or see why the database is so slow)"
        )

    async def run(self) -> None:
        """Keep it, until cancelled. A server that is away for however long is no reason to give it up.

        :raise LeaseLost: another controller has it, or had it meanwhile: this one must not do anything any more.
        """
        failing = False
        while True:
            await asyncio.sleep(self._seconds / _RENEWALS)
            try:
                await self._renew()
                failing = False
            except LeaseLost:
                raise
            except JournalError as error:
                if not failing:
                    logs.logger().warning("the lease of the journal cannot be renewed now", error=str(error))
                failing = True

    async def watch(self, *, lapsed: Callable[[], None], regained: Callable[[], None]) -> None:
        """Say when another may have it by now, and when it is certain again that none has; until cancelled."""
        held = True
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if held is self.holds():
                continue
            held = not held
            logs.logger().warning(
                "the lease is renewed: this controller goes on"
                if held
                else f"the lease could not be renewed in time{self.too_short}: this controller leaves everything to "
                "others"
            )
            (regained if held else lapsed)()

    async def _renew(self) -> None:
        began = self._lease.clock()
        try:
            await self._renew_or_acquire()
        finally:
            self._took = self._lease.clock() - began

    async def _renew_or_acquire(self) -> None:
        [renewed] = await self._journal.leases.renew([self._lease], seconds=self._seconds)
        if renewed is None:  # the server was away for longer
            renewed = await self._journal.leases.acquire(
                NAME, owner=self._owner, seconds=self._seconds, known=self._lease.token
            )
            if renewed is None or renewed.token != self._lease.token + 1:
                raise LeaseLost(f"another controller has taken the journal {self._journal.name} over")
        self._lease = self._journal.lease = renewed

    async def end(self) -> None:
        """Let the next one have it at once, if that can be said now."""
        self._journal.lease = None
        try:
            await self._journal.leases.release(self._lease)
        except JournalError:
            pass  # it ends by itself
