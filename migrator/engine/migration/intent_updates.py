"""Notes what both ends show of the guest, so that whoever takes the migration up knows it too."""

from __future__ import annotations

import math

from migrator.core.migration.situation import Milestone, as_found, not_handed_over
from migrator.core.model import RUNNING_STATES, MigrationStatus, RunState, View
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.observer import Observer, wanted_to_run
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import QemuError
from migrator.ports import Qemu

#: A cancel that takes longer than this is worth a word.
_SLOW_CANCEL_SECONDS = 2.0


class IntentUpdates:
    """Notes what was seen of one guest, each time that a look shows something new."""

    def __init__(
        self, destination: Qemu, *, intent_log: IntentLog, observer: Observer, result: MigrationOutcome
    ) -> None:
        self._destination, self._intent_log, self._observer, self._result = (
            destination,
            intent_log,
            observer,
            result,
        )
        self._cancelling_since: float | None = None

    def stop_interval(self) -> None:
        """Note since when the guest stands still, or how long it did, for whoever takes this up."""
        interval, intent = self._observer.stop_interval, self._intent_log.intent
        stopped = interval.stopped
        if stopped is not None and intent.stopped_at is None:
            middle, around = (stopped.earliest + stopped.latest) / 2, (stopped.latest - stopped.earliest) / 2
            self._intent_log.keep(stopped_at=middle, stopped_give_or_take=around)
        elif stopped is None and intent.stopped_at is not None:
            self._intent_log.keep(
                stopped_at=None,
                stood_seconds=self._result.standstill_seconds,
                stood_give_or_take=self._result.standstill_uncertainty_seconds or 0.0,
            )

    def hand_over(self, source: View, destination: View) -> None:
        """Note that the guest was not handed over yet, where both ends show so."""
        if not_handed_over(self._intent_log.intent, source, destination):
            self._intent_log.note(milestone=Milestone.SWITCHING)

    def run_there(self, destination: View) -> None:
        """Note that the guest runs at the destination; or that somebody stopped it there, and it shall stay so."""
        intent = self._intent_log.intent
        if intent.milestone < Milestone.HANDED_OVER:
            return
        runs = destination.answers and destination.run in RUNNING_STATES
        if runs and not intent.ran_there:
            self._intent_log.note(ran_there=True)
        stopped = self._observer.stopped_there or as_found(intent, destination) != intent
        if stopped and intent.guest_runs:
            self._intent_log.note(guest_runs=False)
            self._intent_log.decide("run-state", "somebody stopped the guest at the destination: so it stays")

    async def ask_whether_it_ran(self) -> None:
        """Ask the destination whether the guest ran there: a controller may have died before it could note that."""
        intent = self._intent_log.intent
        if intent.milestone < Milestone.HANDED_OVER or intent.ran_there:
            return
        try:
            if await self._destination.was_run():
                self._intent_log.note(ran_there=True)
        except QemuError:
            pass  # it cannot be asked: neither can it be told to run

    def run_state(self, run: RunState) -> None:
        """Note whether somebody stopped or resumed the guest at the source: it shall be so at the destination."""
        wanted = wanted_to_run(run)
        if self._intent_log.intent.stopped_by_us and not wanted:
            return
        if run is RunState.PRELAUNCH and self._intent_log.intent.milestone >= Milestone.SWITCHING:
            return  # reset after it had sent everything: that says nothing of the guest at the destination
        if (
            wanted not in (None, self._intent_log.intent.guest_runs)
            and self._intent_log.intent.milestone < Milestone.HANDED_OVER
        ):
            self._intent_log.note(guest_runs=wanted)
            self._intent_log.decide(
                "run-state", f"somebody {'resumed' if wanted else 'stopped'} the guest ({run}): so it stays"
            )

    def slow_cancel(self, source: View, *, waits_for: str = "") -> None:
        """Say once why a cancel takes so long.

        :param waits_for: what QEMU waited for when it was cancelled; empty: nothing that is known.
        """
        if source.status is not MigrationStatus.CANCELLING or not source.answers:
            return
        if self._cancelling_since is None:
            self._cancelling_since = self._intent_log.elapsed
        elif self._intent_log.elapsed - self._cancelling_since > _SLOW_CANCEL_SECONDS:
            self._cancelling_since = math.inf
            why = "QEMU still tries to connect and ends only when that fails, in up to two minutes; the guest runs"
            if source.sample is not None and source.sample.transferred_bytes > 0:
                why = "QEMU was told to cancel, and has not come to the end of it yet; the guest runs"
            if waits_for:
                why = f"QEMU still waits for {waits_for}, for half a minute at the most"
            self._intent_log.decide("wait", why)
