"""Begins one migration, or takes up what another controller left; then its loop drives it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from migrator.core.findings import errors_first
from migrator.core.migration import disk_copies, held_switch
from migrator.core.migration.convergence_state import Abilities
from migrator.core.migration.disk_backlog import END_SECONDS
from migrator.core.migration.forecast import DEFAULT_OVERHEAD_SECONDS
from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer, SourceIs, source_is
from migrator.core.migration.stream_layout import StreamAbilities, StreamLayout, choose_layout
from migrator.core.model import (
    RUNNING_STATES,
    Finding,
    MigrationStatus,
    Mode,
    ProcessState,
    RunState,
    State,
)
from migrator.core.policy import PostcopyMode
from migrator.core.preflight.compare import compare
from migrator.core.preflight.facts import Facts
from migrator.engine import clock
from migrator.engine.migration.block_job_wait import too_late
from migrator.engine.migration.ceiling import against_ceiling
from migrator.engine.migration.driver_loop import MigrationLoop
from migrator.engine.migration.driver_state import plain
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.prepare import prepare, together
from migrator.errors import Fault, MigratorError, QemuError, Refused, TimedOut
from migrator.faults import contained
from migrator.ports import MigrationSettings

#: Statuses of a destination that waits, and was sent nothing: 7.2 shows none, 10.0 a set-up.
_LISTENS = (MigrationStatus.NONE, MigrationStatus.SETUP)
#: While a guest waits for its group both ends are looked at so often.
_GROUP_LOOK_SECONDS = 0.5


class MigrationDriver(MigrationLoop):
    """Drives one guest from a source to a destination, once.

    Use :meth:`check`, then :meth:`run`; or :meth:`take_up` with the record another controller left.
    """

    # --- before anything is changed --------------------------------------------------------------------------------

    async def check(self) -> tuple[Finding, ...]:
        """Read and compare both ends; return every finding, errors first. Changes nothing.

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
                to_send_bytes=min(facts.memory_bytes, self._to_send_bytes or facts.memory_bytes),
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
        """Go on by what a person said of where the guest is, which is on record: it is done, or held again."""
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
        memory = self._facts.memory_bytes if self._facts is not None else 0
        to_send = memory if self._to_send_bytes is None else min(memory, self._to_send_bytes)
        self._group_hold.begin(memory, to_send)
        self._given_bandwidth = self._bandwidth
        # What is read and set of both ends for their guest has nothing to do with how it travels.
        _, (uri, layout) = await together(self._steps.runtime_settings.before(), self._set_up(settings))
        if self._mirrors.copies:
            await self._copy_disks()
        uri = await self._route.lead(uri)
        self._note_layout(layout)
        share = None if self._policy.postcopy is PostcopyMode.IMMEDIATE else self._share
        self._shaper.begin(
            uri,
            share=share,
            path=self._path_speed,
            carried_bytes_per_second=self._disk_following.note_copied(),
        )
        if self._policy.postcopy is not PostcopyMode.IMMEDIATE:
            await self._guarding.begin()
        most = self._policy.max_bandwidth_bytes_per_second
        speed = min((each for each in (self._stream_speed, most) if each), default=None)
        quick = held_switch.quick_seconds(to_send, speed)
        if self._policy.offline or self._policy.postcopy is PostcopyMode.IMMEDIATE or quick is not None:
            await self._await_group(quick or 0.0)
        if self._policy.offline and self._intent_log.intent.guest_runs and not self.requests.unwanted():
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

    async def _set_up(self, settings: MigrationSettings) -> tuple[str, StreamLayout]:
        """Set both ends up for the stream, and have its disks begin to be copied; where to migrate to, and how."""
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
            bandwidth_bytes_per_second=self._given_bandwidth or self._bandwidth,
            listen=self._listen,
            return_path=self._return_path,
            mapped=self._mapped,
            tell=self._intent_log.decide,
        )
        await self._mirrors.begin(uri, speed=lambda: self._share)
        return uri, layout

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

    async def _copy_disks(self) -> None:
        """Copy the disks that both ends do not share; memory follows once they are the same."""
        memory = self._facts.memory_bytes if self._facts is not None else 0
        self._progress.expect_disks(self._mirrors.total_bytes, memory)
        await self._mirrors.copy(
            speed=lambda: self._share,
            unwanted=lambda: bool(self.requests.unwanted()) or self._intent_log.intent.undo is not None,
            tend=self._tend_mirrors,
            pause=self._observer.pause_anew,
        )

    def _note_layout(self, layout: StreamLayout) -> None:
        self.result.streams, self.result.compression = layout.channels, layout.compression
