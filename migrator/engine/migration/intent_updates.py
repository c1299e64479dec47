"""What both ends show of the guest is noted, so that whoever takes the migration up knows it too."""

from __future__ import annotations

import math

from migrator.core.migration.situation import Milestone, as_found
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
        self, destination: Qemu, *, ledger: IntentLog, observer: Observer, result: MigrationOutcome
    ) -> None:
        self._destination, self._ledger, self._observer, self._result = destination, ledger, observer, result
        self._cancelling_since: float | None = None

    def standstill(self) -> None:
        """Whoever takes this up shall know since when the guest stands still, or how long it did."""
        standstill, intent = self._observer.standstill, self._ledger.intent
        stopped = standstill.stopped
        if stopped is not None and intent.stopped_at is None:
            middle, around = (stopped.earliest + stopped.latest) / 2, (stopped.latest - stopped.earliest) / 2
            self._ledger.keep(stopped_at=middle, stopped_give_or_take=around)
        elif stopped is None and intent.stopped_at is not None:
            self._ledger.keep(
                stopped_at=None,
                stood_seconds=self._result.standstill_seconds,
                stood_give_or_take=self._result.standstill_uncertainty_seconds or 0.0,
            )

    def run_there(self, destination: View) -> None:
        """That the guest runs at the destination; or that somebody stopped it there, and it shall stay so."""
        intent = self._ledger.intent
        if intent.milestone < Milestone.HANDED_OVER:
            return
        runs = destination.answers and destination.run in RUNNING_STATES
        if runs and not intent.ran_there:
            self._ledger.note(ran_there=True)
        stopped = self._observer.stopped_there or as_found(intent, destination) != intent
        if stopped and intent.guest_runs:
            self._ledger.note(guest_runs=False)
            self._ledger.decide("run-state", "somebody stopped the guest at the destination: so it stays")

    async def ask_whether_it_ran(self) -> None:
        """Its controller may have died between the hand-over and noting that the guest runs."""
        intent = self._ledger.intent
        if intent.milestone < Milestone.HANDED_OVER or intent.ran_there:
            return
        try:
            if await self._destination.was_run():
                self._ledger.note(ran_there=True)
        except QemuError:
            pass  # it cannot be asked: neither can it be told to run

    def run_state(self, run: RunState) -> None:
        """Whether somebody stopped or resumed the guest at the source: it shall be so at the destination."""
        wanted = wanted_to_run(run)
        if self._ledger.intent.stopped_by_us and not wanted:
            return
        if run is RunState.PRELAUNCH and self._ledger.intent.milestone >= Milestone.SWITCHING:
            return  # reset after it had sent everything: that says nothing of the guest at the destination
        if (
            wanted not in (None, self._ledger.intent.guest_runs)
            and self._ledger.intent.milestone < Milestone.HANDED_OVER
        ):
            self._ledger.note(guest_runs=wanted)
            self._ledger.decide(
                "run-state", f"somebody {'resumed' if wanted else 'stopped'} the guest ({run}): so it stays"
            )

    def slow_cancel(self, source: View) -> None:
        """Say once why a cancel takes so long."""
        if source.status is not MigrationStatus.CANCELLING or not source.answers:
            return
        if self._cancelling_since is None:
            self._cancelling_since = self._ledger.elapsed
        elif self._ledger.elapsed - self._cancelling_since > _SLOW_CANCEL_SECONDS:
            self._cancelling_since = math.inf
            self._ledger.decide(
                "wait",
                "QEMU still tries to connect and ends only when that fails, in up to two minutes; the guest runs",
            )
