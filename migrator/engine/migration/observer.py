"""Looks at both ends of a migration and keeps what can only be known by having watched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from migrator.awake import Absence
from migrator.core.migration.rules import past_postcopy_switch
from migrator.core.migration.situation import Intent, Milestone, SourceIs, source_is
from migrator.core.model import RUNNING_STATES, MigrationStatus, Mode, ProcessState, RunState, Sample, View
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.engine import clock
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.engine.migration.stop_interval import StopInterval, TimeBounds
from migrator.errors import QemuError
from migrator.ports import Qemu, QemuEvent

#: So old a destination's view may be while the source copies, and where the switch is farther away than that: what
#: happens to its process is heard of.
_KEEP_VIEW_SECONDS, _KEEP_VIEW_FAR_SECONDS = 1.0, 5.0
#: While the source copies it is looked at so often; where the switch is far, once in this share of the time until then,
#: and so often at the least. What QEMU announces wakes us besides: the end of a pass, another status.
_COPIES_SECONDS, _FAR_RATIO, _FAR_MOST_SECONDS = 0.1, 0.05, 2.0
#: A look at the switch waits no longer than this for who uses the guest's disks.
_USERS_SECONDS = 1.0
#: Reasons of QEMU's event SHUTDOWN that are not the guest's, in words.
_BY_SOMEBODY = {
    "host-qmp-quit": "by a quit over its monitor",
    "host-signal": "by a signal",
    "host-ui": "by its window",
}


class Observer:
    """Looks at both ends of one migration together.

    :param result: gets downtime, bytes and rounds as they become known.
    """

    def __init__(
        self, source: Qemu, destination: Qemu, *, timeouts: PhaseTimeouts, result: MigrationOutcome
    ) -> None:
        self._source, self._destination = source, destination
        self._timeouts = timeouts
        self._result = result
        self.stop_interval = StopInterval(result)
        #: The guest was seen to stop at the source at least once.
        self.stopped = False
        self._heard_stop = False
        #: Until when another controller watched; ``None`` once we do.
        self._noted_at: float | None = None
        self._shown: tuple[object, ...] = ()
        self._changed_at = self._flowed_at = clock.now()
        self._flowed: tuple[int, int] | None = None
        #: Nothing has come through the stream of a postcopy for longer than its recovery is tried.
        self.expired = False
        #: Neither end has shown anything new for longer than a manager takes to notice that its peer is gone.
        self.lapsed = False
        #: The destination was fenced, by us or perhaps by a controller before: its end is no reason for anything.
        self.destination_fenced = False
        #: The guest ran at the destination, and then somebody stopped it there.
        self.stopped_there = False
        self._ran_there = False
        #: The last sample before the guest was stopped for the switch.
        self.at_switch: Sample | None = None
        self._there: tuple[View | None, float] = (None, 0.0)
        #: For so long the source will certainly copy, by whoever steers it.
        self.far_seconds = 0.0
        #: What QEMU said went wrong, either side, in order.
        self.complaints: list[str] = []
        #: Its switch is ours, and whoever uses its disks is to be known then; else a look costs the guest no more than
        #: it must while it stands still.
        self.switches = True
        #: Its disks are kept the same at the destination: a source that stops its guest waits for what is on its way
        #: there, and answers nobody meanwhile.
        self.disks_follow = False
        #: The guest has just stopped at the source, maybe at its switch.
        self._stops = False
        self._disk_users: DiskUsers | None = None
        #: How somebody had an end's QEMU end, by its role; empty where the guest ended by itself.
        self.ended_by: dict[str, str] = {}
        self._wake = asyncio.Event()
        source.on_change(self._wake.set)
        destination.on_change(self._there_changed)

    def _there_changed(self) -> None:
        self._there = (None, 0.0)
        self._wake.set()

    async def look(self, intent: Intent) -> tuple[View, View, bool]:
        """Return fresh views of source and destination, and whether this phase is overdue."""
        self._wake.clear()
        self._hear(intent)
        with Absence() as away:
            source, destination = await self._views()
        self._changed_at += away.seconds  # nobody is late because we were
        self._flowed_at += away.seconds
        self._hear(intent)
        self._bound(intent, source, destination)
        # Before the migration begins nothing of ours but a dismissal ends it; then a fence may have.
        untouched = not intent.dismissed and (
            intent.milestone < Milestone.MIGRATING
            or (not self.destination_fenced and intent.milestone < Milestone.HANDED_OVER)
        )
        if destination.process is ProcessState.DEAD and untouched:
            self.complain("the destination's process has ended")
        for view, side in ((source, "source"), (destination, "destination")):
            if view.error:
                self.complain(f"{side}: {view.error}")
        if source.sample is not None:
            result, sample = self._result, source.sample
            if source_is(source) is SourceIs.AT_SWITCH:
                self.at_switch = sample
            result.transferred_bytes = max(result.transferred_bytes, sample.transferred_bytes)
            result.rounds = max(result.rounds, sample.round)
            result.max_throttle_ratio = max(result.max_throttle_ratio, sample.throttle_ratio)
        if destination.postcopy_stall_seconds is not None and self._result.mode is Mode.POSTCOPY:
            self._result.postcopy_stall_seconds = destination.postcopy_stall_seconds
            self._result.postcopy_vcpu_stall_seconds = destination.postcopy_vcpu_stall_seconds
        overdue = self._overdue(intent, source, destination)
        for view, side in ((source, "source"), (destination, "destination")):
            if overdue and view.process is ProcessState.UNKNOWN and view.can_fence and not view.answers:
                self.complain(f"the {side}'s host does not answer")
        return source, destination, overdue

    def _hear(self, intent: Intent) -> None:
        """Take in what only events tell: when the guest stopped and went on, and that there was a postcopy."""
        for event in self._source.take_events():
            self._hear_end("source", event)
            if event.name == "MIGRATION" and event.data.get("status") == MigrationStatus.POSTCOPY_ACTIVE:
                self._result.mode = Mode.POSTCOPY
            if event.name == "MIGRATION" and event.data.get("status") == MigrationStatus.PRE_SWITCHOVER:
                self._stops = True
            if event.name == "STOP":
                self.stopped = self._heard_stop = self._stops = True
                self.stop_interval.stop(event, self._source)
            elif event.name == "RESUME" and intent.undo is not None:
                self.stop_interval.resume(event, self._source)
            elif event.name == "RESUME":
                self.stop_interval.forget()
        for event in self._destination.take_events():
            self._hear_end("destination", event)
            if event.name == "STOP":
                self.stopped_there = self._ran_there
            if event.name == "RESUME":
                self._ran_there, self.stopped_there = True, False
                self.stop_interval.resume(event, self._destination)

    def _hear_end(self, role: str, event: QemuEvent) -> None:
        if event.name == "SHUTDOWN" and (how := _BY_SOMEBODY.get(str(event.data.get("reason")))):
            self.ended_by[role] = how

    async def _views(self) -> tuple[View, View]:
        """Return fresh views; while the source copies, the destination's may be a second old, or more where it is far.

        A destination that takes in a stream may take a tenth of a second to answer, and what counts then is to notice
        at once that the source has reached the switch. Where the guest has just stopped, all that is to be known before
        it may be switched is asked at once: it stands still for each round trip.
        """
        now = clock.now()
        kept, at = self._there
        self._disk_users = None
        if self._stops and self.switches:
            self._stops, self._there = False, (None, 0.0)
            source, destination, users = await asyncio.gather(
                self._source.observe(), self._destination.observe(), self._users()
            )
            if source_is(source) is SourceIs.AT_SWITCH:
                self._disk_users = users
            return source, destination
        far = self.far_seconds > _KEEP_VIEW_FAR_SECONDS
        if kept is None or now - at > (_KEEP_VIEW_FAR_SECONDS if far else _KEEP_VIEW_SECONDS):
            source, destination = await asyncio.gather(self._source.observe(), self._destination.observe())
        else:
            source, destination = await self._source.observe(), kept
            if source_is(source) is not SourceIs.COPIES:
                destination = await self._destination.observe()
        copying = source_is(source) is SourceIs.COPIES and destination.answers
        if not copying or destination is not kept:
            self._there = (destination if copying else None, now)
        return source, destination

    async def _users(self) -> DiskUsers | None:
        try:
            async with asyncio.timeout(_USERS_SECONDS):
                return await self._source.disk_users()
        except (QemuError, TimeoutError):
            return None  # whoever needs to know asks again, and is told why

    async def disk_users(self) -> DiskUsers:
        """Return who uses the guest's disks now, at its switch; the last look may have asked already.

        :raise QemuError: the source cannot be asked.
        """
        asked, self._disk_users = self._disk_users, None
        return await self._source.disk_users() if asked is None else asked

    def complain(self, text: str) -> None:
        """Keep what went wrong, once, for whoever has to explain the end."""
        if text not in self.complaints:
            self.complaints.append(text)

    def note_progress(self) -> None:
        """Note that something was done that neither end shows: the phase is not overdue."""
        self._changed_at = clock.now()

    async def pause(self, seconds: float) -> None:
        """Wait until something happens at either end, or somebody calls :meth:`wake`, or `seconds` have passed."""
        with Absence() as away:
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass  # time to look again
        self._changed_at += away.seconds
        self._flowed_at += away.seconds

    async def pause_anew(self, seconds: float) -> None:
        """Do as :meth:`pause` does for what happens from now on, for whoever does not :meth:`look` in between."""
        self._wake.clear()
        await self.pause(seconds)

    def stopped_at(self, intent: Intent) -> TimeBounds | None:
        """Return when the guest was heard to stop, if it is not known to have gone on; asks nobody."""
        self._hear(intent)
        return self.stop_interval.stopped

    async def stand_aside(self, intent: Intent, seconds: float, *, over: Callable[[], bool]) -> None:
        """Ask neither end anything until the guest, which stands still, is heard to go on at one; at most for so long.

        :param over: tells whether there is nothing to wait for any more; asked whenever something happens.
        """
        until = clock.now() + seconds
        while (left := until - clock.now()) > 0:
            self._wake.clear()
            if self.stopped_at(intent) is None or over():
                return
            await self.pause(left)

    def wake(self) -> None:
        """End a :meth:`pause` now."""
        self._wake.set()

    def take_up(self, intent: Intent, noted_at: float | None) -> None:
        """Go on after a controller that watched until then: what it did not note is known between bounds only."""
        self._noted_at = noted_at
        self.destination_fenced = intent.undo is not None
        if intent.stopped_at is not None:
            around = intent.stopped_give_or_take
            self.stop_interval.stopped_at(TimeBounds(intent.stopped_at - around, intent.stopped_at + around))
            self._heard_stop = True
        if intent.stood_seconds is not None:
            self.stop_interval.took(intent.stood_seconds, intent.stood_give_or_take)
            self._heard_stop = True

    def _bound(self, intent: Intent, source: View, destination: View) -> None:
        """Set bounds to what happened while nobody watched, from the first look after it."""
        since, now = self._noted_at, clock.wall()
        if since is None:
            return
        runs_there = (
            intent.milestone >= Milestone.HANDED_OVER
            and destination.answers
            and destination.run in RUNNING_STATES
        )
        stopped_here = source.answers and source.run in (RunState.FINISH_MIGRATE, RunState.POSTMIGRATE)
        reached_it_alone = stopped_here and intent.milestone < Milestone.SWITCHING
        if intent.guest_runs and reached_it_alone and not self._heard_stop:
            # It ran when the last thing was noted.
            self.stop_interval.stopped_at(TimeBounds(since, now))
            self._heard_stop = True
        runs_here = source.answers and source.run in RUNNING_STATES
        if runs_there or (runs_here and source_is(source) is not SourceIs.COPIES):
            self.stop_interval.resumed_at(TimeBounds(since, now))
        if source.answers or runs_there:
            self._noted_at = None  # from here on we watch

    def _note_flow(self, intent: Intent, source: View, now: float) -> None:
        sample = source.sample
        flowed = (sample.transferred_bytes, sample.remaining_bytes) if sample is not None else self._flowed
        if not past_postcopy_switch(intent) or (
            flowed != self._flowed and source_is(source) is not SourceIs.BROKEN
        ):
            self._flowed, self._flowed_at = flowed, now
        self.expired = now - self._flowed_at > self._timeouts.recovery

    def _overdue(self, intent: Intent, source: View, destination: View) -> bool:
        sample = source.sample or Sample()
        shown = (
            *((view.process, view.answers, view.run, view.status) for view in (source, destination)),
            *(sample.transferred_bytes, sample.remaining_bytes, sample.postcopy_requests),
            intent,
        )
        now = clock.now()
        self._note_flow(intent, source, now)
        if shown != self._shown:
            self._shown, self._changed_at = shown, now
        self.lapsed = now - self._changed_at > self._timeouts.lapsing
        hangs = (
            destination.process is ProcessState.ALIVE and destination.can_fence and not destination.answers
        )
        waits = self.disks_follow and hangs and not source.answers
        return now - self._changed_at > self._timeouts.of(intent, source, waits_for_disks=waits)


def wanted_to_run(run: RunState) -> bool | None:
    """Return what somebody wants of the guest, as its run state tells; ``None`` where it is QEMU that stopped it."""
    if run in (RunState.FINISH_MIGRATE, RunState.POSTMIGRATE, RunState.INMIGRATE, RunState.OTHER):
        return None
    return run in RUNNING_STATES


def interval(
    intent: Intent,
    source: View,
    *,
    far_seconds: float = 0.0,
    near_seconds: float | None = None,
    stretch: float = 1.0,
) -> float:
    """Return the seconds after which to look again even if no event says so.

    :param far_seconds: while the source copies: for so long there is nothing to be done but by an event.
    :param near_seconds: while the source copies: as the switch is near there may be something to be done then.
    :param stretch: so many times as long as usual may be waited where the switch is far.
    """
    if intent.postcopy and intent.milestone is Milestone.SWITCHING:
        return (
            0.001  # no event tells that a postcopy destination is ready; the guest stands still until it is
        )
    copies = source_is(source) is SourceIs.COPIES
    if copies and near_seconds is not None:
        return min(_COPIES_SECONDS, near_seconds)
    if copies:
        return max(_COPIES_SECONDS, stretch * min(_FAR_MOST_SECONDS, _FAR_RATIO * far_seconds))
    if intent.milestone >= Milestone.HANDED_OVER:
        return 0.1
    return 0.02
