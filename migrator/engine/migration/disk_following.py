"""Has the disks of one migration follow what its guest writes, so that its switch has little of them left to send."""

from __future__ import annotations

from collections.abc import Sequence

from migrator.core.migration.convergence import GIVING_UP
from migrator.core.migration.convergence_state import ActionKind
from migrator.core.migration.disk_backlog import Backlog, DiskBacklog
from migrator.core.migration.disk_copies import Mirrors
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS
from migrator.core.model import Sample, State
from migrator.core.policy import LastResort, Policy
from migrator.core.preflight.non_migrated_state import BlockJob
from migrator.engine.migration.disk_mirrors import DiskMirrors
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.steering import Steering
from migrator.errors import Refused
from migrator.ports import Qemu, Tuning
from migrator.units import show_bytes, show_seconds

#: The action of the decision that memory waits for the disks.
DISKS_BEHIND = "disks-behind"
#: ... and of the one that says what they cost in downtime.
DISKS_ENDED = "disks-ended"


class DiskFollowing:
    """Judges at every look what is left of the disks of one migration, and holds its switch back while it is too much.

    Nothing is held back for a guest that stands still.
    """

    def __init__(
        self, source: Qemu, *, policy: Policy, mirrors: DiskMirrors, steering: Steering, intent_log: IntentLog
    ) -> None:
        self._source, self._mirrors, self._steering = source, mirrors, steering
        self._policy, self._intent_log = policy, intent_log
        self._backlog = DiskBacklog(ceiling_seconds=policy.max_downtime_seconds)
        self._last = Backlog()
        self._follows = self._told = False
        #: The source is held back from its switch.
        self.holds = False

    def govern(self, policy: Policy) -> None:
        """Take this policy from now on; before anything is copied."""
        self._policy = policy
        self._backlog = DiskBacklog(ceiling_seconds=policy.max_downtime_seconds)

    @property
    def memory_bytes_per_second(self) -> int | None:
        """Return what memory may have of the path, so that disks can follow; ``None``: whatever it gets."""
        return self._last.memory_bytes_per_second if self._runs else None

    @property
    def forecast(self) -> Forecast | None:
        """Return the forecast while the switch is held back; ``None`` while it is not."""
        if not self.holds:
            return None
        if self._last.diverges and self._policy.last_resort is LastResort.PAUSE:
            return Forecast(verdict=Verdict.CONVERGES_IF, rung=ActionKind.PAUSE)
        if self._last.diverges:
            return Forecast(verdict=Verdict.CANNOT)
        return Forecast(verdict=Verdict.UNKNOWN, waiting_for=f"its disks to follow: {self._left}")

    @property
    def _runs(self) -> bool:
        intent = self._intent_log.intent
        return intent.guest_runs and not intent.stopped_by_us

    @property
    def _left(self) -> str:
        return (
            f"{show_bytes(round(self._last.expected_bytes))} would be sent in {show_seconds(self._last.seconds)} while "
            "the guest stands still"
        )

    async def tend_copy(self, mirrors: Mirrors) -> None:
        """Take in how far the first copy is.

        :raise Refused: it will not end as the policy wants it.
        :raise QemuError: the source did not answer.
        """
        elapsed, limit = self._intent_log.elapsed, self._policy.max_duration_seconds
        # Until everything was copied once there is always much left.
        why = self._backlog.watch(mirrors, at_seconds=elapsed).diverges
        if not why and limit is not None and elapsed >= limit:
            why = f"{show_seconds(elapsed)} are over, the policy's max_duration, and its disks are not copied yet"
        if not why or not self._runs:
            return
        if self._policy.last_resort is not LastResort.PAUSE:
            raise Refused(f"{why}: {GIVING_UP}")
        await self._pause(why)

    async def follow(self, jobs: Sequence[BlockJob], sample: Sample) -> None:
        """Take in what the mirrors have left while memory is copied, and do what is due.

        :raise QemuError: the source refused something or did not answer.
        """
        if not self._mirrors.copies:
            return
        if not self._follows:  # what the first copy showed is over: holes are not sent, and much was left
            self._follows = True
            self._note_speed()
            self._backlog = DiskBacklog(ceiling_seconds=self._policy.max_downtime_seconds)
        self._last = self._backlog.watch(
            self._mirrors.judge(jobs),
            at_seconds=self._intent_log.elapsed,
            memory_bytes_per_second=sample.bandwidth_bytes_per_second,
        )
        self._note_speed()
        self.holds = self._runs and not self._last.fits
        if not self.holds:
            self._told = False
            return
        elapsed, limit = self._intent_log.elapsed, self._policy.max_duration_seconds
        why = self._last.diverges
        if not why and limit is not None and elapsed >= limit:
            over = f"{show_seconds(elapsed)} are over, the policy's max_duration"
            why = f"{over}, and its disks do not follow: {self._left}"
        if why and self._policy.last_resort is LastResort.PAUSE:
            await self._pause(why)
            self.holds = False
        elif why:
            self._intent_log.undo(State.FAILED, f"{why}: {GIVING_UP}", by_choice=True)
        elif not self._told:
            self._told = True
            self._intent_log.decide(
                DISKS_BEHIND,
                f"memory waits until the disks have followed what the guest writes: {self._left}",
            )

    def note_copied(self) -> float:
        """Note that the first copy is over; return what it was seen to be carried at, bytes per second; 0: nothing."""
        self._note_speed()
        return self._mirrors.carried_bytes_per_second

    def _note_speed(self) -> None:
        carried = max(self._mirrors.carried_bytes_per_second, self._backlog.carried_bytes_per_second)
        self._mirrors.carried_bytes_per_second = carried

    async def hold(self, bandwidth_bytes_per_second: int) -> None:
        """Have the source send so much of memory, and not come to its switch.

        :raise QemuError: the source refused it or did not answer.
        """
        await self._source.tune(
            Tuning(
                max_bandwidth_bytes_per_second=bandwidth_bytes_per_second,
                downtime_limit_seconds=PARKED_LIMIT_SECONDS,
            )
        )

    def in_downtime(self, sample: Sample) -> Sample:
        """Return the sample with what is left of the disks counted as part of the downtime."""
        if not self._mirrors.copies or not self._runs:
            return sample
        carried = self._steering.bandwidth_bytes_per_second or sample.bandwidth_bytes_per_second
        return self._last.in_downtime(sample, carried)

    def tell_cost(self) -> None:
        """Say how much of the downtime was the disks', once the guest has arrived."""
        if self._mirrors.copies and self._runs:
            took = self._mirrors.end_seconds
            self._intent_log.decide(
                DISKS_ENDED,
                f"{show_seconds(took)} of the downtime were the disks': what the guest had written last was sent, and "
                "their mirrors ended",
                {"disk_standstill_seconds": took},
            )

    async def _pause(self, why: str) -> None:
        await self._steering.stop_guest(
            f"{why}: stopping the guest until its disks and its memory have arrived"
        )
        self._steering.settle()
