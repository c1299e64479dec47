"""Has a plan made at every change, carries it out, and has it foretold what will come of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from migrator import logs
from migrator.api import trace_context
from migrator.core.drain.actions import (
    Action,
    Admit,
    Begin,
    CancelMigration,
    Change,
    Drive,
    End,
    LookAgain,
    SetShare,
)
from migrator.core.drain.forecast import foretell, question, told
from migrator.core.drain.plan import DrainPlan, make_plan
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.model import State
from migrator.engine import clock
from migrator.engine.announcer import Announcer
from migrator.engine.evacuations import Evacuations
from migrator.engine.inventory import Inventory
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.registry import Registry
from migrator.engine.reservations import Reservations
from migrator.engine.sessions import Sessions
from migrator.engine.snapshots import Snapshots
from migrator.errors import JournalError

#: What changes together is seen together.
_TOGETHER_SECONDS = 0.02
#: While something is under way the forecast is made anew so often.
_FORECAST_SECONDS = 1.0
#: ... and so much more seldom where there are many, up to a bound: it takes the longer, and changes the less.
_FORECAST_SECONDS_A_GUEST, _FORECAST_MOST_SECONDS = 0.1, 30.0
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
    ) -> None:
        self._snapshots, self._registry, self._inventory = snapshots, registry, inventory
        self._reservations, self._sessions, self._evacuations = reservations, sessions, evacuations
        self._announcer = announcer
        self._wake = asyncio.Event()
        self._plan: DrainPlan | None = None
        self._forecast_at = self._forgot_at = -math.inf
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._log = logs.logger()

    def wake(self) -> None:
        """Something changed."""
        self._wake.set()

    async def run(self) -> None:
        """A turn at every change, and from time to time, until cancelled."""
        try:
            while True:
                self._wake.clear()
                pause = await self.turn()
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass  # time alone changes forecasts and deadlines
                await asyncio.sleep(_TOGETHER_SECONDS)
        finally:
            for task in self._looking.values():
                task.cancel()

    async def turn(self) -> float:
        """Do what is due; seconds until the next turn at the latest."""
        self._forget()
        snapshot = self._snapshots.take()
        plan = self._plan = make_plan(snapshot, self._plan)
        await self._carry_out(plan.actions)
        if not snapshot.stopping:
            await self._foretell(snapshot, plan)
        return plan.next_seconds

    def _forget(self) -> None:
        if clock.now() - self._forgot_at >= _FORGET_SECONDS:
            self._forgot_at = clock.now()
            self._announcer.forget(*self._registry.forget())

    # --- carrying out ------------------------------------------------------------------------------------------------

    async def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Change():
                    self._change(action)
                case End():
                    self._evacuations.end(action.evacuation, action.state)
                case LookAgain(host=host, awaited=True):
                    self._look(host)
                case LookAgain(host=host):
                    self._inventory.look_soon(host)
                case Begin():
                    if not await self._begin(action):
                        break
                case Drive() | Admit() | SetShare() | CancelMigration():
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

    def _tell(self, session: JournalledSession, action: Drive | Admit | SetShare | CancelMigration) -> None:
        match action:
            case Drive():
                self._sessions.drive(session)
            case Admit():
                session.admit()
            case SetShare():
                session.set_share(action.bytes_per_second)
            case CancelMigration():
                self._sessions.cancel(session)

    async def _begin(self, action: Begin) -> bool:
        """False: the journal cannot be written."""
        key = action.guest.key
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
        )
        try:
            async with self._reservations.hold(("evacuation", run.id), ("guest", key)):
                await self._sessions.journal(session, reason=action.reason)
        except JournalError as error:
            self._log.warning("not begun", guest=key, error=str(error))
            return False
        self._sessions.drive(session)
        return True

    def _may_begin(self, action: Begin) -> bool:
        key, registry = action.guest.key, self._registry
        run = registry.evacuations[action.evacuation]
        if registry.stopping or run.ended or run.closing is not None or key not in run.entries:
            return False
        if self._reservations.taken(("evacuation", run.id), ("guest", key), ("host", action.target)):
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

    async def _foretell(self, snapshot: SiteSnapshot, plan: DrainPlan) -> None:
        if not snapshot.evacuations and not snapshot.migrations:
            return
        count = len(plan.wanting) + len(snapshot.live)
        pause = min(_FORECAST_MOST_SECONDS, max(_FORECAST_SECONDS, _FORECAST_SECONDS_A_GUEST * count))
        if clock.now() - self._forecast_at < pause:
            return
        self._forecast_at = clock.now()
        outlook = await asyncio.to_thread(foretell, question(snapshot, plan))
        waiting = {each.guest.key for each in snapshot.live.values() if each.state is State.WAITING}
        now = snapshot.now
        for run in list(self._registry.running()):
            look = self._inventory.look_seconds(run.host)
            after = told(run, outlook, waiting=waiting, now=now, look_seconds=look)
            self._registry.evacuations[run.id] = after
            if after.at_risk != run.at_risk:
                self._announcer.evacuation(run.id)
