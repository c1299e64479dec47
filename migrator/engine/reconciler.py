"""Has a plan made at every change, carries it out, and has computed beside that what will come of it."""

from __future__ import annotations

import asyncio
import math

from migrator import logs
from migrator.api import trace_context
from migrator.core.drain.actions import (
    Admit,
    AllowSwitch,
    Begin,
    CancelMigration,
    Change,
    Drive,
    End,
    LookAgain,
    SaveGuest,
    SetShare,
    StartPostcopy,
)
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.forecast import (
    DrainForecast,
    forecast_from_portions,
    forecast_request_portions,
    with_forecast,
)
from migrator.core.drain.plan import DrainPlan, ManyPlaces, make_plan
from migrator.core.drain.snapshot import Name, SiteSnapshot
from migrator.core.model import State
from migrator.engine import clock
from migrator.engine.announcer import Announcer
from migrator.engine.evacuations import Evacuations
from migrator.engine.inventory import Inventory
from migrator.engine.migration.file_move import POLICY as FILE_POLICY
from migrator.engine.migration.file_move import FileMove, FileUse
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.registry import Registry
from migrator.engine.reservations import Reservations
from migrator.engine.sessions import Sessions
from migrator.engine.snapshots import Snapshots
from migrator.errors import JournalError, Unavailable
from migrator.faults import contained
from migrator.ports.computing import Computing

#: What changes together is seen together: after a turn no other is taken for so long, ...
_TOGETHER_SECONDS = 0.02
#: ... and for so many times as long as its plan took, up to a bound: where many are under way the loop is for those who
#: drive them. Nothing that a plan says is more urgent than that; a cancellation or a lost lease does not wait for it.
_REST_RATIO, _REST_MOST_SECONDS = 4.0, 0.5
#: While something is under way the forecast is made anew so often.
_FORECAST_SECONDS = 1.0
#: ... and so much more seldom where there are many, up to a bound: it takes the longer, and changes the less.
_FORECAST_SECONDS_A_GUEST, _FORECAST_MOST_SECONDS = 0.1, 60.0
#: ... and not sooner than after so many times as long as the last one took, whatever it is for.
_FORECAST_RATIO = 10.0
#: A plan is made on the event loop where so many migrations are under way at the most, and a place is looked for for so
#: many guests; else in a thread, which others on the loop hardly notice: migrator.service.serve.SWITCH_SECONDS.
_MIGRATIONS_AT_ONCE, _PLACES_AT_ONCE = 50, 100
#: What ended a while ago is forgotten so often.
_FORGET_SECONDS = 5.0


class Reconciler:
    """One plan at a time; see :meth:`turn`."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        registry: Registry,
        inventory: Inventory,
        reservations: Reservations,
        sessions: Sessions,
        evacuations: Evacuations,
        announcer: Announcer,
        computing: Computing,
    ) -> None:
        self._computing = computing
        self._snapshots, self._registry, self._inventory = snapshots, registry, inventory
        self._reservations, self._sessions, self._evacuations = reservations, sessions, evacuations
        self._announcer = announcer
        self._wake = asyncio.Event()
        self._plan: DrainPlan | None = None
        self._forecast_at = self._forgot_at = -math.inf
        self._forecast: asyncio.Task[None] | None = None
        #: The evacuations of the last forecast.
        self._forecast_runs: frozenset[str] = frozenset()
        self._forecast_took = 0.0
        #: Seconds that the last plan took.
        self._plan_took = 0.0
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._log = logs.logger()

    def wake(self) -> None:
        """Make a plan soon, as something has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Plan and act at every change, and from time to time, until cancelled."""
        try:
            while True:
                self._wake.clear()
                pause = await self.turn()
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass  # time alone changes forecasts and deadlines
                rest = min(_REST_MOST_SECONDS, _REST_RATIO * self._plan_took)
                await asyncio.sleep(max(_TOGETHER_SECONDS, rest))
        finally:
            for task in self._looking.values():
                task.cancel()
            if self._forecast is not None:
                self._forecast.cancel()

    async def turn(self) -> float:
        """Do what is due; seconds until the next turn at the latest."""
        self._forget()
        began = clock.now()
        await self._snapshots.prepare()
        snapshot = self._snapshots.take()
        self._plan = plan = await self._make_plan(snapshot)
        self._plan_took = clock.now() - began
        await self._carry_out(plan)
        if not snapshot.stopping:
            self._begin_forecast(snapshot, plan)
        return plan.next_seconds

    async def _make_plan(self, snapshot: SiteSnapshot) -> DrainPlan:
        if len(snapshot.migrations) <= _MIGRATIONS_AT_ONCE:
            try:
                return make_plan(snapshot, self._plan, places_at_once=_PLACES_AT_ONCE)
            except ManyPlaces:
                pass
        # Nothing that it is made of changes; what its actions are about is looked at again before they are taken.
        return await asyncio.to_thread(make_plan, snapshot, self._plan)

    def _forget(self) -> None:
        if clock.now() - self._forgot_at >= _FORGET_SECONDS:
            self._forgot_at = clock.now()
            self._announcer.forget(*self._registry.forget())

    # --- carrying out ------------------------------------------------------------------------------------------------

    async def _carry_out(self, plan: DrainPlan) -> None:
        for action in plan.actions:
            match action:
                case Change():
                    self._change(action)
                case End():
                    self._end(action, plan.tended[action.evacuation].after)
                case LookAgain(host=host, awaited=True):
                    self._look(host)
                case LookAgain(host=host):
                    self._inventory.schedule.look_soon(host)
                case SaveGuest():
                    if not await self._save(action):
                        break
                case Begin():
                    if not await self._begin(action):
                        break
                case Drive() | Admit() | SetShare() | StartPostcopy() | AllowSwitch() | CancelMigration():
                    session = self._registry.migrations.get(action.migration)
                    if session is not None:
                        self._tell(session, action)

    def _change(self, action: Change) -> None:
        if self._registry.evacuations.get(action.before.id) is not action.before:
            self.wake()  # a command came between
            return
        self._registry.evacuations[action.before.id] = action.after
        if action.announce:
            self._announcer.evacuation(action.after.id)

    def _end(self, action: End, seen: Evacuation) -> None:
        if self._registry.evacuations.get(action.evacuation) is not seen:
            self.wake()  # a command came between: it may not be over
            return
        self._evacuations.end(action.evacuation, action.state)

    def _tell(
        self,
        session: JournalledSession,
        action: Drive | Admit | SetShare | StartPostcopy | AllowSwitch | CancelMigration,
    ) -> None:
        match action:
            case Drive():
                self._sessions.drive(session)
            case Admit():
                session.admit()
            case SetShare():
                session.set_share(action.bytes_per_second)
            case StartPostcopy():
                session.postcopy(action.reason)
            case AllowSwitch():
                session.allow_switch(action.reason)
            case CancelMigration():
                if action.reason and not session.cancelled:
                    session.tell_group(action.reason)
                self._sessions.cancel(session)

    async def _begin(self, action: Begin) -> bool:
        """Journal a migration and begin to drive it; False: the journal cannot be written."""
        run = self._registry.evacuations.get(action.evacuation)
        if run is None or not self._may_begin(action):
            return True  # a command came between; the next turn sees what it did
        session = self._sessions.make(
            action.guest,
            action.target,
            action.policy,
            accept=run.accept,
            run=run.id,
            by=run.requested_by,
            trace=trace_context.of(run.traceparent, run.tracestate),
            moved_with=action.moved_with,
        )
        return await self._journal_and_drive(session, action.reason)

    async def _save(self, action: SaveGuest) -> bool:
        """Journal that a guest is saved, and begin that; False: the journal cannot be written."""
        key, registry = action.guest.key, self._registry
        run = registry.evacuations.get(action.evacuation)
        if run is None or run.ended or run.closing is not None or not registry.may_begin:
            return True
        entry = run.entries.get(key)
        taken = self._reservations.taken(("evacuation", run.id), ("guest", key))
        if taken or entry is None or entry.done or entry.saving or registry.of_guest(key) is not None:
            return True
        session = self._sessions.make(
            action.guest,
            run.host,
            FILE_POLICY,
            accept=run.accept,
            run=run.id,
            by=run.requested_by,
            trace=trace_context.of(run.traceparent, run.tracestate),
            file=FileMove(use=FileUse.SAVE, path=action.path, as_stream=True),
        )
        return await self._journal_and_drive(session, action.reason)

    async def _journal_and_drive(self, session: JournalledSession, reason: str) -> bool:
        names: list[Name] = [("evacuation", session.evacuation or ""), ("guest", session.guest.key)]
        try:
            async with self._reservations.hold(*names):
                await self._sessions.journal(session, reason=reason)
        except JournalError as error:
            self._log.warning("not begun", guest=session.guest.key, error=str(error))
            return False
        self._sessions.drive(session)
        return True

    def _may_begin(self, action: Begin) -> bool:
        key, registry = action.guest.key, self._registry
        run = registry.evacuations[action.evacuation]
        if not registry.may_begin or run.ended or run.closing is not None or key not in run.entries:
            return False
        if self._reservations.taken(("evacuation", run.id), ("guest", key), ("host", action.target)):
            return False
        target = self._inventory.host(action.target)
        if target is None or target.cordoned:
            return False
        return run.entries[key].wants_place and registry.of_guest(key) is None

    def _look(self, host: str) -> None:
        """Look at a host while others go on; then there is news."""
        if host in self._looking:
            return

        async def look() -> None:
            await self._inventory.refresh(host)
            self.wake()

        task = self._looking[host] = asyncio.create_task(look(), name=f"look again at host {host}")
        task.add_done_callback(lambda _: self._looking.pop(host, None))

    # --- what will come of it ----------------------------------------------------------------------------------------

    def _begin_forecast(self, snapshot: SiteSnapshot, plan: DrainPlan) -> None:
        """Begin a forecast where it is time for one; plans go on meanwhile."""
        if self._forecast is not None or not (snapshot.evacuations or snapshot.migrations):
            return
        count = len(plan.wanting) + len(snapshot.live)
        runs = frozenset(run.id for run in snapshot.evacuations)
        pause = max(_FORECAST_SECONDS, _FORECAST_RATIO * self._forecast_took)
        if runs <= self._forecast_runs:  # of one that has just begun something is said soon
            pause = max(pause, min(_FORECAST_MOST_SECONDS, _FORECAST_SECONDS_A_GUEST * count))
        if clock.now() - self._forecast_at < pause:
            return
        self._forecast_at, self._forecast_runs = clock.now(), runs
        self._forecast = asyncio.create_task(self._make_forecast(snapshot, plan), name="forecast")
        self._forecast.add_done_callback(self._forecast_made)

    def _forecast_made(self, task: asyncio.Task[None]) -> None:
        self._forecast = None
        self._forecast_took = clock.now() - self._forecast_at
        if not task.cancelled():
            task.exception()  # it is in the log

    async def _make_forecast(self, snapshot: SiteSnapshot, plan: DrainPlan) -> None:
        with contained("the forecast"):
            try:
                portions = forecast_request_portions(snapshot, plan)
                outlook = await self._computing.compute(forecast_from_portions, portions)
            except Unavailable as error:
                self._log.info("no forecast", error=str(error))
                return
            waiting = {each.guest.key for each in snapshot.live.values() if each.state is State.WAITING}
            for name in [run.id for run in self._registry.running()]:
                self._tell_forecast(name, outlook, waiting, snapshot)
                await asyncio.sleep(0)

    def _tell_forecast(
        self, identifier: str, outlook: DrainForecast, waiting: set[str], snapshot: SiteSnapshot
    ) -> None:
        run = self._registry.evacuations.get(identifier)
        if run is None or run.ended:
            return
        look = self._inventory.look_seconds(run.host)
        after = with_forecast(run, outlook, waiting=waiting, now=snapshot.now, look_seconds=look)
        self._registry.evacuations[identifier] = after
        if after.at_risk != run.at_risk:
            self._announcer.evacuation(identifier)
