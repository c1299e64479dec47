"""The planner's side of migrations that other controllers drive: gives them away, follows them, takes them back.

A migration is given before anything is begun for it, or when another has left it. Its driver then goes on without the
planner, for as long as its own lease holds; what the planner wants of it, and what its driver says, goes through the
journal. One whose driver has let go of it, or is gone, is taken back: as after a restart, what both QEMUs show counts.
First nothing more can be said of it, then the journal has what its driver said last, and only then that is removed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from migrator import logs
from migrator.core.drain.assignments import choose_driver
from migrator.core.model import State
from migrator.core.policy import Start
from migrator.engine import clock
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration import take_over
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.registry import Registry
from migrator.engine.remote_sessions import RemoteSession, wanted_of
from migrator.errors import JournalError
from migrator.faults import contained
from migrator.ports import (
    REPORTS_CHANNEL,
    Assignment,
    Assignments,
    AvailableDriver,
    DriverPool,
    Signals,
)

#: It is looked without a signal so often: one may be missed.
_POLL_SECONDS = 1.0
#: Reports that come together cost one look.
_PAUSE_SECONDS = 0.02
_RETRY_SECONDS = 0.5
#: A driver that could not ask a guest, or its target's host, gets none of those two hosts for so long.
_UNABLE_SECONDS = 60.0

T = TypeVar("T")


class SpreadingJournal(Protocol):
    """The part of the journal that this needs."""

    @property
    def signals(self) -> Signals: ...

    @property
    def assignments(self) -> Assignments: ...


class SpreadingSite(Protocol):
    """The part of the site that this needs."""

    def mark_with(self, number: int) -> None:
        """Mark what is changed from now on with a number that is larger than all that were given."""

    def note_driven_elsewhere(
        self, migration: str, *, source: tuple[str, str], target: str, destination: str = ""
    ) -> None:
        """Leave the monitors of a migration to another controller."""

    def forget_driven_elsewhere(self, migration: str) -> None:
        """Treat the monitors of a migration like all others again."""


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
        self._controller = controller
        self._number, self._callbacks, self._note, self._wake = number, callbacks, note, wake
        self._on_takeover = on_takeover
        #: Drivers of migrations that are being given to them.
        self._coming: Counter[str] = Counter()
        #: What is wanted of these has to be told their drivers.
        self._asked: set[str] = set()
        self._asking = asyncio.Event()
        self._reported: set[str] = set()
        self._look_at_all = True
        self._looking = asyncio.Event()
        #: Until when a driver of that name and token is given nothing of that host; on the engine's clock.
        self._unable: dict[tuple[str, int, str], float] = {}
        #: Hosts that streams of other controllers leave, and that they enter.
        self._left: set[str] = set()
        self._entered: set[str] = set()
        self._log = logs.logger()

    def shares_links(self, source: str, target: str) -> bool:
        """Tell whether a stream of another controller leaves the first host or enters the second."""
        return source in self._left or target in self._entered

    # --- giving ------------------------------------------------------------------------------------------------------

    def choose(self, session: JournalledSession) -> AvailableDriver | None:
        """Return the controller that shall drive a migration; ``None``: this one.

        One whose guest may have to wait until it writes little stays here: only the planner knows when it usually does,
        and the deadline of its evacuation.
        """
        if session.state is State.QUEUED and session.policy.start is Start.QUIET:
            return None
        able = {each.name: each for each in self._pool.available()}
        if not able:
            return None
        loads = Counter(self._coming)
        for each in self._registry.live():
            if isinstance(each, RemoteSession):
                loads[each.driver_name] += 1
            elif self._registry.busy(each):
                loads[self._pool.name] += 1
        chosen = choose_driver(
            self._pool.name,
            loads,
            {name: each.hosts - self._unreached(each) for name, each in able.items()},
            needs=frozenset({session.guest.host, session.target}),
        )
        return able.get(chosen)

    def _unreached(self, driver: AvailableDriver) -> set[str]:
        """Return the hosts that a driver could not ask a moment ago: it may lack the way there, which others have."""
        now = clock.now()
        self._unable = {key: until for key, until in self._unable.items() if until > now}
        return {host for name, token, host in self._unable if (name, token) == (driver.name, driver.token)}

    def _note_unreached(self, session: RemoteSession) -> None:
        """Note it where its driver gave a migration up, or left it, because something could not be asked or read."""
        unread = session.assignment.released and session.assignment.report is None
        if unread or session.unreachable or (session.state is State.FAILED and session.may_pass):
            driver, until = session.assignment, clock.now() + _UNABLE_SECONDS
            for host in (session.guest.host, session.target):
                self._unable[driver.driver, driver.driver_token, host] = until

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
        self._coming[driver.name] += 1
        try:
            remote = await self._given(session, driver, former)
        finally:
            self._coming[driver.name] -= 1
        if remote is None:
            await otherwise()
            return
        self._registry.replace(remote)
        if wanted_of(remote.requests) != dict(remote.assignment.requests):
            self._request(remote)
        self._reported.add(session.id)
        self._looking.set()

    async def _given(
        self, session: JournalledSession, driver: AvailableDriver, former: tuple[str, int]
    ) -> RemoteSession | None:
        saved = session.journalled()
        if (prior := session.prior()) is not None:
            saved["_private"]["prior"] = asdict(prior)
        if self._services.experience is not None:
            saved["_private"]["overheads"] = self._services.experience.known()
        assignment = Assignment(
            migration=session.id,
            driver=driver.name,
            driver_token=driver.token,
            number=self._number(),
            controller=self._controller,
            session=saved,
            stream_speed=self._services.stream_speed(session.guest.host, session.target),
            former=former[0],
            former_token=former[1],
            requests=wanted_of(session.requests),
        )
        self._leave_monitors(session)
        # What this one does after it was taken back has a later mark.
        self._site.mark_with(self._number())
        given: bool | None = None
        while given is None:
            try:
                given = await self._assignments.give(assignment) or await self._is_left(assignment)
            except JournalError:
                given = await self._was_given(assignment)
        if not given:
            self._site.forget_driven_elsewhere(session.id)
            return None
        self._log.info("migration is driven by another controller", migration=session.id, by=driver.instance)
        remote = self._remote(saved, assignment)
        remote.requests.cancel = remote.requests.cancel or session.cancelled
        return remote

    async def _is_left(self, assignment: Assignment) -> bool | None:
        """Remove what was given though nobody answered, and then refused: its driver was gone by then.

        ``None``: that driver has it, or may have it.

        :raise JournalError: it cannot be done now.
        """
        if not await self._assignments.find([assignment.migration]):
            return False
        if await self._assignments.fence(assignment.migration, assignment.number) is None:
            return None
        await self._assignments.remove(assignment.migration, assignment.number)
        return False

    async def _was_given(self, assignment: Assignment) -> bool | None:
        """Tell whether a migration was given when nobody answered; ``None``: that cannot be told yet."""
        await asyncio.sleep(_RETRY_SECONDS)
        try:
            found = await self._assignments.find([assignment.migration])
        except JournalError:
            return None
        return any(each.number == assignment.number for each in found) or None

    def _remote(self, saved: Mapping[str, Any], assignment: Assignment) -> RemoteSession:
        return RemoteSession.of(
            saved, assignment, services=self._services, request=self._request, **self._callbacks()
        )

    def _leave_monitors(self, session: JournalledSession) -> None:
        place = session.places.get("destination")
        self._site.note_driven_elsewhere(
            session.id,
            source=(session.guest.host, session.guest.socket),
            target=session.target,
            destination=place.socket if place is not None else "",
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
        self._leave_monitors(session)
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
        given = {each.id: each.assignment.number for each in self._elsewhere()}
        rows = {each.migration: each for each in await self._assignments.find(migrations)}
        over: list[RemoteSession] = []
        gone: list[RemoteSession] = []
        for session in self._elsewhere():
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
                self._leave_monitors(session)
        copying = [each for each in self._registry.live() if each.driven_elsewhere and each.copies]
        self._left = {each.guest.host for each in copying}
        self._entered = {each.target for each in copying}
        await self._take_back([*over, *await self._fenced(gone)])
        await self._clean(rows.values() if migrations is None else ())

    def _elsewhere(self) -> list[RemoteSession]:
        """Return those that others drive."""
        return [each for each in self._registry.live() if isinstance(each, RemoteSession) and not each.ended]

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
        for session, last in zip(gone, await _all(fencing), strict=True):
            if last is not None:
                session.take(last)
                self._leave_monitors(session)
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
        await _all(self._remove(session) for session in sessions)

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
        self._note_unreached(session)
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


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of all; none of them is still under way when this returns or raises."""
    done = await asyncio.gather(*work, return_exceptions=True)
    results: list[T] = []
    for each in done:
        if isinstance(each, BaseException):
            raise each
        results.append(each)
    return results
