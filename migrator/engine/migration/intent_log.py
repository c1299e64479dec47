"""Keeps the intent of a migration, on record before each step, and its decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import Decision, State
from migrator.engine import clock
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import RecordError
from migrator.ports import Record

#: Of the result, what the record keeps when it is put away: whoever comes next may not know how it ended.
OUTCOME = (
    "state",
    "error",
    "mode",
    "duration_seconds",
    "downtime_seconds",
    "downtime_uncertainty_seconds",
    "standstill_seconds",
    "standstill_uncertainty_seconds",
    "transferred_bytes",
    "disk_bytes",
    "queued_at_stop_bytes",
    "postcopy_stall_seconds",
    "postcopy_vcpu_stall_seconds",
    "postcopy_stall_forecast_seconds",
    "rounds",
    "max_throttle_ratio",
)


class IntentLog:
    """Keeps intent and decisions of one migration.

    :param result: gets the decisions, and findings where the record cannot be written.
    :param on_decision: called with every decision; must return at once.
    """

    def __init__(
        self, record: Record, *, result: MigrationOutcome, on_decision: Callable[[Decision], None]
    ) -> None:
        self._record = record
        self._result = result
        self._on_decision = on_decision
        self.intent = Intent()
        #: Why it is being undone; empty while it is not.
        self.undo_reason = ""
        #: It is being undone because somebody or the policy wanted so, not because something went wrong.
        self.undone_by_choice = False
        self.began = clock.now()

    @property
    def taken_up_from(self) -> float | None:
        """Return until when another controller is known to have watched, in seconds since the epoch."""
        return self._record.noted_at

    @property
    def elapsed(self) -> float:
        """Return the seconds since the first command that changed anything."""
        return clock.now() - self.began

    async def begin(self, facts: Mapping[str, Any]) -> None:
        """Write how things were; the first command may follow.

        :raise RecordError: it could not be written; nothing may be changed then.
        """
        await self._record.begin(facts, self.intent)
        self.began = clock.now()

    async def withdraw(self, error: str) -> None:
        """Put the record away: nothing was done after :meth:`begin`, and nothing will be."""
        try:
            await self._record.end({"state": State.FAILED, "error": error, "postponed": False})
        except RecordError as left:
            self._result.warn("record-left-over", str(left), "delete that file")

    def keep(self, **changes: Any) -> None:
        """Change the intent; it is on record with what is noted next. For what is only worth knowing."""
        self.intent = replace(self.intent, **changes)

    def note(self, **changes: Any) -> None:
        """Change the intent and note it before anything is done about it, without waiting: the guest may stand still.

        Where it cannot be written the migration is undone if it may be, and else brought to its end without: a guest
        that stands still is not left so for the sake of a file.
        """
        before, self.intent = self.intent.milestone, replace(self.intent, **changes)
        try:
            self._record.note_behind(self.intent)
        except RecordError as error:
            self._not_noted(before, error)

    async def commit(self, **changes: Any) -> None:
        """Note like :meth:`note`, and keep it before this returns, so that whoever takes over knows of it.

        For what is done while the guest runs.
        """
        before, self.intent = self.intent.milestone, replace(self.intent, **changes)
        try:
            await self._record.note(self.intent)
        except RecordError as error:
            self._not_noted(before, error)

    def _not_noted(self, before: Milestone, error: RecordError) -> None:
        self._result.warn("record-lost", str(error), "make room there; do not kill migrator meanwhile")
        if self.intent.milestone <= Milestone.SWITCHING and before < Milestone.SWITCHING:
            self.undo_reason = self.undo_reason or str(error)
            undo = self.intent.undo or State.FAILED
            self.intent = replace(self.intent, milestone=before, undo=undo)

    def undo(
        self,
        state: State,
        reason: str,
        numbers: Mapping[str, Any] | None = None,
        *,
        by_choice: bool = False,
        postponed: bool = False,
        first: bool = True,
    ) -> None:
        """Have the guest stay at the source from here on; the first reason counts.

        :param postponed: for now only: nothing was sent, and it will begin anew.
        :param first: False: in place of a reason that has turned out to be none.
        """
        if self.intent.undo is None or not first:
            self.undo_reason, self.undone_by_choice = reason, by_choice
            self.note(undo=state, postponed=postponed)
            self.decide("cancel" if state is State.CANCELLED else "undo", reason, numbers)

    def decide(self, action: str, reason: str, numbers: Mapping[str, Any] | None = None) -> None:
        """Add a decision, with the numbers it rests on."""
        decision = Decision(
            at_seconds=round(self.elapsed, 6), action=action, reason=reason, numbers=dict(numbers or {})
        )
        self._result.decisions.append(decision)
        self._on_decision(decision)

    async def end(self, *, disks: Sequence[Mapping[str, Any]] = ()) -> None:
        """Put the record away: the migration has ended for good.

        :param disks: those that were copied into images which were made for it.
        """
        try:
            ended = asdict(self._result)
            outcome = {name: ended[name] for name in OUTCOME}
            handed_over = self.intent.milestone >= Milestone.HANDED_OVER
            more = {"postponed": self.intent.postponed, "handed_over": handed_over, "disks": list(disks)}
            await self._record.end(outcome | more)
        except RecordError as error:
            self._result.warn("record-left-over", str(error), "delete that file")
