"""The planner's side of migrations that other controllers drive: gives them away, follows them, takes them back.

A migration is given before anything is begun for it, or when another has left it. Its driver then goes on without the
planner, for as long as its own lease holds; what the planner wants of it, and what its driver says, goes through the
journal. One whose driver has let go of it, or is gone, is taken back: as after a restart, what both QEMUs show counts.
First nothing more can be said of it, then the journal has what its driver said last, and only then that is removed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from migrator import logs
from migrator.core.model import State
from migrator.engine import clock
from migrator.engine.handing_over import HandingOver, SpreadingSite, leave_monitors
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration import take_over
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.registry import Registry
from migrator.engine.remote_sessions import RemoteSession, wanted_of
from migrator.errors import JournalError
from migrator.faults import contained
from migrator.gathering import gather_to_end
from migrator.ports import Signals
from migrator.ports.assignments import REPORTS_CHANNEL, Assignment, Assignments, AvailableDriver, DriverPool

#: It is looked without a signal so often: one may be missed.
_POLL_SECONDS = 1.0
#: Reports that come together cost one look.
_PAUSE_SECONDS = 0.02
#: All are looked at, though nothing says that one was missed and every driver is there, not before so long for each.
_ALL_SECONDS_EACH = 0.02
#: So many are taken over before others on the event loop have their turn.
_AT_ONCE = 10
_RETRY_SECONDS = 0.5


class SpreadingJournal(Protocol):
    """The part of the journal that this needs."""

    @property
    def signals(self) -> Signals: ...

    @property
    def assignments(self) -> Assignments: ...


class Spreading:
    """See the module.

    :param controller: what QEMUs are marked with, the same for all who share the journal.
    :param number: gives numbers, each larger than all that planners gave before.
    :param callbacks: what a session calls when something becomes of it.
    :param note: told of each session that has ended.
    :param wake: has a plan made.
    :param on_takeover: called for each migration that was taken from a driver which is gone.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        services: SessionServices,
        journal: SpreadingJournal,
        journal_writer: JournalWriter,
        site: SpreadingSite,
        pool: DriverPool,
        controller: str,
        number: Callable[[], int],
        callbacks: Callable[[], dict[str, Any]],
        note: Callable[[JournalledSession], None],
        wake: Callable[[], None],
        on_takeover: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry, self._services, self._site, self._pool = registry, services, site, pool
        self._assignments, self._signals, self._journal_writer = (
            journal.assignments,
            journal.signals,
            journal_writer,
        )
        self._callbacks, self._note, self._wake = callbacks, note, wake
        self._handing_over = HandingOver(
            registry=registry,
            services=services,
            assignments=journal.assignments,
            site=site,
            pool=pool,
            controller=controller,
            number=number,
        )
        self._on_takeover = on_takeover
        #: What is wanted of these has to be told their drivers.
        self._asked: set[str] = set()
        self._asking = asyncio.Event()
        self._reported: set[str] = set()
        self._look_at_all = True
        self._looked_at_all = -math.inf
        self._looking = asyncio.Event()
        #: Hosts that streams of other controllers leave, and that they enter.
        self._left: set[str] = set()
        self._entered: set[str] = set()
        self._log = logs.logger()

    def shares_links(self, source: str, target: str) -> bool:
        """Tell whether a stream of another controller leaves the first host or enters the second."""
        return source in self._left or target in self._entered

    # --- giving ------------------------------------------------------------------------------------------------------

    def choose(self, session: JournalledSession) -> AvailableDriver | None:
        """See :meth:`migrator.engine.handing_over.HandingOver.choose`."""
        return self._handing_over.choose(session)

    async def hand_over(
        self,
        session: JournalledSession,
        driver: AvailableDriver,
        *,
        otherwise: Callable[[], Coroutine[Any, Any, None]],
        former: tuple[str, int] = ("", 0),
    ) -> None:
        """Give a migration that nobody drives to another controller; drive it here where that cannot be.

        :param otherwise: drives it here.
        :param former: who drove it before, and that one's token.
        """
        assignment = await self._handing_over.give(session, driver, former=former)
        if assignment is None:
            await otherwise()
            return
        remote = self._remote(assignment.session, assignment)
        remote.requests.cancel = remote.requests.cancel or session.cancelled
        self._registry.replace(remote)
        if wanted_of(remote.requests) != dict(remote.assignment.requests):
            self._request(remote)
        self._reported.add(session.id)
        self._looking.set()

    def _remote(self, saved: Mapping[str, Any], assignment: Assignment) -> RemoteSession:
        return RemoteSession.of(
            saved, assignment, services=self._services, request=self._request, **self._callbacks()
        )

    # --- following ---------------------------------------------------------------------------------------------------

    async def left(self) -> dict[str, Assignment]:
        """Return what the planner before this one gave away, by migration.

        :raise JournalError: it cannot be read.
        """
        return {each.migration: each for each in await self._assignments.find()}

    def adopt(self, saved: Mapping[str, Any], assignment: Assignment) -> RemoteSession:
        """Return the session of a migration that an earlier planner gave away; its report is taken over later."""
        session = self._remote(saved, assignment)
        session.told_before = True
        leave_monitors(self._site, session)
        if wanted_of(session.requests) != dict(assignment.requests):
            self._request(session)  # that was accepted, and then there was no time to tell its driver
        return session

    async def run(self) -> None:
        """Follow what others drive, until cancelled."""
        self._pool.subscribe(self._pool_changed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="reports of other controllers")
            group.create_task(self._follow(), name="migrations of other controllers")
            group.create_task(self._ask(), name="requests to other controllers")

    def _pool_changed(self) -> None:
        elsewhere = self._elsewhere(None)
        drivers = {(each.assignment.driver, each.assignment.driver_token) for each in elsewhere}
        gone = not all(self._pool.lives(*each) for each in drivers)
        if gone or clock.now() - self._looked_at_all >= _ALL_SECONDS_EACH * len(elsewhere):
            self._look_at_all = True
            self._looking.set()

    async def _listen(self) -> None:
        async with self._signals.listen(REPORTS_CHANNEL, poll_seconds=_POLL_SECONDS) as signals:
            async for signal in signals:
                if signal.payload:
                    self._reported.add(signal.payload)
                else:
                    self._look_at_all = True
                self._looking.set()

    async def _follow(self) -> None:
        while True:
            await self._looking.wait()
            self._looking.clear()
            everything, self._look_at_all = self._look_at_all, False
            if everything:
                self._looked_at_all = clock.now()
            wanted, self._reported = self._reported, set()
            try:
                with contained("migrations of other controllers"):
                    await self._look(None if everything else wanted)
            except JournalError:
                self._look_at_all = True  # it is looked again before long; who writes says what is wrong
                self._looking.set()
                await asyncio.sleep(_RETRY_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _look(self, migrations: Collection[str] | None) -> None:
        if migrations is None and not any(each.driven_elsewhere for each in self._registry.live()):
            # Whatever an earlier planner left is there for as long as it is not taken back.
            self._left, self._entered = set(), set()
            await self._clean(await self._assignments.find())
            return
        # What is given while the answer is on its way is not in it.
        given = {each.id: each.assignment.number for each in self._elsewhere(migrations)}
        rows = {each.migration: each for each in await self._assignments.find(migrations)}
        over: list[RemoteSession] = []
        gone: list[RemoteSession] = []
        for count, session in enumerate(self._elsewhere(migrations), 1):
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)
            if session.ended or self._registry.migrations.get(session.id) is not session:
                rows.pop(session.id, None)
                continue  # something became of it meanwhile
            row = rows.pop(session.id, None)
            if row is None:
                if migrations is None and given.get(session.id) == session.assignment.number:
                    self._go_on(session)  # it was removed, and nobody answered
                continue
            if row.number != session.assignment.number:
                continue
            if row.over:
                over.append(session)
            elif not self._pool.lives(row.driver, row.driver_token):
                gone.append(session)
            # Of one that has ended its driver may still hold what it needs no more.
            if row.over or not _says_ended(row):
                session.take(row)
                leave_monitors(self._site, session)
        copying = [each for each in self._registry.live() if each.driven_elsewhere and each.copies]
        self._left = {each.guest.host for each in copying}
        self._entered = {each.target for each in copying}
        await self._take_back([*over, *await self._fenced(gone)])
        await self._clean(rows.values() if migrations is None else ())

    def _elsewhere(self, migrations: Collection[str] | None) -> list[RemoteSession]:
        """Return those that others drive, of all or of these."""
        known = self._registry.migrations
        asked = self._registry.live() if migrations is None else map(known.get, sorted(migrations))
        return [each for each in asked if isinstance(each, RemoteSession) and not each.ended]

    async def _clean(self, rows: Collection[Assignment]) -> None:
        """Remove what is left of migrations that have ended."""
        left = [row for row in rows if not self._registry.is_under_way(row.migration)]
        for row in left:
            if not row.over:
                await self._assignments.fence(row.migration, row.number)
        if left:  # what is known of their ends may still wait for the journal
            await self._journal_writer.commit()
        for row in left:
            await self._assignments.remove(row.migration, row.number)

    async def _fenced(self, gone: Sequence[RemoteSession]) -> list[RemoteSession]:
        """Take these from their drivers, which are gone; return those of which nothing more is said."""
        fencing = (self._assignments.fence(each.id, each.assignment.number) for each in gone)
        fenced = []
        for session, last in zip(gone, await gather_to_end(*fencing), strict=True):
            if last is not None:
                session.take(last)
                leave_monitors(self._site, session)
                fenced.append(session)
        return fenced

    async def _take_back(self, sessions: Sequence[RemoteSession]) -> None:
        """Take the place of drivers that have let go of these, or are gone."""
        if not sessions:
            return
        for session in sessions:
            if session.ended:
                self._note_left(session)
                self._note(session)
        await self._journal_writer.commit(*(("migration", session.journalled) for session in sessions))
        await gather_to_end(*(self._remove(session) for session in sessions))

    async def _remove(self, session: RemoteSession) -> None:
        await self._assignments.remove(session.id, session.assignment.number)
        if not session.ended:
            self._go_on(session)

    def _go_on(self, session: RemoteSession) -> None:
        """Drive it here, or give it to another: its driver has let go of it, or is gone."""
        last = session.assignment
        self._note_left(session)
        local = JournalledSession.from_journal(
            session.journalled(), services=self._services, **self._callbacks()
        )
        local.requests.share = session.requests.share
        self._registry.replace(local)
        self._journal_writer.schedule_latest("migration", local.id, local.journalled)
        if local.state is State.QUEUED:
            if local.cancelled and local.hooks_owed and self._registry.may_begin:
                self._registry.start(
                    local, local.drive()
                )  # which finds that it is unwanted, and tells its hooks
            elif local.cancelled:
                local.call_off()
                self._note(local)
        elif self._registry.may_begin:
            self._registry.start(local, self._taken_up(local, last))
        self._wake()

    def _note_left(self, session: RemoteSession) -> None:
        """Note that its driver has let go of it, or is gone."""
        last = session.assignment
        self._handing_over.note_unreached(session)
        if last.fenced:
            self._pool.note_gone(last.driver, last.driver_token)
            self._on_takeover()
            self._log.warning(
                "the driver of a migration is gone",
                migration=session.id,
                driver=self._pool.instance(last.driver),
            )
        self._site.forget_driven_elsewhere(session.id)

    async def _taken_up(self, session: JournalledSession, last: Assignment) -> None:
        driver = None if session.state is State.HELD else self.choose(session)
        if driver is None:
            await take_over.take_up(session)
            return
        former = (last.driver, last.driver_token) if last.fenced else ("", 0)
        await self.hand_over(session, driver, former=former, otherwise=lambda: take_over.take_up(session))

    # --- what is wanted of them --------------------------------------------------------------------------------------

    def _request(self, session: RemoteSession) -> None:
        self._asked.add(session.id)
        self._asking.set()

    async def _ask(self) -> None:
        while True:
            await self._asking.wait()
            self._asking.clear()
            asked, self._asked = self._asked, set()
            await asyncio.gather(*(self._send(migration) for migration in asked))
            await asyncio.sleep(0)

    async def _send(self, migration: str) -> None:
        session = self._registry.migrations.get(migration)
        if not isinstance(session, RemoteSession) or session.ended:
            return
        try:
            await self._assignments.request(migration, session.assignment.number, wanted_of(session.requests))
        except JournalError:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(_RETRY_SECONDS)
            self._request(session)


def _says_ended(row: Assignment) -> bool:
    return row.report is not None and row.report["session"].get("ended_at") is not None
