"""The driver's side: migrations that the planner has given to this controller, each driven like any other.

Its driver says in the journal how it is, and reads there what is wanted of it. Once its lease may have ended everything
is parked and let go: nothing that was given under an earlier lease is gone on with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from migrator import logs
from migrator.core.migration.drivers import Driver
from migrator.core.model import Decision, State
from migrator.engine import clock
from migrator.engine.driven_migration import DrivenMigration, GivenOverheads
from migrator.engine.migration import take_over
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.outcome import LEARNED
from migrator.engine.migration.services import MigrationSite, SessionServices
from migrator.errors import JournalError, LeaseLost, MigratorError
from migrator.faults import contained
from migrator.ports import Lease, Signals
from migrator.ports.assignments import ASSIGNMENTS_CHANNEL, Assignment, Assignments
from migrator.ports.unreadable import UNREADABLE

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
#: So long a task that was cancelled may take to end.
_CANCELLED_SECONDS = 5.0
#: It is looked so often whether the lease may have ended: well within the margin of the shortest.
_WATCH_SECONDS = 0.05
#: So long for each that is driven it is not looked again at what is given.
_LOOK_SECONDS_EACH = 0.0001
#: Between two reports that only tell of progress, and so much for each that is driven where that is more: the planner
#: has to read them all.
_PROGRESS_SECONDS, _PROGRESS_SECONDS_EACH = 1.0, 0.01
#: ... and while others of its group may be switched as soon as it is due.
_GROUP_SECONDS = 0.1
#: States are reported again for so long: the planner may have been slow.
_TRAIL_SECONDS = 3.0


class DrivingJournal(Protocol):
    """The part of the journal that this needs."""

    @property
    def signals(self) -> Signals: ...

    @property
    def assignments(self) -> Assignments: ...

    @property
    def rights(self) -> dict[str, Lease]:
        """Return what gives the right to write the steps of migrations, by migration."""


class DriverLease(Protocol):
    """The lease of this controller, as a driver."""

    @property
    def name(self) -> str:
        """Return the name of this controller."""

    @property
    def lease(self) -> Lease | None:
        """Return the lease as it was renewed last."""

    def note_gone(self, name: str, token: int) -> None:
        """See :meth:`migrator.ports.assignments.DriverPool.note_gone`."""


class AssignedMigrations:
    """Drives what it is given.

    :param services: as for a planner's sessions; what differs for each is replaced.
    :param site: makes the site for a session: given whether it may act, and how it marks QEMUs.
    :param driver: makes the mark of this process for an assignment, unique for that.
    """

    def __init__(
        self,
        *,
        journal: DrivingJournal,
        own: DriverLease,
        services: SessionServices,
        site: Callable[[Driver, Callable[[], bool]], MigrationSite],
        driver: Callable[[Assignment], Driver],
    ) -> None:
        self._journal, self._own, self._services = journal, own, services
        self._site, self._driver = site, driver
        self._driven: dict[str, DrivenMigration] = {}
        #: Assignments that this version cannot read, by their numbers, until the planner is told.
        self._unreadable: dict[int, Assignment] = {}
        self._changed = asyncio.Event()
        #: Something may be new in what is given.
        self._signalled = asyncio.Event()
        self._stopping = False
        self._log = logs.logger()

    @property
    def count(self) -> int:
        """Return how many it drives."""
        return len(self._driven)

    def is_switching(self) -> bool:
        """Return whether a guest that it drives is being switched now."""
        return any(driven.session.switches for driven in self._driven.values())

    async def run(self) -> None:
        """Drive what comes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="signals of assignments")
            group.create_task(self._look_at_all(), name="assignments")
            group.create_task(self._report_all(), name="reports")
            group.create_task(self._watch(), name="watch the driver's lease")

    async def stop(self, *, drain: bool = False, timeout: float = 60.0) -> None:
        """Take nothing more; finish what is past the guest's STOP and park the rest, or with `drain` finish all that
        moves.

        :meth:`run` has to run meanwhile, so that the planner hears of it.
        """
        self._stopping = True
        for each in self._driven.values():
            # With drain too: there may be nobody any more who gives turns, and who waits for one would wait for ever.
            if not drain or each.session.started_at is None:
                each.session.park()
            elif each.session.moved_with:
                each.session.allow_switch("the service stops: nobody says any more when its group is due")
        try:
            async with asyncio.timeout(None if drain else timeout):
                while self._driven:
                    await asyncio.sleep(_WATCH_SECONDS)
        except TimeoutError:
            self._log.warning("migrations are left to others as they are", count=len(self._driven))
        left = [each.task for each in self._driven.values() if each.task is not None]
        for task in left:
            task.cancel()
        if left:  # another may drive them as soon as this controller has left
            await asyncio.wait(left, timeout=_CANCELLED_SECONDS)

    # --- what it is given --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async with self._journal.signals.listen(ASSIGNMENTS_CHANNEL, poll_seconds=_POLL_SECONDS) as signals:
            async for signal in signals:
                if signal.payload in ("", self._own.name):
                    self._signalled.set()

    async def _look_at_all(self) -> None:
        while True:
            await self._signalled.wait()
            self._signalled.clear()
            with suppress(JournalError):  # it is looked again before long
                await self._look()
            # Signals that come together cost one look, which takes the longer the more there are.
            await asyncio.sleep(_LOOK_SECONDS_EACH * len(self._driven))

    async def _look(self) -> None:
        """Take what is new, and heed what is wanted of what is there.

        :raise JournalError: it cannot be read now.
        """
        # What is let go of while the answer is on its way may still be in it.
        before = {each.assignment.number for each in self._driven.values()}
        wanted = await self._journal.assignments.requests_of(self._own.name)
        new = wanted.keys() - before - self._unreadable.keys()
        given = await self._journal.assignments.of(self._own.name, new) if new else ()
        with suppress(MigratorError), contained("assignments"):
            for driven in list(self._driven.values()):
                self._heed_again(driven, wanted.get(driven.assignment.number))
            for each in given:
                self._take(each)

    def _take(self, assignment: Assignment) -> None:
        if self._stopping or assignment.migration in self._driven or not self._given_now(assignment):
            return
        try:
            self._begin(assignment)
        except UNREADABLE as error:
            self._give_back(assignment, error)

    def _heed_again(self, driven: DrivenMigration, requests: Mapping[str, Any] | None) -> None:
        if (
            requests is None
            or requests == driven.assignment.requests
            or not self._given_now(driven.assignment)
        ):
            return
        driven.assignment = replace(driven.assignment, requests=requests)
        self._heed(driven.session, requests)

    def _given_now(self, assignment: Assignment) -> bool:
        """Tell whether it was given under the lease that holds: else the planner takes it back."""
        lease = self._own.lease
        return lease is not None and lease.token == assignment.driver_token and lease.may_act

    def _begin(self, assignment: Assignment) -> None:
        token = assignment.driver_token

        def holds() -> bool:
            lease = self._own.lease
            return lease is not None and lease.token == token and lease.may_act

        if assignment.former:
            self._own.note_gone(assignment.former, assignment.former_token)
        session = JournalledSession.from_journal(
            assignment.session,
            services=replace(
                self._services,
                site=self._site(self._driver(assignment), holds),
                keep=self._keep,
                experience=GivenOverheads(assignment.session["_private"].get("overheads", {})),
                stream_speed=lambda source, target: assignment.stream_speed,
            ),
            on_state=self._entered,
            on_progress=self._progressed,
            on_decision=self._decided,
            on_ready=self._progressed,
        )
        driven = self._driven[session.id] = DrivenMigration(
            assignment=assignment, session=session, holds=holds
        )
        self._journal.rights[session.id] = assignment.right(holds)
        self._heed(session, assignment.requests)
        self._log.info("drives a migration for the planner", migration=session.id, guest=session.guest.key)
        driven.task = asyncio.create_task(self._drive(driven), name=f"migration {session.id}")

    def _give_back(self, assignment: Assignment, error: Exception) -> None:
        """Have the planner take back what this version cannot read: a newer one may have given it."""
        self._log.warning(
            "a migration that it was given cannot be read: another is to drive it",
            migration=assignment.migration,
            error=f"{type(error).__name__}: {error}",
        )
        self._unreadable[assignment.number] = assignment
        self._changed.set()

    def _heed(self, session: JournalledSession, requests: Mapping[str, Any]) -> None:
        if "share" in requests:
            session.set_share(requests["share"])
        if requests.get("admit") and not session.admitted:
            session.admit()
        if requests.get("cancel") and not session.cancelled:
            session.cancel()
        if requests.get("postcopy") and not session.requests.postcopy:
            session.postcopy(str(requests.get("postcopy_reason", "")))
        if requests.get("switch") and not session.requests.switch:
            session.allow_switch(str(requests["switch"]))

    async def _drive(self, driven: DrivenMigration) -> None:
        session = driven.session
        try:
            with contained(f"migration {session.id}"):
                if session.state is not State.QUEUED:
                    await take_over.take_up(session)
                elif session.cancelled and not session.hooks_owed:
                    session.call_off()
                else:
                    await session.drive()
        except MigratorError as error:
            self._log.warning("migration broke off", migration=session.id, error=str(error))
            session.break_off(str(error))
        driven.released = True
        self._note_change(session)

    async def _watch(self) -> None:
        """Leave everything once another may have it."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for each in self._driven.values():
                if not each.session.parked and not each.holds():
                    self._log.warning(
                        "the lease could not be renewed in time: this migration is left to others",
                        migration=each.session.id,
                    )
                    each.session.park()

    # --- what it says ------------------------------------------------------------------------------------------------

    def _entered(self, session: JournalledSession) -> None:
        driven = self._driven.get(session.id)
        if driven is not None:
            driven.states += 1
            document = session.document(decisions=False).model_dump(mode="json")
            driven.trail.append((clock.now(), driven.states, document))
        self._note_change(session)

    def _decided(self, session: JournalledSession, decision: Decision) -> None:  # noqa: ARG002 - the document has it
        self._note_change(session)

    def _progressed(self, session: JournalledSession) -> None:
        driven = self._driven.get(session.id)
        if driven is None:
            return
        every = max(_PROGRESS_SECONDS, _PROGRESS_SECONDS_EACH * len(self._driven))
        if session.switch_in_seconds is not None:
            every = _GROUP_SECONDS
        if session.ready or clock.now() - driven.reported_at >= every:
            self._note_change(session)

    def _note_change(self, session: JournalledSession) -> None:
        driven = self._driven.get(session.id)
        if driven is not None:
            driven.changed = True
            self._changed.set()

    async def _report_all(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            changed = [each for each in self._driven.values() if each.changed]
            unreadable = list(self._unreadable.values())
            results = await asyncio.gather(
                *(self._report_soon(each) for each in changed),
                *(self._say_unreadable(each) for each in unreadable),
            )
            if not all(results):
                await asyncio.sleep(_RETRY_SECONDS)
                self._changed.set()
            await asyncio.sleep(0)

    async def _report_soon(self, driven: DrivenMigration) -> bool:
        try:
            await self._report(driven)
        except LeaseLost:
            self._lose(driven)
        except JournalError:
            driven.changed = True
            return False
        if driven.released and not driven.changed:
            self._forget(driven)
        return True

    async def _say_unreadable(self, assignment: Assignment) -> bool:
        try:
            await self._journal.assignments.report(assignment, None, released=True)
        except LeaseLost:
            pass
        except JournalError:
            return False
        self._unreadable.pop(assignment.number, None)
        return True

    async def _report(self, driven: DrivenMigration) -> None:
        """Say how it is.

        :raise LeaseLost: the planner has taken it back.
        :raise JournalError: it cannot be said now.
        """
        driven.changed, driven.reported_at = False, clock.now()
        released = driven.released
        await self._journal.assignments.report(driven.assignment, self._said(driven), released=released)
        if released is not driven.released:
            driven.changed = True
            self._changed.set()

    def _said(self, driven: DrivenMigration) -> dict[str, Any]:
        session, refusal = driven.session, driven.session.refusal
        since = clock.now() - _TRAIL_SECONDS
        return {
            "session": session.journalled(),
            "trail": [(number, document) for at, number, document in driven.trail if at >= since],
            "learned": {name: getattr(session.result, name) for name in LEARNED},
            "ready": session.ready,
            "refusal": None
            if refusal is None
            else {"may_pass": refusal.may_pass, "everywhere": refusal.everywhere},
            "unreachable": session.unreachable,
            "left_behind": sorted(session.left_behind),
        }

    async def _keep(self, session: JournalledSession) -> None:
        """Have it said before a step: see :attr:`SessionServices.keep`."""
        driven = self._driven.get(session.id)
        if driven is None or driven.session is not session:
            raise LeaseLost(f"migration {session.id} was given to another")
        try:
            await self._report(driven)
        except LeaseLost:
            self._lose(driven)
            raise

    def _lose(self, driven: DrivenMigration) -> None:
        if not driven.lost:
            driven.lost = True
            self._log.warning("migration was taken back by the planner", migration=driven.session.id)
            driven.session.park()
        driven.changed = False
        if driven.released:
            self._forget(driven)

    def _forget(self, driven: DrivenMigration) -> None:
        self._driven.pop(driven.session.id, None)
        self._journal.rights.pop(driven.session.id, None)
