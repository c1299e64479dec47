"""Says of a migration at its end how long its guest stood still, and why it did not complete."""

from __future__ import annotations

from migrator.core.migration.guest_impact import above_ceiling, standstill_at_least
from migrator.core.migration.lifecycle import Next
from migrator.core.migration.situation import Milestone
from migrator.core.model import State
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.observer import Observer
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.ports import Qemu
from migrator.units import show_seconds


def measure(result: MigrationOutcome, intent_log: IntentLog, observer: Observer) -> None:
    """Fill in how long the guest stood still, and say so where that certainly was more than its policy allows."""
    interval = observer.stop_interval
    if result.state is State.GUEST_ENDED or not intent_log.intent.guest_runs:
        interval.forget()
    elif result.state is State.HELD:
        interval.so_far()
    else:
        interval.over()  # where it was seen to run, and nobody said since when
    least = standstill_at_least(
        downtime=None,
        standstill=result.standstill_seconds,
        uncertainty=result.standstill_uncertainty_seconds,
    )
    if least is not None and above_ceiling(least, result.max_downtime_seconds, result.mode):
        intent_log.decide(
            "ceiling-exceeded",
            f"the guest stood still for {show_seconds(least)} at least, and its policy allows "
            f"{show_seconds(result.max_downtime_seconds)}",
            {
                "standstill_seconds": result.standstill_seconds or 0.0,
                "standstill_uncertainty_seconds": result.standstill_uncertainty_seconds or 0.0,
                "max_downtime_seconds": result.max_downtime_seconds,
            },
        )


def judge_stall(result: MigrationOutcome, intent_log: IntentLog) -> None:
    """Say where the guest waited longer for pages in postcopy than its policy allows."""
    stall = result.postcopy_stall_seconds
    if stall is not None and stall > result.max_postcopy_stall_seconds > 0:
        intent_log.decide(
            "postcopy-stall-exceeded",
            f"the guest waited {show_seconds(stall)} for pages in postcopy, and its policy allows "
            f"{show_seconds(result.max_postcopy_stall_seconds)}",
            {
                "postcopy_stall_seconds": stall,
                "max_postcopy_stall_seconds": result.max_postcopy_stall_seconds,
            },
        )


def explain(answer: Next, intent_log: IntentLog, observer: Observer, destination: Qemu) -> str:
    """Return in one line why it did not complete, and what QEMU says of it on either side."""
    if intent_log.undone_by_choice and answer.state is not State.HELD:
        return intent_log.undo_reason
    end = "destination" if intent_log.intent.milestone >= Milestone.HANDED_OVER else "source"
    if answer.state is State.GUEST_ENDED and (how := observer.ended_by.get(end)):
        return (
            f"somebody ended the guest's QEMU at the {end}, {how}; if it was moved from there, migrator guests says "
            "where it is now"
        )
    own = answer.state in (State.HELD, State.GUEST_ENDED) or not intent_log.undo_reason
    said = [answer.why if own else intent_log.undo_reason, *observer.complaints]
    words = destination.stderr_tail()
    if words and not any(words in complaint for complaint in said):
        said.append(f"destination's log: {words}")
    return "; ".join(said).replace("\n", " ")
