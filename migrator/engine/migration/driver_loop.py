"""Loop of one migration: looks at both ends, asks the lifecycle table, takes the one step it names, looks again."""

from __future__ import annotations

from dataclasses import replace

from migrator.core.migration import answer_review, disk_copies, invariants, lifecycle
from migrator.core.migration.lifecycle import Next, Step
from migrator.core.migration.situation import Milestone, SourceIs, source_is
from migrator.core.migration.stream_layout import StreamLayout
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS
from migrator.core.model import (
    RUNNING_STATES,
    ProcessState,
    Sample,
    State,
    View,
)
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.engine import clock
from migrator.engine.migration.block_job_wait import too_late
from migrator.engine.migration.contained_loop import ContainedLoop
from migrator.engine.migration.ending import explain, judge_stall, measure
from migrator.engine.migration.observer import interval
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.prepare import together
from migrator.errors import CommandFailed, Driven, QemuError
from migrator.ports import Tuning

#: As a guard parks a stream, where there is none: the limit is parked as it is all the way to the switch, and an idle
#: guest, which would get there even so, has its stream held back besides.
PARKED = Tuning(max_bandwidth_bytes_per_second=4096, downtime_limit_seconds=PARKED_LIMIT_SECONDS)
#: QEMU measures what a stream carries over a tenth of a second: for so long after it was let go on it may show what it
#: carried before; where QEMU gets little of a processor, longer, and then that is no more than this a second, in bytes.
_SETTLES_SECONDS, _SETTLES_AT_MOST_SECONDS = 0.2, 1.0
_PARKED_AT_MOST = 2 << 20
#: Jobs on the guest's disks are looked for so often while it copies, and where the switch is farther away than that and
#: none of them is ours; at the switch itself they are looked for in any case.
_DISK_USERS_SECONDS, _DISK_USERS_FAR_SECONDS = 0.1, 5.0


class MigrationLoop(ContainedLoop):
    """Drives a migration to its end, once it is begun or taken up."""

    _too_late_reason = "past the switch, the migration is being finished"

    async def _go_on(self) -> MigrationOutcome:
        self._observer.disks_follow = bool(self._mirrors.copies)
        while True:
            looked_at = clock.now()
            source, destination, overdue = await self._observer.look(self._intent_log.intent)
            self._note(source, destination)
            if not await self._guarding.note_end(source):
                await self._observer.pause(0.1)
                continue
            intent = self._intent_log.intent
            self._recovery.note(source, destination)
            if overdue and self._unplug_wait.waiting_for:
                self._observer.complain(f"QEMU waited in vain for {self._unplug_wait.waiting_for}")
            expired = self._observer.expired
            answer = lifecycle.decide(intent, source, destination, overdue=overdue, expired=expired)
            answer = invariants.guarded(answer, intent, source, destination)
            self._report(lifecycle.state_of(self._intent_log.intent, source, destination), source.sample)
            if answer.state is State.HELD and not self._confirmed(answer):
                await self._observer.pause(0.1)
                continue
            if answer.step is Step.END:
                unknown = ProcessState.UNKNOWN in (source.process, destination.process)
                self.unreachable = unknown and answer.state is State.HELD
                return await self._end(answer)
            if answer.step is Step.WAIT:
                if source_is(source) is SourceIs.COPIES and source.sample is not None:
                    if self._parked:
                        return self.result  # a look after it was parked found it copying: there it stays
                    await self._steer(source.sample, looked_at)
                    self._postcopy_steering.expect(self._steering.bandwidth_bytes_per_second)
                elif intent.postcopy:
                    await self._shaper.tend_postcopy(limit=self._postcopy_steering.limit)
                    self._postcopy_steering.expect(self._shared_path.bytes_per_second or 0.0)
                    handed_over = intent.milestone is Milestone.HANDED_OVER
                    await self._postcopy_steering.step(source, destination, handed_over=handed_over)
                self._intent_updates.slow_cancel(source, waits_for=self._unplug_wait.waiting_for)
                # What the guest writes to disks that are copied is to be seen soon, however far the switch is.
                far = 0.0 if self._mirrors.copies else self._steering.far_seconds
                near = self._steering.look_in_seconds
                self._guarding.note_distance(far)
                self._observer.far_seconds = far
                intent = self._intent_log.intent
                stretch = self._look_stretch()
                pause = interval(intent, source, far_seconds=far, near_seconds=near, stretch=stretch)
                await self._observer.pause(pause)
                continue
            if await self._steps.take(answer):
                return await self._end(replace(answer, step=Step.END))

    def _note(self, source: View, destination: View) -> None:
        """Note what a look has shown."""
        self._last_source, self._last = source, (source, destination)
        self._unplug_wait.note(source)
        if self._intent_log.intent.milestone is Milestone.HANDED_OVER and destination.run in RUNNING_STATES:
            self.result.duration_seconds = self.result.duration_seconds or self._intent_log.elapsed
            self._shared_path.end_turn()
        self._intent_updates.stop_interval()
        self._intent_updates.hand_over(source, destination)
        if source.answers:
            self._intent_updates.run_state(source.run)
        self._intent_updates.run_there(destination)
        self._heed_cancel()

    async def _steer(self, sample: Sample, looked_at: float) -> None:
        try:
            await self._guarding.begin()
            if (
                self.requests.park
                and self._intent_log.intent.undo is None
                and not self._intent_log.intent.postcopy
            ):
                await self._park()
                return
            if self._intent_log.intent.undo is None and (
                clock.now() - self._disk_users_at >= self._disk_users_seconds
            ):
                self._disk_users_at = clock.now()
                users = await self._source.disk_users()
                if why := self._disturbed(users):
                    self._intent_log.undo(State.FAILED, why)
                    return
                await self._disk_following.follow(users.ours, sample)
            sample = self._heed_path(sample)
            sample = await self._shaper.shape(sample, share=self._share, path=self._path_speed)
            await self._give_bandwidth()
            if self._disk_following.holds:
                return
            sample = self._disk_following.in_downtime(sample)
            asked = self.requests.postcopy and self._abilities.postcopy
            if asked and not self._intent_log.intent.postcopy:
                await self._steering.switch_to_postcopy(self.requests.postcopy_reason)
            if sample.gives_way or self._may_show_parked(sample, looked_at):
                return  # its bandwidth says nothing
            near = self._steering.look_in_seconds is not None and not self._group_hold.holds
            if near and not self._shared_path.take_turn():
                return  # another guest is being switched over the same path
            await self._steering.step(
                replace(sample, allowed_bytes_per_second=float(self._share or 0)), self._abilities
            )
        except Driven:
            raise
        except QemuError as error:
            self._log.warning("steering failed", error=str(error))
            self._observer.complain(str(error))

    async def _park(self) -> None:
        if not await self._guarding.leave():
            if self._in_channels:  # whose pages QEMU sends by the hundred, whatever the limit
                reason = "the controller stops, and a stream of channels cannot be parked: it begins anew"
                self._intent_log.undo(State.CANCELLED, reason, by_choice=True, postponed=True)
                return
            await self._source.tune(PARKED)
        self._intent_log.decide("park", "the controller stops: the stream waits for the next one")
        self._parked = True

    async def _give_bandwidth(self) -> None:
        """Give QEMU its share and its limit where they have changed; no limit is real while disks are behind.

        :raise QemuError: QEMU refused it; or did not answer, and then it is given again when this is called again.
        """
        holds = self._disk_following.holds
        # Whoever had it meanwhile, a controller before this one or a guard, may have had it parked.
        if self._guarding.acted_meanwhile():
            self._given_bandwidth = None
        unknown, bandwidth = self._given_bandwidth is None, self._bandwidth
        if self._given_bandwidth != bandwidth or self._held != holds:
            try:
                if holds:
                    await self._disk_following.hold(bandwidth)
                else:
                    await self._steering.resume(bandwidth)
            except CommandFailed:  # it would be refused again, and is steered as it is
                self._given_bandwidth, self._held = bandwidth, holds
                raise
            self._given_bandwidth, self._held = bandwidth, holds
        if unknown:
            self._let_go_at = clock.now()

    def _may_show_parked(self, sample: Sample, looked_at: float) -> bool:
        """Tell whether a sample may show what the stream carried while it was parked."""
        since = looked_at - self._let_go_at
        crawls = sample.bandwidth_bytes_per_second <= _PARKED_AT_MOST
        return since < (_SETTLES_AT_MOST_SECONDS if crawls else _SETTLES_SECONDS)

    @property
    def _disk_users_seconds(self) -> float:
        far = self._steering.far_seconds > _DISK_USERS_FAR_SECONDS and not self._mirrors.copies
        return _DISK_USERS_FAR_SECONDS if far else _DISK_USERS_SECONDS

    def _disturbed(self, users: DiskUsers) -> str:
        return too_late(users) if users else self._mirrors.broken(users.ours)

    @property
    def _in_channels(self) -> bool:
        return StreamLayout(channels=self.result.streams, compression=self.result.compression).multifd

    # --- the end ---------------------------------------------------------------------------------------------------

    async def _end(self, answer: Next) -> MigrationOutcome:
        result = self.result
        result.state = answer.state or State.HELD
        self._guarding.end()
        measure(result, self._intent_log, self._observer)
        judge_stall(result, self._intent_log)
        if result.duration_seconds is None or result.state is not State.COMPLETED:
            result.duration_seconds = self._intent_log.elapsed
        if result.state is State.COMPLETED:
            await self._security.end(self._destination)
            self._disk_following.tell_cost()
            self._progress.finish()
            self._steering.judge(result.duration_seconds)
            self._learn()
        else:
            result.error = explain(answer, self._intent_log, self._observer, self._destination)
        if result.state is State.HELD:
            result.held_code = answer.row
            if self._last is not None:
                result.held_until = answer_review.awaited_actions(
                    self._intent_log.intent, *self._last, answer.row
                )
                for each in invariants.violations(self._intent_log.intent, *self._last):
                    self._intent_log.decide(invariants.VIOLATED, each.why, {"invariant": each.invariant})
            if self._intent_log.intent.said is not None:
                self._intent_log.note(said=None, said_off=False)  # it was said of what was there then
            self._intent_log.decide("held", answer.why)
        else:
            await self._release()
            await self._intent_log.end(disks=disk_copies.as_fields(self.new_copies))
        self._report(result.state)
        return result

    def _learn(self) -> None:
        left = self._observer.at_switch
        rested = self._intent_log.intent.stopped_by_us  # all of its memory was copied in its downtime
        overhead = self._steering.overhead(left) if left is not None and not rested else None
        if self._experience is not None and self._pair and overhead is not None:
            overhead = max(0.0, overhead - self._mirrors.end_seconds)  # of this one alone
            self._experience.learn(self._pair, overhead)
            self.result.pair, self.result.overhead_seconds = self._pair, overhead

    async def _release(self) -> None:
        await together(self._source.release(), self._destination.release())
