"""Rows of the lifecycle table that only an operator's answer opens. They come first.

What no answer opens:

- neither end is ended while the other would be left with less than the whole guest: never in a postcopy status;
- a destination that may run the guest and does not answer is not ended;
- one end is run only when the other is dead, or can no longer run by itself.

An answer that none of these rows serves changes nothing: the rest of the table answers as it would without.
"""

from __future__ import annotations

from migrator.core.migration.rules import (
    GONE_D,
    GONE_S,
    Row,
    Situation,
    Step,
    fenceable,
    past_postcopy_switch,
    row,
)
from migrator.core.migration.situation import DestinationIs, Milestone, OperatorAnswer, SourceIs
from migrator.core.model import RUNNING_STATES, MigrationStatus, State, View

S, D = SourceIs, DestinationIs
_POSTCOPY = frozenset(status for status in MigrationStatus if status.startswith("postcopy-"))
_SETTLED = (MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED)
_BEFORE_SWITCH = (MigrationStatus.PRE_SWITCHOVER, MigrationStatus.CANCELLING, MigrationStatus.NONE)
#: Stands still at the source, which has all of it or can be brought to give the migration up.
_HELD_HERE = frozenset({S.AT_SWITCH, S.SWITCHING, S.DONE, S.FAILING, S.LEFT_STOPPED})


def in_postcopy(view: View) -> bool:
    """Tell whether the guest's memory may be at both ends."""
    return view.answers and view.status in _POSTCOPY


def _split(now: Situation) -> bool:
    if in_postcopy(now.source) or in_postcopy(now.destination):
        return True
    # What is complete, or says itself that it failed, is whole.
    whole = set(_SETTLED) if past_postcopy_switch(now.intent) else {*_SETTLED, *_BEFORE_SWITCH}
    return now.intent.postcopy and now.source.status not in whole


def _stays_here(now: Situation) -> bool:
    """Tell whether the operator says so, and the source can run the guest once the destination is dead."""
    arrived = now.intent.ran_there or now.intent.milestone >= Milestone.RETIRING
    may_run = now.handed and (arrived or not now.destination.answers)
    return now.said(OperatorAnswer.SOURCE) and not (_split(now) or may_run)


def _runs(view: View) -> bool:
    return view.answers and view.run in RUNNING_STATES


def _is_there(now: Situation) -> bool:
    """Tell whether the operator says so, and the source may be ended for it."""
    can = now.source.can_fence and not now.intent.fence_failed
    return now.said(OperatorAnswer.DESTINATION) and can and not in_postcopy(now.source)


# fmt: off
# A table: a rule reads better as one paragraph.
OPERATOR_ROWS: tuple[Row, ...] = (
    row("said-lost", S.DEAD, GONE_D, State.FAILED,
        "a person says that the guest is lost, and neither process is left",
        lambda now: now.said(OperatorAnswer.LOST) and not (now.handed and now.destination.ended)),
    # --- at the source ---------------------------------------------------------------------------------------------
    row("said-source-runs-twice", {S.RUNS, S.COPIES}, D.RUNS, Step.FENCE_DESTINATION,
        "the guest runs at both ends; a person says that the one at the source shall stay",
        lambda now: now.said(OperatorAnswer.SOURCE) and _runs(now.source) and fenceable(now)
        and not in_postcopy(now.destination)),
    row("said-source-settled", {S.RUNS, S.RESTS}, {D.SILENT, D.LOADS, D.FAILED, D.LOADED}, Step.FENCE_DESTINATION,
        "a person says that the guest is at the source, which does not migrate any more; the destination was to "
        "run it and does not",
        lambda now: _stays_here(now) and now.handed and fenceable(now)),
    row("said-source", _HELD_HERE, {D.SILENT, D.LOADS, D.FAILED, D.LOADED}, Step.FENCE_DESTINATION,
        "a person says that the guest shall go on at the source; it may once the destination is dead",
        lambda now: _stays_here(now) and fenceable(now)),
    row("said-source-cannot-fence", _HELD_HERE, {D.SILENT, D.LOADS, D.FAILED, D.LOADED}, State.HELD,
        "the guest may go on at the source only once the destination is dead, and it cannot be ended from here",
        _stays_here),
    row("said-source-revive", {S.DONE, S.LEFT_STOPPED}, GONE_D, Step.REVIVE,
        "the destination is dead; the source has the guest as it was at the switch, and a person says that it "
        "shall go on there",
        lambda now: now.said(OperatorAnswer.SOURCE) and not now.overdue),
    # --- at the destination ----------------------------------------------------------------------------------------
    row("said-destination-runs", {S.RUNS, S.COPIES, S.RESTS, S.AT_SWITCH, S.LEFT_STOPPED}, D.RUNS,
        Step.FENCE_SOURCE,
        "the guest runs at the destination, complete; a person says that it shall stay there, so the source is ended",
        lambda now: _is_there(now) and not in_postcopy(now.destination)),
    row("said-destination-stalled", {S.SILENT, S.SWITCHING, S.FAILING}, D.RUNS, Step.FENCE_SOURCE,
        "the guest runs at the destination, complete; the source does not come to its end",
        lambda now: _is_there(now) and now.overdue),
    # One that was not handed over may go on by itself at any moment, and its disks be ahead of the destination then.
    row("said-destination-fence", S.SILENT, D.LOADED, Step.FENCE_SOURCE,
        "the destination has all of the guest and was to run it, and a person says that it shall; the source, which "
        "was done, does not answer",
        lambda now: _is_there(now) and now.handed and now.overdue),
    row("said-destination-left", S.LEFT_STOPPED, D.LOADED, Step.FENCE_SOURCE,
        "the destination has all of the guest, and a person says that it shall go on there once the source, which "
        "was left stopped, is dead",
        _is_there),
    row("said-destination-settled", S.RESTS, D.LOADED, Step.FENCE_SOURCE,
        "the destination has all of the guest and was to run it; a person says that it shall go on there once the "
        "source, where it stands still, is dead",
        lambda now: _is_there(now) and now.handed),
    row("said-destination", GONE_S, D.LOADED, Step.HAND_OVER,
        "the source is gone, the destination has the guest as it was at the switch, and a person says that it shall "
        "go on there",
        lambda now: now.said(OperatorAnswer.DESTINATION) and now.intent.guest_runs
        and not (now.overdue and now.intent.milestone is Milestone.HANDED_OVER)),
)
# fmt: on
