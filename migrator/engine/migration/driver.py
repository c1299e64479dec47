"""Drives one migration: looks at both ends, asks the lifecycle table, takes the one step it names, looks again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from migrator.core.findings import errors_first
from migrator.core.migration import answer_review, disk_copies, held_switch, invariants, lifecycle
from migrator.core.migration.convergence_state import Abilities
from migrator.core.migration.disk_backlog import END_SECONDS
from migrator.core.migration.forecast import DEFAULT_OVERHEAD_SECONDS
from migrator.core.migration.lifecycle import Next, Step
from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer, SourceIs, source_is
from migrator.core.migration.stream_layout import StreamAbilities, StreamLayout, choose_layout
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS
from migrator.core.model import (
    RUNNING_STATES,
    Finding,
    MigrationStatus,
    Mode,
    ProcessState,
    RunState,
    Sample,
    State,
    View,
)
from migrator.core.policy import PostcopyMode
from migrator.core.preflight.compare import compare
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.engine import clock
from migrator.engine.migration.block_job_wait import too_late
from migrator.engine.migration.ceiling import against_ceiling
from migrator.engine.migration.driver_state import DriverState, plain
from migrator.engine.migration.ending import explain, judge_stall, measure
from migrator.engine.migration.observer import interval
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.prepare import prepare, together
from migrator.errors import Driven, Fault, MigratorError, QemuError, Refused, TimedOut
from migrator.faults import contained
from migrator.ports import MigrationSettings, Tuning

#: Two ends are not looked at in one instant, so what needs a person must show so many times in a row.
_LOOKS_TO_HOLD = 3
#: As a guard parks a stream, where there is none: the limit is parked as it is all the way to the switch, and an idle
#: guest, which would get there even so, has its stream held back besides.
PARKED = Tuning(max_bandwidth_bytes_per_second=4096, downtime_limit_seconds=PARKED_LIMIT_SECONDS)
#: Jobs on the guest's disks are looked for so often while it copies, and where the switch is farther away than that and
#: none of them is ours; at the switch itself they are looked for in any case.
_DISK_USERS_SECONDS, _DISK_USERS_FAR_SECONDS = 0.1, 5.0
#: Statuses of a destination that waits, and was sent nothing: 7.2 shows none, 10.0 a set-up.
_LISTENS = (MigrationStatus.NONE, MigrationStatus.SETUP)
#: While a guest waits for its group both ends are looked at so often.
_GROUP_LOOK_SECONDS = 0.5
#: After so many errors of our own in one migration its guest is left to a person.
_FAULTS_BORNE = 5


class MigrationDriver(DriverState):
    """Drives one guest from a source to a destination, once.

    Use :meth:`check`, then :meth:`run`; or :meth:`take_up` with the record another controller left.
    """

    # --- before anything is changed --------------------------------------------------------------------------------

    async def check(self) -> tuple[Finding, ...]:
        """Preflight: every finding, errors first. Changes nothing.

        :raise QemuError: when an end cannot be asked.
        """
        began = clock.now()
        facts, there, self._steps.settings, self._settings_there = await together(
            self._source.facts(),
            self._destination.facts(),
            self._source.settings(),
            self._destination.settings(),
        )
        self._mirrors.copies = disk_copies.disks_to_copy(facts, there, self._policy, new=self._new_images)
        copied = {copy.device for copy in self._mirrors.copies}
        findings = (
            *compare(facts, there, self._policy, copied=copied),
            *disk_copies.findings(facts, there, self._mirrors.copies),
        )
        self._facts = facts
        self._unplug_wait.expect(facts)
        self._pair = f"{facts.accelerator} {facts.version} to {there.version}"
        overhead = self._experience.overhead_seconds(self._pair) if self._experience is not None else None
        if self._mirrors.copies:
            overhead = END_SECONDS + (DEFAULT_OVERHEAD_SECONDS if overhead is None else overhead)
        self._steering.begin(overhead)
        self._abilities = Abilities(
            postcopy=self._policy.postcopy is not PostcopyMode.NEVER
            and "postcopy-ram" in facts.capabilities & there.capabilities,
            throttle=self._policy.max_throttle_ratio > 0 and "auto-converge" in facts.capabilities,
        )
        prior = None if self._policy.offline else self._prior
        self._layout = choose_layout(
            self._group_hold.one_channel(self._policy),
            StreamAbilities(
                capabilities=facts.capabilities & there.capabilities,
                versions=(facts.version, there.version),
                postcopy=self._abilities.postcopy,
                link_bytes_per_second=self._stream_speed,
                spare_cpus=self._spare_cpus,
                memory_bytes=facts.memory_bytes,
                encrypted=self._security.tls is not None,
                tunnelled=self._route.tunnelled,
                written_bytes_per_second=prior.bytes_per_second if prior is not None else None,
                working_set_bytes=prior.working_set_bytes if prior is not None else None,
            ),
        )
        self._intent_log.intent = replace(self._intent_log.intent, guest_runs=facts.run in RUNNING_STATES)
        self.result.preflight_seconds = clock.now() - began
        if facts.run in RUNNING_STATES:
            ceiling = await against_ceiling(self._policy, self._stream_speed, self._source, self._destination)
            findings = (*findings, *ceiling)
        return errors_first(findings)

    # --- the whole way ---------------------------------------------------------------------------------------------

    async def run(self, *, begun: Callable[[], Awaitable[None]] | None = None) -> MigrationOutcome:
        """Begin, and drive it to its end; :meth:`check` has found no error.

        :param begun: awaited once the record is on disk, before the first command: whoever keeps a journal notes there
            that the record was begun, so that one that is missing later is not taken for one that never was. Where it
            raises nothing was changed, and the record is put away.

        Cancelling the task that runs this leaves both QEMUs as they are at that instant, for :meth:`take_up`;
        whoever wants the migration cancelled calls :meth:`cancel`.

        :raise RecordError: the record could not be written; nothing was changed.
        :raise QemuError: an end is driven by another controller, or cannot be marked; nothing was changed.
        """
        facts, settings = self._facts, self._steps.settings
        if facts is None or settings is None:
            raise RuntimeError("check() comes before run()")
        if why := await self._why_not_now():
            self.result.state, self.result.error = why
            await self._release()
            self._report(self.result.state)
            return self.result
        await self._claim(facts, settings)
        try:
            await self._begin(self._what_was(facts, settings), begun)
        except BaseException:  # cancelled too: whoever comes next may claim both ends; raised again
            await self._release()
            raise
        self._report(State.PREPARING)
        try:
            with contained("the preparation"):
                await self._prepare(settings)
        except (QemuError, Refused, Fault) as error:
            self._intent_log.undo(State.FAILED, "it could not be prepared")
            self._observer.complain(str(error))
        except BaseException:  # cancelled: nobody drives its stream from here; raised again
            await self._shaper.close()
            raise
        return await self._drive()

    async def _begin(self, what_was: Mapping[str, Any], begun: Callable[[], Awaitable[None]] | None) -> None:
        await self._intent_log.begin(what_was)
        try:
            if begun is not None:
                await begun()
        except MigratorError as error:
            await self._intent_log.withdraw(str(error))
            raise

    async def _claim(self, facts: Facts, settings: MigrationSettings) -> None:
        was = {"runs": facts.run in RUNNING_STATES, "settings": plain(settings)}
        try:
            await together(
                self._source.claim(self.result.id, was=was), self._destination.claim(self.result.id)
            )
        except BaseException:  # cancelled too: whoever comes next may claim both ends; raised again
            await self._release()
            raise

    async def _release(self) -> None:
        await together(self._source.release(), self._destination.release())

    async def _why_not_now(self) -> tuple[State, str] | None:
        """Return how it ends where something came between :meth:`check` and :meth:`run`; nothing is changed yet."""
        try:
            busy = await self._source.disk_users()
        except QemuError as error:
            return State.FAILED, str(error)
        if plain_refused := self._security.refusal(self._policy):
            return State.FAILED, plain_refused
        return (State.FAILED, too_late(busy)) if busy else None

    async def take_up(
        self,
        facts: Mapping[str, Any],
        intent: Intent,
        *,
        began_ago_seconds: float = 0.0,
        anew: bool = False,
    ) -> MigrationOutcome:
        """Finish, undo or hold what another controller left, as its record says.

        :param facts: what that controller gave to :meth:`migrator.ports.Record.begin`.
        :param intent: the last it noted.
        :param began_ago_seconds: how long ago that was: times go on from there.
        :param anew: whoever asks begins it anew where nothing was sent yet: see :attr:`postponed`.
        """
        self._intent_log.began -= began_ago_seconds
        self._intent_log.intent = intent
        self._steps.settings = MigrationSettings(**facts["settings"])
        self._mirrors.copies = disk_copies.from_fields(facts.get("disks", ()))
        self._abilities = Abilities(**facts["abilities"])
        self._given_bandwidth = None
        self._shaper.take_up()
        self._security.take_up(encrypted=bool(facts.get("tls")))
        self._note_layout(StreamLayout(**facts.get("layout", {})))
        if intent.postcopy:
            self.result.mode = Mode.POSTCOPY  # its event may have gone to another controller
            self._steering.settle()
        self._observer.take_up(intent, self._intent_log.taken_up_from)
        await self._intent_updates.ask_whether_it_ran()
        if intent.said is not None:
            return await self._as_said(intent.said)
        at = intent.milestone.name.lower().replace("_", "-")
        self._intent_log.decide(
            "take-up", f"a migration of this pair was left unfinished at {at}: taking it up"
        )
        if anew and intent.undo is None and await self._never_sent(facts):
            reason = "nothing was sent before its controller went: it begins anew"
            self._intent_log.undo(State.CANCELLED, reason, by_choice=True, postponed=True)
        return await self._drive()

    async def _as_said(self, word: OperatorAnswer) -> MigrationOutcome:
        """A person said where the guest is, and that is on record: it is done, or held again."""
        says = "the guest is lost" if word is OperatorAnswer.LOST else f"the guest is at the {word}"
        if word is OperatorAnswer.SOURCE:
            self._intent_log.undo_reason = f"a person said: {says}"
        self._intent_log.decide("resolve", f"a person said: {says}")
        return await self._drive()

    async def _never_sent(self, facts: Mapping[str, Any]) -> bool:
        """Return whether ``migrate`` is known not to have been sent: by the record, or by both ends."""
        if self._intent_log.intent.milestone is Milestone.PREPARING:
            return True
        source, destination, _ = await self._observer.look(self._intent_log.intent)
        idle = source_is(source) in (SourceIs.RUNS, SourceIs.RESTS)
        listens = destination.run is RunState.INMIGRATE and destination.status in _LISTENS
        return idle and source.status == facts.get("status") and listens

    async def _prepare(self, settings: MigrationSettings) -> None:
        await self._steps.runtime_settings.before()
        memory = self._facts.memory_bytes if self._facts is not None else 0
        to_send = memory if self._to_send_bytes is None else min(memory, self._to_send_bytes)
        self._group_hold.begin(memory, to_send)
        self._given_bandwidth = self._bandwidth
        await self._security.begin(self._policy)
        for action, reason in self._layout.notes:
            self._intent_log.decide(action, reason)
        uri, self._abilities, layout = await prepare(
            self._source,
            self._destination,
            policy=self._policy,
            settings=settings,
            settings_there=self._settings_there or await self._destination.settings(),
            abilities=self._abilities,
            layout=self._layout.layout,
            delta_cache_bytes=self._layout.delta_cache_bytes,
            limit_seconds=self._steering.limit_seconds,
            bandwidth_bytes_per_second=self._given_bandwidth,
            listen=self._listen,
            return_path=self._return_path,
            tell=self._intent_log.decide,
        )
        if self._mirrors.copies:
            await self._copy_disks(uri)
        uri = await self._route.lead(uri)
        self._note_layout(layout)
        share = None if self._policy.postcopy is PostcopyMode.IMMEDIATE else self._share
        self._shaper.begin(uri, share=share, path=self._path_speed)
        if self._policy.postcopy is not PostcopyMode.IMMEDIATE:
            await self._guarding.begin()
        most = self._policy.max_bandwidth_bytes_per_second
        speed = min((each for each in (self._stream_speed, most) if each), default=None)
        quick = held_switch.quick_seconds(to_send, speed)
        if self._policy.offline or self._policy.postcopy is PostcopyMode.IMMEDIATE or quick is not None:
            await self._await_group(quick or 0.0)
        if self._policy.offline and self._intent_log.intent.guest_runs:
            await self._steering.stop_guest(
                "the policy is offline: the guest stands still while its memory is copied"
            )
        if self.requests.unwanted():
            only_parked = not self.requests.cancel
            reason = "the controller stops: it begins anew" if only_parked else "cancelled before it began"
            self._intent_log.undo(State.CANCELLED, reason, by_choice=True, postponed=only_parked)
            return
        before = await self._source.observe()
        if before.answers:
            self._intent_updates.run_state(
                before.run
            )  # somebody may have stopped or resumed it since preflight
        # From here on it may switch, and nothing is waited for then.
        await self._intent_log.commit(milestone=Milestone.MIGRATING)
        if self._intent_log.intent.undo is None:
            try:
                await self._steering.begin_copying(uri, self._abilities)
            except TimedOut as error:
                self._observer.complain(str(error))  # it may have begun all the same: the next look tells

    async def _await_group(self, switch_in_seconds: float) -> None:
        """Wait for the others of its group before anything is copied: this guest is switched soon after that begins."""
        while (
            self._group_hold.holds and not self.requests.unwanted() and self._intent_log.intent.undo is None
        ):
            self._group_hold.note(switch_in_seconds)
            self._report(State.WAITING)
            await self._observer.pause(_GROUP_LOOK_SECONDS)
            source, destination, _ = await self._observer.look(self._intent_log.intent)
            self._note(source, destination)
            if ProcessState.DEAD in (source.process, destination.process):
                return  # which the steps to come find, and answer

    async def _copy_disks(self, uri: str) -> None:
        """Copy the disks that both ends do not share; memory follows once they are the same."""
        memory = self._facts.memory_bytes if self._facts is not None else 0
        self._progress.expect_disks(self._mirrors.total_bytes, memory)
        await self._mirrors.copy(
            uri,
            speed=lambda: self._share,
            unwanted=lambda: bool(self.requests.unwanted()) or self._intent_log.intent.undo is not None,
            tend=self._tend_mirrors,
        )

    @property
    def _in_channels(self) -> bool:
        return StreamLayout(channels=self.result.streams, compression=self.result.compression).multifd

    def _note_layout(self, layout: StreamLayout) -> None:
        self.result.streams, self.result.compression = layout.channels, layout.compression

    async def _drive(self) -> MigrationOutcome:
        try:
            return await self._drive_on()
        finally:
            await self._shaper.close()

    async def _drive_on(self) -> MigrationOutcome:
        faults = 0
        while True:
            try:
                with contained(f"migration {self.result.id}"):
                    return await self._go_on()
            except Driven as error:
                self._observer.complain(str(error))
                why = "another controller has taken it over: what it does with the guest is its own"
                return await self._end(
                    Next(step=Step.END, row="driven-elsewhere", why=why, outcome=State.HELD)
                )
            except Fault as fault:
                faults += 1
                self._observer.complain(str(fault))
                if faults == _FAULTS_BORNE:
                    return await self._end(
                        Next(step=Step.END, row="controller-failed", why=str(fault), outcome=State.HELD)
                    )
                # The guest first: before the switch it stays where it is, after it what is begun is finished.
                if self.can_cancel and self._intent_log.intent.undo is None:
                    self._intent_log.undo(State.FAILED, str(fault))
            await self._observer.pause(0.1 * faults)

    async def _go_on(self) -> MigrationOutcome:
        while True:
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
                    self._postcopy_steering.expect(self._steering.bandwidth_bytes_per_second)
                    if self._parked:
                        return self.result  # a look after it was parked found it copying: there it stays
                    await self._steer(source.sample)
                elif intent.postcopy:
                    await self._shaper.tend_postcopy(limit=self._postcopy_steering.limit)
                    self._postcopy_steering.expect(self._shared_path.bytes_per_second or 0.0)
                    await self._postcopy_steering.step(source, destination)
                self._intent_updates.slow_cancel(source)
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
        if self.requests.cancel and not self._too_late and self._intent_log.intent.undo is None:
            self._consider_cancel(source)

    async def _steer(self, sample: Sample) -> None:
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
            if sample.gives_way:
                return
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
        """Give QEMU its share and its limit where they have changed; no limit is real while disks are behind."""
        holds = self._disk_following.holds
        if (
            self._guarding.acted_meanwhile()
            or self._given_bandwidth != self._bandwidth
            or self._held != holds
        ):
            self._given_bandwidth, self._held = self._bandwidth, holds
            if holds:
                await self._disk_following.hold(self._given_bandwidth)
            else:
                await self._steering.resume(self._given_bandwidth)

    @property
    def _disk_users_seconds(self) -> float:
        far = self._steering.far_seconds > _DISK_USERS_FAR_SECONDS and not self._mirrors.copies
        return _DISK_USERS_FAR_SECONDS if far else _DISK_USERS_SECONDS

    def _disturbed(self, users: DiskUsers) -> str:
        return too_late(users) if users else self._mirrors.broken(users.ours)

    def _confirmed(self, answer: Next) -> bool:
        row, times = self._suspect
        self._suspect = (answer.row, times + 1 if row == answer.row else 1)
        return self._suspect[1] >= _LOOKS_TO_HOLD

    def _consider_cancel(self, source: View) -> None:
        if lifecycle.can_cancel(self._intent_log.intent, source):
            self._intent_log.undo(State.CANCELLED, "cancelled", by_choice=True)
        else:
            self._too_late = True
            self._intent_log.decide(
                "too-late", "too late to cancel: past the switch, the migration is being finished"
            )

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
