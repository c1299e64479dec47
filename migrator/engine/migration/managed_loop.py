"""Loop of one migration that the guest's manager carries out: looks at both ends, takes one step, looks again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from migrator.core.migration import managed_lifecycle
from migrator.core.migration.disk_copies import MirrorPhase, Mirrors, as_fields
from migrator.core.migration.managed_lifecycle import ManagerCall
from migrator.core.migration.managed_situation import (
    DestinationHas,
    SourceHas,
    destination_has,
    source_has,
    standing_copy,
)
from migrator.core.migration.rules import Next, Step
from migrator.core.migration.situation import Milestone
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS
from migrator.core.model import Mode, ProcessState, Sample, State, View
from migrator.core.policy import PostcopyMode
from migrator.engine import clock
from migrator.engine.migration.contained_loop import ContainedLoop
from migrator.engine.migration.ending import explain, measure
from migrator.engine.migration.managed_state import ManagedState
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.prepare import UNLIMITED_BYTES_PER_SECOND
from migrator.errors import CommandFailed, HostError, QemuError
from migrator.ports import Tuning

#: Seconds between looks: while it copies, and while the guest stands still.
_COPIES_SECONDS, _NEAR_SECONDS = 0.25, 0.05
#: Figures that are not told within so long are asked for in the end.
_FIGURES_SECONDS = 1.0
#: For so long nobody is asked anything once the guest stands still.
_ASIDE_SECONDS = 0.1
#: What needs a person must show several times in a row, so many seconds apart.
_HOLD_PAUSE_SECONDS = 0.5
#: The guest may have stopped for its switch.
_SWITCHES = (SourceHas.SWITCHES, SourceHas.STANDS, SourceHas.SERVES, SourceHas.BROKEN)
#: Seconds between two cancels, and two tries to mend a postcopy.
_AGAIN_SECONDS = 2.0
#: A decision: the manager's own figures of the downtime, beside ours.
_MANAGER_FIGURES = "manager-figures"


class ManagedLoop(ContainedLoop, ManagedState):
    """Drives a migration to its end, once it is begun or taken up."""

    _too_late_reason = "the guest is being handed over, or has been"

    async def _go_on(self) -> MigrationOutcome:
        while True:
            source, destination, overdue = await self._observer.look(self._intent_log.intent)
            if self._policy.offline:
                source = standing_copy(source)
            self._note(source, destination)
            self._recovery.note(source, destination)
            intent, call = self._intent_log.intent, self._call()
            answer = managed_lifecycle.decide(
                intent,
                source,
                destination,
                call,
                overdue=overdue,
                lapsed=self._observer.lapsed,
                expired=self._observer.expired,
            )
            here = source_has(source)
            self._tell(managed_lifecycle.state_of(intent, source, destination), source.sample)
            doubtful = answer.outcome is State.HELD or answer.step is Step.REVIVE or answer.row == "stays"
            if doubtful and not self._confirmed(answer):
                await self._observer.pause(_HOLD_PAUSE_SECONDS)
                continue
            if answer.row == "stays" and await self._begin_without_postcopy():
                continue
            if answer.step is Step.END:
                unknown = ProcessState.UNKNOWN in (source.process, destination.process)
                self.unreachable = unknown and answer.state is State.HELD
                return await self._end(answer)
            try:
                if await self._take(answer, here, source.sample):
                    return self.result  # parked
            except (QemuError, HostError) as error:
                self._log.warning("a step failed", step=str(answer.step), error=str(error))
                self._observer.complain(str(error))
            copies = source.sample is not None or self._managed.copied_disks is not None
            await self._observer.pause(self._pause_seconds(here, begun=copies))
            await self._stand_aside()
            await self._read_figures()

    async def _stand_aside(self) -> None:
        """Leave both ends alone for a moment once the guest stands still: a manager that is asked then has it stand
        for longer.
        """
        stopped = self._observer.stopped_at(self._intent_log.intent)
        if stopped is None or stopped is self._stood_aside or not self._call().runs:
            return
        self._stood_aside = stopped
        self._note_stop()
        await self._observer.stand_aside(
            self._intent_log.intent, _ASIDE_SECONDS, over=lambda: not self._call().runs
        )

    async def _read_figures(self) -> None:
        """Ask for what is told in the end, while the source's manager still ends its QEMU."""
        handed_over = self._intent_log.intent.milestone >= Milestone.HANDED_OVER
        if handed_over and not self._figures and self._call().runs and self.result.mode is Mode.PRECOPY:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIGURES_SECONDS):
                    self._figures = await self._managed.measured(self._destination)

    async def _begin_without_postcopy(self) -> bool:
        """Begin once more without postcopy, where its manager refused that before anything was sent; False: it did not.

        Whether it works there (userfaultfd, the memory's backend) shows only when it is asked for.
        """
        wanted = self._policy.postcopy is PostcopyMode.ALLOW and self._intent_log.intent.undo is None
        if self._was is None or not wanted or not self._abilities.postcopy or self.result.transferred_bytes:
            return False
        said = self._managed.managed_ended() or ""
        if "ostcopy" not in said:
            return False
        self._abilities = replace(self._abilities, postcopy=False)
        self._intent_log.decide("no-postcopy", said)
        await self._managed.begin_managed(self._destination, self._options(self._was))
        return True

    def _tell(self, state: State, sample: Sample | None) -> None:
        """Report the state; while only disks are copied, how far they are."""
        copied = self._managed.copied_disks
        if copied is not None:
            self.result.disk_bytes = max(self.result.disk_bytes, copied[0])
        if copied is None or sample is not None or state is not State.PRECOPY:
            self._report(state, sample)
            return
        if copied != self._copied:
            self._copied = copied
            self._observer.note_progress()
        done, total = copied
        self._report_mirrors(Mirrors(phase=MirrorPhase.COPYING, total_bytes=total, done_bytes=done))

    def _pause_seconds(self, here: SourceHas, *, begun: bool) -> float:
        """Return after how long to look again even if nothing is heard.

        :param begun: the stream has; before, nothing tells of the moment.
        """
        if here is not SourceHas.COPIES or not begun:
            return _NEAR_SECONDS
        near = self._steering.look_in_seconds
        return _COPIES_SECONDS if near is None else min(_COPIES_SECONDS, max(_NEAR_SECONDS, near))

    def _call(self) -> ManagerCall:
        if not self._managed.begun_here:
            return ManagerCall()
        said = self._managed.managed_ended()
        if said:
            self._observer.complain(said)
        return ManagerCall(
            runs=said is None,
            went_well=said == "",
            failed=bool(said),
            watched=self._managed.watched(self._destination),
            source_watched=self._managed.source_watched,
        )

    def _note(self, source: View, destination: View) -> None:
        self._last_source, self._last = source, (source, destination)
        there = destination_has(destination)
        here = source_has(source)
        if here in (SourceHas.SERVES, SourceHas.BROKEN) or there is DestinationHas.FETCHES:
            self.result.mode = Mode.POSTCOPY
        self._note_stop(switches=here in _SWITCHES)
        if (
            there in (DestinationHas.RUNS, DestinationHas.FETCHES)
            and Milestone.MIGRATING <= self._intent_log.intent.milestone < Milestone.HANDED_OVER
            and here not in (SourceHas.COPIES, SourceHas.RUNS)
        ):
            self._intent_log.note(milestone=Milestone.HANDED_OVER)
            self.result.duration_seconds = self.result.duration_seconds or self._intent_log.elapsed
            self._shared_path.end_turn()
        self._intent_updates.stop_interval()
        if source.answers:
            self._intent_updates.run_state(source.run)
        self._intent_updates.run_there(destination)
        if here is not SourceHas.SILENT:  # whoever is silent may yet show that there is time
            self._heed_cancel()

    def _note_stop(self, *, switches: bool = False) -> None:
        """Note that the guest may have stopped for its switch.

        :param switches: it is seen to.
        """
        intent = self._intent_log.intent
        heard = self._observer.stop_interval.stopped is not None and not intent.stopped_by_us
        if (switches or heard) and intent.milestone is Milestone.MIGRATING:
            self._intent_log.note(milestone=Milestone.SWITCHING)

    async def _take(self, answer: Next, here: SourceHas, sample: Sample | None) -> bool:
        """Take the step; True: it is left to the next controller."""
        match answer.step:
            case Step.WAIT if here is SourceHas.COPIES and sample is not None:
                return await self._steer(sample)
            case Step.CANCEL if self._is_due():
                self._intent_log.undo(State.FAILED, answer.why)
                await self._source.cancel()
            case Step.FENCE_SOURCE if self._is_due():
                self._intent_log.decide(answer.step, answer.why)
                await self._managed.forget_managed()
            case Step.HALT:
                await self._steering.stop_guest(answer.why)
            case Step.PAUSE_STREAM if self._is_due():
                await self._recovery.pause()
            case Step.RECOVER:
                await self._recovery.recover()
            case Step.REVIVE if self._is_due():
                self._intent_log.undo(self._intent_log.intent.undo or State.FAILED, answer.why)
                if self._intent_log.intent.guest_runs:
                    await self._source.cont()
        return False

    def _is_due(self) -> bool:
        """Return whether a step that was tried may be tried again."""
        if clock.now() - self._acted_at < _AGAIN_SECONDS:
            return False
        self._acted_at = clock.now()
        return True

    async def _steer(self, sample: Sample) -> bool:
        intent = self._intent_log.intent
        if self.requests.park and intent.undo is None and not intent.postcopy:
            return await self._park()
        if intent.undo is not None or intent.postcopy:
            return False
        sample = self._heed_path(sample)
        share = self._share
        if share != self._given_bandwidth or not self._tuned:
            tuning = Tuning(
                max_bandwidth_bytes_per_second=UNLIMITED_BYTES_PER_SECOND if share is None else share,
                downtime_limit_seconds=self._limit_seconds,
            )
            try:
                await self._source.tune(tuning)
            except CommandFailed:  # it would be refused again, and is steered as it is
                self._given_bandwidth, self._tuned = share, True
                raise
            self._given_bandwidth, self._tuned = share, True
        if self.requests.postcopy and self._abilities.postcopy:
            await self._steering.switch_to_postcopy(self.requests.postcopy_reason)
            return False
        if sample.gives_way:
            return False
        near = self._steering.look_in_seconds is not None and not self._group_hold.holds
        if near and not self._shared_path.take_turn():
            return False
        await self._steering.step(
            replace(sample, allowed_bytes_per_second=float(share or 0)), self._abilities
        )
        return False

    async def _park(self) -> bool:
        """Leave it to its managers where they can go on alone; else it is undone, to begin anew."""
        if self._managed.is_peer_to_peer(self._destination):
            await self._source.tune(Tuning(downtime_limit_seconds=PARKED_LIMIT_SECONDS))
            self._intent_log.decide("park", "the controller stops: libvirt goes on alone until the next one")
            return True
        reason = "the controller stops, and libvirt cannot go on without it: it begins anew"
        self._intent_log.undo(State.CANCELLED, reason, by_choice=True, postponed=True)
        return False

    # --- the end ---------------------------------------------------------------------------------------------------

    async def _end(self, answer: Next) -> MigrationOutcome:
        result, intent = self.result, self._intent_log.intent
        result.state = answer.state or State.HELD
        self._stayed = answer.row in ("stays", "stays-unseen")
        if result.state is State.COMPLETED:
            # Small ones are copied before the first look.
            disks = sum(each.allocated_bytes or each.size_bytes for each in self._mirrors.copies)
            result.disk_bytes = max(result.disk_bytes, disks)
            await self._settle()
        elif result.state in (State.FAILED, State.CANCELLED) and answer.row in ("stays", "stays-unseen"):
            await self._put_back()
        if result.state is State.FAILED and self._tls_name is not None and not result.transferred_bytes:
            self._observer.complain(
                "nothing was sent: it was to be encrypted with the certificates of libvirt's QEMUs "
                f"(migrate_tls_x509_cert_dir in qemu.conf), of which the target's has to be for {self._tls_name}"
            )
        measure(result, self._intent_log, self._observer)
        if result.duration_seconds is None or result.state is not State.COMPLETED:
            result.duration_seconds = self._intent_log.elapsed
        if result.state is State.COMPLETED:
            self._progress.finish()
            self._steering.judge(result.duration_seconds)
        else:
            result.error = explain(answer, self._intent_log, self._observer, self._destination)
        if result.state is State.HELD:
            result.held_code = answer.row
            result.held_until = managed_lifecycle.awaited(answer.row)
            if intent.said is not None:
                self._intent_log.note(said=None, said_off=False)
            self._intent_log.decide("held", answer.why)
        else:
            await self._intent_log.end(disks=as_fields(self.new_copies))
        self._report(result.state)
        return result

    async def _settle(self) -> None:
        """Have a guest that has arrived be there as it was."""
        if self._was is None:
            return
        try:
            await self._managed.settle_managed(self._destination, self._was)
        except (QemuError, HostError) as error:
            remedy = "virsh autostart GUEST there, and virsh undefine GUEST at its source"
            self.result.warn("autostart-lost", str(error), remedy)
        figures = self._figures or await self._managed.measured(self._destination)
        if figures:
            # One that is over before the first look has no sample of ours.
            sent = int(figures.get("transferred_bytes", 0))
            self.result.transferred_bytes = max(self.result.transferred_bytes, sent)
            ours = self.result.downtime_seconds
            said = ", ".join(f"{name} {value:g}" for name, value in figures.items())
            self._intent_log.decide(
                _MANAGER_FIGURES,
                f"libvirt's own figures: {said}",
                dict(figures) | ({"our_downtime_seconds": ours} if ours is not None else {}),
            )

    async def _put_back(self) -> None:
        """Have a guest that stays be as it was."""
        intent = self._intent_log.intent
        try:
            if intent.stopped_by_us and intent.guest_runs:
                await self._source.cont()
            if self._was is not None:
                await self._managed.put_back_managed(self._was)
        except (QemuError, HostError) as error:
            self.result.warn(
                "not-put-back", str(error), "look at the guest: virsh domstate, migrate-getmaxdowntime"
            )
