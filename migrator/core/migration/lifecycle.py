"""The one decision table: what was intended and what both ends show go in, the next safe step comes out.

The live path and the recovery after a crash of the controller call the same :func:`decide`. It is total: each
end is first classified (:mod:`migrator.core.migration.situation`, total over everything QEMU can show), then
the first row of :data:`ROWS` that fits answers, and the last row fits everything.

The rows keep the safety invariants:

- the destination is sent ``cont`` (:attr:`Step.HAND_OVER`) only when the source can no longer run by itself;
- once that was sent, or in postcopy once the source has switched, it is never sent ``cont`` (:attr:`Step.REVIVE`);
- between the switch and its outcome nothing is cancelled unless the destination has been seen dead.
"""

from __future__ import annotations

from migrator.core.migration.operator_rows import OPERATOR_ROWS, in_postcopy
from migrator.core.migration.rules import (
    ANY_D,
    ANY_S,
    CANNOT_RUN,
    GONE_D,
    GONE_S,
    OWNS,
    STREAM_D,
    STREAM_S,
    Next,
    Row,
    Situation,
    Step,
    fenceable,
    past_postcopy_switch,
    recovers,
    row,
)
from migrator.core.migration.situation import (
    DestinationIs,
    Intent,
    Milestone,
    SourceIs,
    as_found,
    as_said,
    classify,
    destination_is,
    source_is,
)
from migrator.core.model import MigrationStatus, ProcessState, RunState, State, View

__all__ = ["ROWS", "Next", "Row", "Step", "can_cancel", "decide", "state_of"]

S, D = SourceIs, DestinationIs

# fmt: off
# A table: a rule reads better as one paragraph.
ROWS: tuple[Row, ...] = (
    # --- what a person has said, and nothing that both ends show forbids ------------------------------------------
    *OPERATOR_ROWS,
    # --- a contradiction that nobody but a person may end -------------------------------------------------------
    row("both-run", {S.RUNS, S.COPIES}, {D.RUNS, D.FETCHES}, State.HELD,
        "the guest runs at both ends"),
    row("arrived-source-failed", S.RESTS, D.RUNS, Step.RETIRE,
        "the guest runs at the destination, complete; the source, where we had stopped it, failed at the very end",
        lambda now: now.handed and now.intent.postcopy and now.intent.stopped_by_us,
        outcome=State.COMPLETED, announce=True),
    row("runs-there-rests-here", {S.RESTS, S.AT_SWITCH}, {D.RUNS, D.FETCHES}, State.HELD,
        "the guest runs at the destination, yet the source has not handed it over"),
    row("strange-destination", ANY_S, D.STRANGE, State.HELD,
        "the destination is not what this migration made of it"),
    # --- the guest runs at the destination ----------------------------------------------------------------------
    row("arrived-source-gone", GONE_S, D.RUNS, State.COMPLETED,
        "the guest runs at the destination and the source is gone"),
    row("arrived", S.DONE, D.RUNS, Step.RETIRE,
        "both ends are complete and the guest runs at the destination",
        outcome=State.COMPLETED, announce=True),
    row("arrived-source-broken", STREAM_S, D.RUNS, Step.RETIRE,
        "the guest runs at the destination, complete; the stream broke before the source heard of it",
        lambda now: now.overdue and now.handed,
        outcome=State.COMPLETED, announce=True),
    row("arrived-source-stalled", ANY_S - OWNS - GONE_S - {S.DONE, S.SILENT}, D.RUNS, State.HELD,
        "the guest runs at the destination, complete, and the source does not come to its end",
        lambda now: now.overdue),
    row("arriving", ANY_S - OWNS - GONE_S - {S.DONE, S.SILENT}, D.RUNS, Step.WAIT,
        "the guest runs at the destination, complete, and the source is about to end"),
    row("postcopy-source-died", GONE_S, {D.FETCHES, D.READY, D.BROKEN}, State.HELD,
        "the source died while the destination still needed memory from it: that memory is lost"),
    # --- the postcopy stream is broken, or carries nothing: neither end is ended, and it is recovered --------------
    row("postcopy-broken", {*STREAM_S, S.SILENT}, {*STREAM_D, D.SILENT}, State.HELD,
        "the postcopy stream has been broken for longer than its recovery is tried; the guest needs memory that only "
        "the source holds: quit neither",
        lambda now: now.expired and (in_postcopy(now.source) or in_postcopy(now.destination))),
    row("recovery-stalled", STREAM_S, {*STREAM_D, D.SILENT}, Step.PAUSE_STREAM,
        "the recovery of the postcopy stream makes no progress: it is begun anew",
        lambda now: now.overdue and (recovers(now.source) or recovers(now.destination))),
    row("recovering", STREAM_S, {*STREAM_D, D.SILENT}, Step.WAIT,
        "the postcopy stream is being recovered",
        lambda now: recovers(now.source) or recovers(now.destination)),
    # A destination that does not answer may wait itself for a page that only the stream brings.
    row("recover", S.BROKEN, {D.BROKEN, D.SILENT}, Step.RECOVER,
        "the postcopy stream broke; the guest needs memory that only the source holds"),
    # Not where the destination may still take in the devices' state: a stream that ends then ends it. Nor where the
    # source has given all of it to its kernel: QEMU 10.0 takes a stream that ends then for a migration that failed.
    row("stream-stalled", STREAM_S, {*STREAM_D, D.SILENT}, Step.PAUSE_STREAM,
        "nothing comes through the postcopy stream any more: both ends are told, so that it can be recovered",
        lambda now: now.overdue and (now.destination.answers or now.handed) and not _would_run(now)
        and (source_is(now.source) is S.BROKEN or _has_more(now.source))),
    row("stream-drains", S.SERVES, {*STREAM_D, D.SILENT}, Step.WAIT,
        "all of the guest was sent, and a part of it has not come through yet",
        lambda now: now.overdue and (now.destination.answers or now.handed) and not _would_run(now)),
    row("stream-breaks", S.SERVES, D.BROKEN, Step.WAIT,
        "the destination has lost the postcopy stream, and the source is about to notice"),
    row("stream-breaks-source", S.BROKEN, {D.FETCHES, D.READY}, Step.WAIT,
        "the source has lost the postcopy stream, and the destination is about to notice"),
    row("stream-source-silent", S.SILENT, {D.FETCHES, D.BROKEN}, Step.WAIT,
        "the guest is at the destination and needs memory from the source, which does not answer"),
    row("postcopy-broken-alone", ANY_S, D.BROKEN, State.HELD,
        "the postcopy stream broke, and the source does not serve the guest's memory: quit neither"),
    row("hand-over-broken", S.BROKEN, D.LOADED, Step.HAND_OVER,
        "the destination has all of the guest; the postcopy stream broke before the source heard of it",
        lambda now: now.intent.guest_runs and not (now.handed and now.overdue)),
    row("arrived-paused-source-broken", STREAM_S, D.LOADED, Step.RETIRE,
        "the guest stands still at the destination as it shall, complete; the stream broke before the source heard of "
        "it",
        lambda now: now.overdue and (not now.intent.guest_runs or now.intent.milestone is Milestone.RETIRING),
        outcome=State.COMPLETED, announce=True),
    row("postcopy-broken-source", S.BROKEN, ANY_D - GONE_D, State.HELD,
        "the postcopy stream broke, and the destination cannot take it up again: quit neither",
        lambda now: now.handed or now.overdue),
    row("fetching-stalled", ANY_S, D.FETCHES, State.HELD,
        "postcopy makes no progress, and the source does not serve the guest's memory: quit neither",
        lambda now: now.overdue),
    row("fetching", ANY_S, D.FETCHES, Step.WAIT,
        "the guest runs at the destination and fetches its memory"),
    row("arrived-source-silent", S.SILENT, D.RUNS, Step.RETIRE,
        "the guest runs at the destination, complete, and the source does not answer",
        lambda now: now.overdue and now.handed,
        outcome=State.COMPLETED, announce=True),
    # --- after the point of no return ---------------------------------------------------------------------------
    row("ended-at-destination", ANY_S - OWNS - GONE_S, D.ENDED, Step.RETIRE,
        "the guest ended by itself at the destination",
        lambda now: now.handed,
        outcome=State.GUEST_ENDED),
    row("ended-after-arrival", GONE_S, D.ENDED, State.GUEST_ENDED,
        "the guest ended by itself at the destination",
        lambda now: now.handed),
    row("settled-here-handed-there", {S.RUNS, S.RESTS}, ANY_D - GONE_D, State.HELD,
        "the guest was handed to the destination, yet the source is not stopped by a migration: somebody "
        "intervened",
        lambda now: now.handed),
    row("settled-here-destination-died", {S.RUNS, S.RESTS}, GONE_D, State.HELD,
        "the guest was handed to the destination, which died and may have written to the disks; QEMU, or somebody, "
        "has settled the guest at the source again: look at the disks before it goes on",
        lambda now: now.handed),
    row("destination-died-after-hand-over", ANY_S - OWNS, GONE_D, State.HELD,
        "the destination died after the guest was handed to it, and it may have written to the disks",
        lambda now: now.handed),
    row("refuses-to-run", CANNOT_RUN | {S.SERVES}, {D.LOADED, D.READY}, State.HELD,
        "the destination was told to run the guest and does not",
        lambda now: now.intent.milestone is Milestone.HANDED_OVER and now.intent.guest_runs and now.overdue),
    row("hand-over-again", CANNOT_RUN | {S.SERVES}, {D.LOADED, D.READY}, Step.HAND_OVER,
        "the guest was about to be run at the destination and stands still there",
        lambda now: now.intent.milestone is Milestone.HANDED_OVER and now.intent.guest_runs,
        again=True),
    row("arrived-paused", S.DONE, D.LOADED, Step.RETIRE,
        "both ends are complete, and the guest stands still at the destination as it shall",
        lambda now: not now.intent.guest_runs or now.intent.milestone is Milestone.RETIRING,
        outcome=State.COMPLETED, announce=True),
    row("arrived-paused-source-gone", GONE_S, D.LOADED, State.COMPLETED,
        "the guest stands still at the destination as it shall, and the source is gone",
        lambda now: not now.intent.guest_runs or now.intent.milestone is Milestone.RETIRING),
    row("arrived-paused-source-silent", S.SILENT, D.LOADED, Step.RETIRE,
        "the guest stands still at the destination as it shall, and the source, which was done, does not answer",
        lambda now: now.overdue and now.intent.milestone is Milestone.RETIRING,
        outcome=State.COMPLETED, announce=True),
    # Where nobody watched, it may have run on, and its monitor be held by another.
    row("loaded-source-silent", S.SILENT, D.LOADED, Step.FENCE_SOURCE,
        "the source does not answer; the destination is complete and may run once the source is dead",
        lambda now: (now.overdue and now.source.can_fence and (not now.intent.fence_failed)
            and (now.intent.milestone >= Milestone.SWITCHING) and (now.intent.undo is None) and (now.intent.live
            or now.handed))),
    row("silent-after-hand-over", ANY_S - OWNS, {D.SILENT, D.LOADS, D.FAILED, D.LOADED, D.READY}, State.HELD,
        "the guest was handed to the destination, which does not show it running",
        lambda now: now.handed and now.overdue),
    row("wait-after-hand-over", ANY_S - OWNS, {D.SILENT, D.LOADS, D.FAILED, D.LOADED, D.READY}, Step.WAIT,
        "the guest was handed to the destination, which does not show it running yet",
        lambda now: now.handed),
    # --- the destination has the whole guest, or in postcopy enough of it ----------------------------------------
    row("hand-over", S.DONE, D.LOADED, Step.HAND_OVER,
        "the source is done and cannot run by itself; the destination is complete"),
    # Where nobody watched, the switch may have failed for the source alone, and the guest have run on there.
    row("hand-over-source-gone", S.DEAD, D.LOADED, Step.HAND_OVER,
        "the source is dead and the destination is complete",
        lambda now: now.intent.undo is None and now.intent.live),
    row("source-gone-unwatched", GONE_S, D.LOADED, State.HELD,
        "the source is gone; the destination has the guest as it was at the switch, but the source may have "
        "run on after it and written to the disks: look at them before it is run"),
    row("hand-over-postcopy", {S.SERVES, S.DONE}, {D.READY, D.LOADED}, Step.HAND_OVER,
        "the source serves pages and cannot run; the destination has what it needs to run the guest",
        lambda now: now.intent.guest_runs),
    # --- the source is gone and the guest with it ----------------------------------------------------------------
    row("source-gone-still-loading", GONE_S, {D.LOADS, D.SILENT}, Step.WAIT,
        "the source is gone; the destination may have all of the guest",
        lambda now: not now.overdue and now.intent.milestone >= Milestone.SWITCHING),
    row("source-gone-destination-silent", GONE_S, D.SILENT, State.HELD,
        "the source is gone since the switch; the destination does not answer, and may have the whole guest",
        lambda now: now.intent.milestone >= Milestone.SWITCHING),
    row("guest-ended-clear-away", S.ENDED, ANY_D - GONE_D, Step.DISMISS,
        "the guest ended by itself at the source",
        lambda now: not now.intent.dismissed),
    row("guest-ended", S.ENDED, ANY_D, State.GUEST_ENDED,
        "the guest ended by itself at the source"),
    row("source-died-clear-away", S.DEAD, ANY_D - GONE_D, Step.DISMISS,
        "the source's process died before the destination was complete",
        lambda now: not now.intent.dismissed),
    row("source-died", S.DEAD, ANY_D, State.HELD,
        "the source's process died (killed or crashed) before the destination was complete: the guest is lost"),
    # --- the source is not migrating (any more): undo ------------------------------------------------------------
    row("restore", {S.RUNS, S.RESTS}, ANY_D, Step.RESTORE,
        "the source does not migrate any more; it is put back as it was",
        lambda now: not now.intent.restored and (not now.overdue)),
    row("cannot-restore", {S.RUNS, S.RESTS}, ANY_D, State.HELD,
        "the source does not migrate any more, but it cannot be put back as it was",
        lambda now: not now.intent.restored),
    row("dismiss", {S.RUNS, S.RESTS}, ANY_D - GONE_D, Step.DISMISS,
        "the destination has nothing worth keeping and QEMU cannot use it again",
        lambda now: not now.intent.dismissed),
    row("undone-cancelled", {S.RUNS, S.RESTS}, ANY_D, State.CANCELLED,
        "cancelled; the guest is at the source, as it was",
        lambda now: now.intent.undo is State.CANCELLED),
    row("undone", {S.RUNS, S.RESTS}, ANY_D, State.FAILED,
        "the guest is at the source, as it was"),
    # --- the way back, once the destination is seen dead -----------------------------------------------------------
    row("postcopy-no-way-back", {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE}, GONE_D, State.HELD,
        "the destination died after a postcopy switch; the source holds the memory but may not run it again",
        lambda now: now.intent.postcopy),
    row("revive", {S.DONE, S.LEFT_STOPPED}, GONE_D, Step.REVIVE,
        "the destination is dead and never ran the guest; the source has all of it",
        lambda now: not now.overdue),
    row("cannot-revive", {S.DONE, S.LEFT_STOPPED}, GONE_D, State.HELD,
        "the destination is dead and never ran the guest; the source has all of it, but does not run it"),
    row("cancel-destination-dead", {S.COPIES, S.AT_SWITCH, S.SWITCHING}, GONE_D, Step.CANCEL,
        "the destination is dead",
        lambda now: not now.overdue),
    row("cannot-cancel", {S.COPIES, S.AT_SWITCH, S.SWITCHING, S.FAILING}, GONE_D, State.HELD,
        "the destination is dead, and the source does not give the migration up",
        lambda now: now.overdue),
    row("left-stopped", S.LEFT_STOPPED, ANY_D - GONE_D, Step.FENCE_DESTINATION,
        "the source was left stopped; it may run again once the destination is dead",
        fenceable),
    row("left-stopped-cannot-fence", S.LEFT_STOPPED, ANY_D - GONE_D, State.HELD,
        "the source was left stopped, and the destination cannot be fenced from here"),
    # --- copying -----------------------------------------------------------------------------------------------
    row("copying-undo", S.COPIES, ANY_D, Step.CANCEL,
        "cancelled while that is safe",
        lambda now: now.intent.undo is not None and (not now.overdue)),
    row("copying-ignores-cancel", S.COPIES, ANY_D, Step.FENCE_DESTINATION,
        "the source does not give the migration up; without a destination it has to",
        lambda now: now.intent.undo is not None and fenceable(now)),
    row("copying-cannot-fence", S.COPIES, ANY_D, State.HELD,
        "the source does not give the migration up, and the destination cannot be fenced from here",
        lambda now: now.intent.undo is not None),
    row("copying-rejected", S.COPIES, D.FAILED, Step.CANCEL,
        "the destination has failed"),
    row("copying-stalled", S.COPIES, ANY_D, Step.CANCEL,
        "the migration makes no progress",
        lambda now: now.overdue),
    row("copying", S.COPIES, ANY_D, Step.WAIT,
        "memory is being copied"),
    # --- at the last safe point --------------------------------------------------------------------------------
    # A cancel that was not obeyed by the time it is overdue is not tried again.
    row("at-switch-undo", S.AT_SWITCH, ANY_D, Step.CANCEL,
        "undone at the last safe point",
        lambda now: (now.intent.undo is not None) is not now.overdue and (not now.may_have_switched)),
    row("at-switch-rejected", S.AT_SWITCH, {D.FAILED}, Step.CANCEL,
        "the destination has failed",
        lambda now: not now.overdue and (not now.may_have_switched)),
    row("switch", S.AT_SWITCH, D.LOADS, Step.SWITCH,
        "the destination lives, answers, and waits for the rest",
        lambda now: now.destination.status in (MigrationStatus.ACTIVE, MigrationStatus.OTHER) and (not now.overdue)),
    row("at-switch-fence", S.AT_SWITCH, ANY_D - GONE_D, Step.FENCE_DESTINATION,
        "the switch may be on its way and the destination does not go on: no cancel before it is dead",
        lambda now: (now.overdue or destination_is(now.destination) is D.FAILED)
        and fenceable(now) and not past_postcopy_switch(now.intent)),
    row("at-switch-cannot-fence", S.AT_SWITCH, ANY_D - GONE_D, State.HELD,
        "the switch may be on its way, and the destination neither goes on nor can, or in postcopy may, be fenced",
        lambda now: now.overdue),
    row("at-switch", S.AT_SWITCH, ANY_D, Step.WAIT,
        "the guest stands still; the destination is not ready yet"),
    # --- cancelled before it, which may take QEMU minutes where it still tries to connect ---------------------------
    row("cancelling-resume", S.FAILING, {D.LOADS, D.FAILED, D.SILENT, *GONE_D}, Step.RESUME,
        "the migration ends before the switch: the guest, which was stopped for it, runs again at once",
        lambda now: now.source.status is MigrationStatus.CANCELLING and now.source.run is RunState.PAUSED
        and now.intent.stopped_by_us and now.intent.guest_runs
        and not (now.may_have_switched or now.overdue)),
    # --- between the switch and its outcome ----------------------------------------------------------------------
    row("postcopy-rejected", {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE}, {D.FAILED}, State.HELD,
        "the destination rejected the guest after a postcopy switch; the source holds the memory but may not "
        "run it",
        lambda now: now.intent.postcopy and now.overdue),
    row("postcopy-stalled", {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE}, ANY_D - GONE_D, State.HELD,
        "the postcopy switch makes no progress; the source holds the memory but may not run it again",
        lambda now: now.intent.postcopy and now.overdue),
    row("postcopy-failing", S.FAILING, ANY_D - GONE_D, State.HELD,
        "the postcopy switch failed half-way; the source holds the memory but may not run it again",
        lambda now: now.overdue and past_postcopy_switch(now.intent)),
    row("switch-rejected", {S.SWITCHING, S.DONE}, D.FAILED, Step.FENCE_DESTINATION,
        "the destination rejected the guest; the source may go on once it is dead",
        lambda now: not now.intent.postcopy and fenceable(now)),
    row("switch-stalled", {S.SWITCHING, S.DONE, S.FAILING}, ANY_D - GONE_D, Step.FENCE_DESTINATION,
        "the switch makes no progress; the source may go on once the destination is dead",
        lambda now: now.overdue and fenceable(now)),
    row("switch-stalled-cannot-fence", {S.SWITCHING, S.DONE, S.FAILING}, ANY_D - GONE_D, State.HELD,
        "the switch makes no progress, and the destination cannot be fenced from here",
        lambda now: now.overdue),
    row("switching", {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE, S.FAILING}, ANY_D, Step.WAIT,
        "the outcome is on its way",
        lambda now: not now.overdue),
    # --- an end that does not answer -------------------------------------------------------------------------------
    # As it does not while it waits for a destination that is gone and whose end it could not hear of.
    row("cancel-source-silent", S.SILENT, GONE_D, Step.CANCEL,
        "the source does not answer; the destination is dead and never ran the guest",
        lambda now: not now.overdue and not now.intent.postcopy),
    row("source-silent", S.SILENT, ANY_D, Step.WAIT,
        "the source does not answer",
        lambda now: not now.overdue),
    row("source-silent-fence", S.SILENT, ANY_D - GONE_D - {D.RUNS}, Step.FENCE_DESTINATION,
        "the source does not answer; its migration is broken off so that it cannot reach the switch alone",
        lambda now: not now.may_have_switched and fenceable(now)),
    row("both-silent-fence", S.SILENT, {D.SILENT, D.LOADS, D.FAILED}, Step.FENCE_DESTINATION,
        "the source does not answer, as it does not while it waits for a destination that has stalled; its "
        "process lives and holds the guest, and may go on once the destination is dead",
        lambda now: now.source.process is ProcessState.ALIVE and (not now.intent.postcopy) and fenceable(now)),
    row("source-does-not-answer", S.SILENT, ANY_D, State.HELD,
        "the source does not answer"),
    row("unclear", ANY_S, ANY_D, State.HELD,
        "both ends together show something that no rule answers"),
)
# fmt: on


def _would_run(now: Situation) -> bool:
    """Tell whether the guest is about to be run at the destination, or was and does not go on."""
    ready = destination_is(now.destination) is D.READY and source_is(now.source) is S.SERVES
    return ready and now.intent.guest_runs


def _has_more(view: View) -> bool:
    return view.sample is not None and view.sample.remaining_bytes > 0


def decide(
    intent: Intent, source: View, destination: View, *, overdue: bool = False, expired: bool = False
) -> Next:
    """Return the next safe step; total and pure.

    :param intent: what was meant and done so far.
    :param source: a fresh view of the source.
    :param destination: a fresh view of the destination.
    :param overdue: nothing has changed for longer than this phase may take.
    :param expired: nothing has come through a postcopy stream for longer than its recovery is tried.
    """
    intent = as_found(intent, destination)
    source, destination = as_said(intent, source), as_said(intent, destination)
    now = Situation(intent=intent, source=source, destination=destination, overdue=overdue, expired=expired)
    here, there = classify(intent, source, destination)
    for each in ROWS:
        if here in each.source and there in each.destination and each.when(now):
            return each.answer
    raise AssertionError("the last row fits everything")


def can_cancel(intent: Intent, source: View) -> bool:
    """Tell whether a cancel is still safe: before migrate-continue was sent, and while the source says so.

    One that another controller had accepted, and sent before it died, is.
    """
    here = source_is(source)
    if here is S.COPIES:
        return True
    if intent.milestone >= Milestone.SWITCHING:
        return False
    if intent.live:
        return here in {S.RUNS, S.RESTS, S.AT_SWITCH, S.SILENT}
    return here in {S.RUNS, S.RESTS} and source.status is MigrationStatus.CANCELLED


def state_of(intent: Intent, source: View, destination: View) -> State:
    """Return the lifecycle's word for a migration that has not ended."""
    here, there = classify(intent, source, destination)
    if intent.undo is not None or intent.milestone is Milestone.RETIRING:
        return State.FINISHING
    if there not in GONE_D and (S.BROKEN is here or D.BROKEN is there) and there not in (D.RUNS, D.LOADED):
        return State.RECOVERING
    if there in (D.RUNS, D.FETCHES):
        return State.POSTCOPY if there is D.FETCHES else State.FINISHING
    if intent.milestone is Milestone.PREPARING:
        return State.PREPARING
    # One whose source has died was not stopped for its switch, as far as is known: its group does not follow it.
    if here is S.COPIES or (
        intent.milestone is Milestone.MIGRATING and here in {S.RUNS, S.RESTS, S.SILENT, *GONE_S}
    ):
        return State.PRECOPY
    return State.SWITCHOVER
