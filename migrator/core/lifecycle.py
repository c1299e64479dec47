"""The one decision table: what was intended and what both ends show go in, the next safe step comes out.

The live path and the recovery after a crash of the controller call the same :func:`decide`. It is total: each
end is first classified (:func:`source_is`, :func:`destination_is`, both total over everything QEMU can show), then
the first row of :data:`ROWS` that fits answers, and the last row fits everything.

The rows keep the safety invariants:

- the destination is sent ``cont`` (:attr:`Step.HAND_OVER`) only when the source can no longer run by itself;
- once that was sent, or in postcopy once the switch was, the source is never sent ``cont`` (:attr:`Step.REVIVE`);
- between the switch and its outcome nothing is cancelled unless the destination has been seen dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from migrator.core.model import RUNNING_STATES, MigrationStatus, Process, RunState, State, View


class Milestone(IntEnum):
    """The last step the record says was, or was about to be, taken. Ordered."""

    #: Capabilities and parameters of both ends may have been changed.
    PREPARING = 0
    #: ``migrate`` may have been sent.
    MIGRATING = 1
    #: ``migrate-continue`` may have been sent: no blind cancel from here on.
    SWITCHING = 2
    #: ``cont`` may have been sent to the destination: the point of no return.
    HANDED_OVER = 3
    #: The guest was seen running (or, paused, complete) at the destination; the source may have been quit.
    RETIRING = 4


@dataclass(frozen=True, kw_only=True)
class Intent:
    """What the controller meant to do so far: the record, read back."""

    milestone: Milestone = Milestone.PREPARING
    #: ``migrate-start-postcopy`` may have been sent.
    postcopy: bool = False
    #: The guest shall run in the end (read again at every STOP).
    guest_runs: bool = True
    #: We stopped the guest ourselves, so that its memory comes to rest; undoing means running it again.
    stopped_by_us: bool = False
    #: Why the migration shall be undone: ``CANCELLED`` or ``FAILED``; ``None`` while it shall go on.
    undo: State | None = None
    #: This controller sent every command itself and knows what it did not send. False after taking a record up.
    live: bool = True
    #: The destination was told to quit, and waited for.
    dismissed: bool = False
    #: The source's parameters and capabilities were put back, and the guest runs again if we stopped it.
    restored: bool = False
    #: An attempt to fence came to nothing.
    fence_failed: bool = False


class SourceIs(StrEnum):
    """The source end, classified."""

    #: Its process is gone, without a word.
    DEAD = "dead"
    #: Its process is gone after it announced its end.
    ENDED = "ended"
    #: It does not answer; its process lives, or nobody knows.
    SILENT = "silent"
    #: Not migrating, and the guest runs.
    RUNS = "runs"
    #: Not migrating, and the guest stands still because somebody (or its own end) wanted that.
    RESTS = "rests"
    #: Memory is being copied; a cancel is safe and works at once.
    COPIES = "copies"
    #: Stopped at the last safe point, waits for migrate-continue.
    AT_SWITCH = "at-switch"
    #: On its way through the switch, or in a status this version does not know.
    SWITCHING = "switching"
    #: The guest's right to run has gone over; pages are served to the destination.
    SERVES = "serves"
    #: The postcopy stream is broken or being mended.
    BROKEN = "broken"
    #: Everything was sent; it can run again only by an explicit ``cont``.
    DONE = "done"
    #: Failed or cancelled, and not yet standing where it will end.
    FAILING = "failing"
    #: Failed or cancelled, and left stopped: it needs an explicit ``cont``.
    LEFT_STOPPED = "left-stopped"


class DestinationIs(StrEnum):
    """The destination end, classified."""

    #: Its process is gone, without a word.
    DEAD = "dead"
    #: Its process is gone after the guest in it announced its end.
    ENDED = "ended"
    #: It does not answer; its process lives, or nobody knows.
    SILENT = "silent"
    #: Waits for, or takes in, the stream.
    LOADS = "loads"
    #: Rejected the stream; it cannot be used again.
    FAILED = "failed"
    #: Complete, and stands still.
    LOADED = "loaded"
    #: Has what it needs to run, fetches the rest, and stands still.
    READY = "ready"
    #: Complete, and the guest runs.
    RUNS = "runs"
    #: The guest runs; the rest of its memory is still being fetched.
    FETCHES = "fetches"
    #: The postcopy stream is broken or being mended.
    BROKEN = "broken"
    #: Not waiting for a migration, and no migration ever arrived: not a process we know how to treat.
    STRANGE = "strange"


_R, _M = RunState, MigrationStatus
_STOPPED_BY_MIGRATION = {_R.FINISH_MIGRATE, _R.POSTMIGRATE}
_IDLE = {_M.NONE, _M.COMPLETED, _M.FAILED, _M.CANCELLED}
#: A destination that was never sent cont is in one of these; one that ran may be in others.
_NOT_YET_RUN = {_R.PAUSED, _R.PRELAUNCH}
_ENDED_BADLY = {_M.FAILED, _M.CANCELLED}
_BROKEN = {_M.POSTCOPY_PAUSED, _M.POSTCOPY_RECOVER, _M.POSTCOPY_RECOVER_SETUP}
_POSTCOPY = {_M.POSTCOPY_ACTIVE, _M.POSTCOPY_DEVICE}


def source_is(view: View) -> SourceIs:
    """Classify the source; total over everything a :class:`View` can say."""
    run, status = view.run, view.status
    if view.process is Process.DEAD:
        return SourceIs.ENDED if view.ended else SourceIs.DEAD
    if not view.answers:
        return SourceIs.SILENT
    if status in _BROKEN:
        return SourceIs.BROKEN
    if status in (_M.CANCELLING, _M.FAILING):
        return SourceIs.FAILING
    if status in _IDLE and run not in _STOPPED_BY_MIGRATION and run is not _R.INMIGRATE:
        # A guest that once migrated in shows "completed" here before any migrate.
        return SourceIs.RUNS if run in RUNNING_STATES else SourceIs.RESTS
    if status in _ENDED_BADLY:
        return SourceIs.LEFT_STOPPED if run is _R.POSTMIGRATE else SourceIs.FAILING
    if status is _M.COMPLETED and run is _R.POSTMIGRATE:
        return SourceIs.DONE
    if status in (_M.SETUP, _M.WAIT_UNPLUG, _M.ACTIVE):
        return SourceIs.COPIES
    if status is _M.PRE_SWITCHOVER:
        return SourceIs.AT_SWITCH
    if status in _POSTCOPY and run in _STOPPED_BY_MIGRATION:
        return SourceIs.SERVES
    return SourceIs.SWITCHING


def destination_is(view: View) -> DestinationIs:
    """Classify the destination; total over everything a :class:`View` can say."""
    run, status = view.run, view.status
    if view.process is Process.DEAD:
        return DestinationIs.ENDED if view.ended else DestinationIs.DEAD
    if not view.answers:
        return DestinationIs.SILENT
    if status in _BROKEN:
        return DestinationIs.BROKEN
    if status in _ENDED_BADLY or status is _M.FAILING:
        return DestinationIs.FAILED
    if run is _R.INMIGRATE or (status is _M.OTHER and run is not _R.RUNNING):
        return DestinationIs.LOADS
    if status in _POSTCOPY:
        return DestinationIs.FETCHES if run is _R.RUNNING else DestinationIs.READY
    if status is _M.COMPLETED:
        return DestinationIs.RUNS if run is _R.RUNNING else DestinationIs.LOADED
    return DestinationIs.STRANGE


class Step(StrEnum):
    """What to do next."""

    #: Nothing; look again at the next event, or soon.
    WAIT = "wait"
    #: ``migrate-continue`` at the source.
    SWITCH = "switch"
    #: ``cont`` at the destination: the point of no return.
    HAND_OVER = "hand-over"
    #: Quit the source; the guest is elsewhere.
    RETIRE = "retire"
    #: ``migrate_cancel`` at the source, ``yank`` where that is not answered.
    CANCEL = "cancel"
    #: Kill the destination's process and see it dead.
    FENCE_DESTINATION = "fence-destination"
    #: Kill the source's process and see it dead; the destination holds the whole guest.
    FENCE_SOURCE = "fence-source"
    #: ``cont`` at the source (then ``stop``, if the guest was paused).
    REVIVE = "revive"
    #: Parameters and capabilities of the source as they were; the guest runs again if we stopped it.
    RESTORE = "restore"
    #: ``quit`` to the destination, which has nothing worth keeping, and wait for its end.
    DISMISS = "dismiss"
    #: The end; :attr:`Next.state` says which.
    END = "end"


@dataclass(frozen=True, kw_only=True)
class Next:
    """The answer of :func:`decide`."""

    step: Step
    #: The row that answered; stable, and the code of a ``held``.
    row: str
    #: Why, for a person.
    why: str
    #: With :attr:`Step.END`: the final state.
    state: State | None = None


@dataclass(frozen=True, kw_only=True)
class _Now:
    intent: Intent
    source: View
    destination: View
    #: Nothing has changed for longer than this phase may take.
    overdue: bool

    @property
    def handed(self) -> bool:
        return self.intent.milestone >= Milestone.HANDED_OVER

    @property
    def may_have_switched(self) -> bool:
        """``migrate-continue`` may be on its way: a controller that took a record up cannot know it is not."""
        return self.intent.milestone >= Milestone.SWITCHING or not self.intent.live


S, D = SourceIs, DestinationIs
_ANY_S, _ANY_D = frozenset(SourceIs), frozenset(DestinationIs)
_GONE_S, _GONE_D = frozenset({S.DEAD, S.ENDED}), frozenset({D.DEAD, D.ENDED})
#: The source cannot run again unless somebody sends it ``cont``.
_CANNOT_RUN = frozenset({S.DEAD, S.ENDED, S.DONE})
#: The source runs, or would by itself: what the record says of a hand-over cannot be so.
_OWNS = frozenset({S.RUNS, S.RESTS, S.COPIES, S.AT_SWITCH})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rule: where both ends are in these sets and the condition holds, this is the answer."""

    name: str
    source: frozenset[SourceIs]
    destination: frozenset[DestinationIs]
    step: Step
    why: str
    state: State | None = None
    when: Callable[[_Now], bool] = lambda now: True


def _row(
    name: str,
    source: SourceIs | frozenset[SourceIs] | set[SourceIs],
    destination: DestinationIs | frozenset[DestinationIs] | set[DestinationIs],
    answer: Step | State,
    why: str,
    when: Callable[[_Now], bool] = lambda now: True,
) -> Row:
    return Row(
        name=name,
        source=frozenset({source}) if isinstance(source, SourceIs) else frozenset(source),
        destination=frozenset({destination})
        if isinstance(destination, DestinationIs)
        else frozenset(destination),
        step=answer if isinstance(answer, Step) else Step.END,
        state=None if isinstance(answer, Step) else answer,
        why=why,
        when=when,
    )


def _fenceable(now: _Now) -> bool:
    return now.destination.can_fence and not now.intent.fence_failed


def _past_postcopy_switch(now: _Now) -> bool:
    return now.intent.postcopy and now.intent.milestone >= Milestone.SWITCHING


ROWS: tuple[Row, ...] = (
    # --- a contradiction that nobody but a person may end -------------------------------------------------------
    _row("both-run", {S.RUNS, S.COPIES}, {D.RUNS, D.FETCHES}, State.HELD, "the guest runs at both ends"),
    _row(
        "runs-there-rests-here",
        {S.RESTS, S.AT_SWITCH},
        {D.RUNS, D.FETCHES},
        State.HELD,
        "the guest runs at the destination, yet the source has not handed it over",
    ),
    _row(
        "strange-destination",
        _ANY_S,
        D.STRANGE,
        State.HELD,
        "the destination is not what this migration made of it",
    ),
    # --- the guest runs at the destination ----------------------------------------------------------------------
    _row(
        "arrived-source-gone",
        _GONE_S,
        D.RUNS,
        State.COMPLETED,
        "the guest runs at the destination and the source is gone",
    ),
    _row(
        "arrived", S.DONE, D.RUNS, Step.RETIRE, "both ends are complete and the guest runs at the destination"
    ),
    _row(
        "arrived-source-stalled",
        _ANY_S - _OWNS - _GONE_S - {S.DONE, S.SILENT},
        D.RUNS,
        State.HELD,
        "the guest runs at the destination, complete, and the source does not come to its end",
        lambda now: now.overdue,
    ),
    _row(
        "arriving",
        _ANY_S - _OWNS - _GONE_S - {S.DONE, S.SILENT},
        D.RUNS,
        Step.WAIT,
        "the guest runs at the destination, complete, and the source is about to end",
    ),
    _row(
        "postcopy-source-died",
        _GONE_S,
        {D.FETCHES, D.READY, D.BROKEN},
        State.HELD,
        "the source died while the destination still needed memory from it: that memory is lost",
    ),
    _row(
        "postcopy-broken",
        _ANY_S,
        D.BROKEN,
        State.HELD,
        "the postcopy stream broke; the guest waits for memory that only the source holds: quit neither",
    ),
    _row(
        "postcopy-broken-source",
        S.BROKEN,
        _ANY_D - _GONE_D,
        State.HELD,
        "the postcopy stream broke; the guest needs memory that only the source holds: quit neither",
        lambda now: now.handed or now.overdue,
    ),
    _row(
        "fetching-stalled",
        _ANY_S,
        D.FETCHES,
        State.HELD,
        "postcopy makes no progress; the guest needs memory that only the source holds: quit neither",
        lambda now: now.overdue,
    ),
    _row(
        "fetching", _ANY_S, D.FETCHES, Step.WAIT, "the guest runs at the destination and fetches its memory"
    ),
    _row(
        "arrived-source-silent",
        S.SILENT,
        D.RUNS,
        Step.RETIRE,
        "the guest runs at the destination, complete, and the source does not answer",
        lambda now: now.overdue and now.handed,
    ),
    # --- after the point of no return ---------------------------------------------------------------------------
    _row(
        "ended-at-destination",
        _ANY_S - _OWNS - _GONE_S,
        D.ENDED,
        Step.RETIRE,
        "the guest ended by itself at the destination",
        lambda now: now.handed,
    ),
    _row(
        "ended-after-arrival",
        _GONE_S,
        D.ENDED,
        State.GUEST_ENDED,
        "the guest ended by itself at the destination",
        lambda now: now.handed,
    ),
    _row(
        "settled-here-handed-there",
        {S.RUNS, S.RESTS},
        _ANY_D - _GONE_D,
        State.HELD,
        "the guest was handed to the destination, yet the source is not stopped by a migration: somebody intervened",
        lambda now: now.handed,
    ),
    _row(
        "rests-here-handed-there",
        S.RESTS,
        _GONE_D,
        State.HELD,
        "the guest was handed to the destination, which died, yet the source is not stopped by a migration: it may "
        "not be run again without a look at what the destination wrote",
        lambda now: now.handed and now.intent.stopped_by_us and now.intent.guest_runs,
    ),
    _row(
        "destination-died-after-hand-over",
        _ANY_S - _OWNS,
        _GONE_D,
        State.HELD,
        "the destination died after the guest was handed to it, and it may have written to the disks",
        lambda now: now.handed,
    ),
    _row(
        "refuses-to-run",
        _CANNOT_RUN | {S.SERVES},
        {D.LOADED, D.READY},
        State.HELD,
        "the destination was told to run the guest and does not",
        lambda now: now.intent.milestone is Milestone.HANDED_OVER and now.intent.guest_runs and now.overdue,
    ),
    _row(
        "hand-over-again",
        _CANNOT_RUN | {S.SERVES},
        {D.LOADED, D.READY},
        Step.HAND_OVER,
        "the guest was about to be run at the destination and stands still there",
        lambda now: now.intent.milestone is Milestone.HANDED_OVER and now.intent.guest_runs,
    ),
    _row(
        "arrived-paused",
        S.DONE,
        D.LOADED,
        Step.RETIRE,
        "both ends are complete, and the guest stands still at the destination as it shall",
        lambda now: not now.intent.guest_runs or now.intent.milestone is Milestone.RETIRING,
    ),
    _row(
        "arrived-paused-source-gone",
        _GONE_S,
        D.LOADED,
        State.COMPLETED,
        "the guest stands still at the destination as it shall, and the source is gone",
        lambda now: not now.intent.guest_runs or now.intent.milestone is Milestone.RETIRING,
    ),
    _row(
        "arrived-paused-source-silent",
        S.SILENT,
        D.LOADED,
        Step.RETIRE,
        "the guest stands still at the destination as it shall, and the source, which was done, does not answer",
        lambda now: now.overdue and now.intent.milestone is Milestone.RETIRING,
    ),
    _row(
        "loaded-source-silent",
        S.SILENT,
        D.LOADED,
        Step.FENCE_SOURCE,
        "the source does not answer; the destination is complete and may run once the source is dead",
        lambda now: (
            now.overdue
            and now.source.can_fence
            and not now.intent.fence_failed
            and now.intent.milestone >= Milestone.SWITCHING
            and now.intent.undo is None
            # Where nobody watched, it may have run on, and its monitor be held by another.
            and (now.intent.live or now.handed)
        ),
    ),
    _row(
        "silent-after-hand-over",
        _ANY_S - _OWNS,
        {D.SILENT, D.LOADS, D.FAILED, D.LOADED, D.READY},
        State.HELD,
        "the guest was handed to the destination, which does not show it running",
        lambda now: now.handed and now.overdue,
    ),
    _row(
        "wait-after-hand-over",
        _ANY_S - _OWNS,
        {D.SILENT, D.LOADS, D.FAILED, D.LOADED, D.READY},
        Step.WAIT,
        "the guest was handed to the destination, which does not show it running yet",
        lambda now: now.handed,
    ),
    # --- the destination has the whole guest, or in postcopy enough of it ----------------------------------------
    _row(
        "hand-over",
        S.DONE,
        D.LOADED,
        Step.HAND_OVER,
        "the source is done and cannot run by itself; the destination is complete",
    ),
    _row(
        "hand-over-source-gone",
        S.DEAD,
        D.LOADED,
        Step.HAND_OVER,
        "the source is dead and the destination is complete",
        # Where nobody watched, the switch may have failed for the source alone, and the guest have run on there.
        lambda now: now.intent.undo is None and now.intent.live,
    ),
    _row(
        "source-gone-unwatched",
        _GONE_S,
        D.LOADED,
        State.HELD,
        "the source is gone; the destination has the guest as it was at the switch, but the source may have run on "
        "after it and written to the disks: look at them before it is run",
    ),
    _row(
        "hand-over-postcopy",
        {S.SERVES, S.DONE},
        {D.READY, D.LOADED},
        Step.HAND_OVER,
        "the source serves pages and cannot run; the destination has what it needs to run the guest",
        lambda now: now.intent.guest_runs,
    ),
    # --- the source is gone and the guest with it ----------------------------------------------------------------
    _row(
        "source-gone-still-loading",
        _GONE_S,
        {D.LOADS, D.SILENT},
        Step.WAIT,
        "the source is gone; the destination may have all of the guest",
        lambda now: not now.overdue and now.intent.milestone >= Milestone.SWITCHING,
    ),
    _row(
        "source-gone-destination-silent",
        _GONE_S,
        D.SILENT,
        State.HELD,
        "the source is gone since the switch; the destination does not answer, and may have the whole guest",
        lambda now: now.intent.milestone >= Milestone.SWITCHING,
    ),
    _row(
        "guest-ended-clear-away",
        S.ENDED,
        _ANY_D - _GONE_D,
        Step.DISMISS,
        "the guest ended by itself at the source",
        lambda now: not now.intent.dismissed,
    ),
    _row("guest-ended", S.ENDED, _ANY_D, State.GUEST_ENDED, "the guest ended by itself at the source"),
    _row(
        "source-died-clear-away",
        S.DEAD,
        _ANY_D - _GONE_D,
        Step.DISMISS,
        "the source's process died before the destination was complete",
        lambda now: not now.intent.dismissed,
    ),
    _row(
        "source-died",
        S.DEAD,
        _ANY_D,
        State.HELD,
        "the source's process died (killed or crashed) before the destination was complete: the guest is lost",
    ),
    # --- the source is not migrating (any more): undo ------------------------------------------------------------
    _row(
        "restore",
        {S.RUNS, S.RESTS},
        _ANY_D,
        Step.RESTORE,
        "the source does not migrate any more; it is put back as it was",
        lambda now: not now.intent.restored and not now.overdue,
    ),
    _row(
        "cannot-restore",
        {S.RUNS, S.RESTS},
        _ANY_D,
        State.HELD,
        "the source does not migrate any more, but it cannot be put back as it was",
        lambda now: not now.intent.restored,
    ),
    _row(
        "dismiss",
        {S.RUNS, S.RESTS},
        _ANY_D - _GONE_D,
        Step.DISMISS,
        "the destination has nothing worth keeping and QEMU cannot use it again",
        lambda now: not now.intent.dismissed,
    ),
    _row(
        "undone-cancelled",
        {S.RUNS, S.RESTS},
        _ANY_D,
        State.CANCELLED,
        "cancelled; the guest is at the source, as it was",
        lambda now: now.intent.undo is State.CANCELLED,
    ),
    _row("undone", {S.RUNS, S.RESTS}, _ANY_D, State.FAILED, "the guest is at the source, as it was"),
    # --- the way back, once the destination is seen dead -----------------------------------------------------------
    _row(
        "postcopy-no-way-back",
        {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE},
        _GONE_D,
        State.HELD,
        "the destination died after a postcopy switch; the source holds the memory but may not run it again",
        lambda now: now.intent.postcopy,
    ),
    _row(
        "postcopy-left-stopped",
        S.LEFT_STOPPED,
        _ANY_D,
        State.HELD,
        "the source was left stopped by a postcopy switch; it holds the memory but may not run it again",
        _past_postcopy_switch,
    ),
    _row(
        "revive",
        {S.DONE, S.LEFT_STOPPED},
        _GONE_D,
        Step.REVIVE,
        "the destination is dead and never ran the guest; the source has all of it",
        lambda now: not now.overdue,
    ),
    _row(
        "cannot-revive",
        {S.DONE, S.LEFT_STOPPED},
        _GONE_D,
        State.HELD,
        "the destination is dead and never ran the guest; the source has all of it, but does not run it",
    ),
    _row(
        "cancel-destination-dead",
        {S.COPIES, S.AT_SWITCH, S.SWITCHING},
        _GONE_D,
        Step.CANCEL,
        "the destination is dead",
        lambda now: not now.overdue,
    ),
    _row(
        "cannot-cancel",
        {S.COPIES, S.AT_SWITCH, S.SWITCHING},
        _GONE_D,
        State.HELD,
        "the destination is dead, and the source does not give the migration up",
    ),
    _row(
        "left-stopped",
        S.LEFT_STOPPED,
        _ANY_D - _GONE_D,
        Step.FENCE_DESTINATION,
        "the source was left stopped; it may run again once the destination is dead",
        _fenceable,
    ),
    _row(
        "left-stopped-cannot-fence",
        S.LEFT_STOPPED,
        _ANY_D - _GONE_D,
        State.HELD,
        "the source was left stopped, and the destination cannot be fenced from here",
    ),
    # --- copying -----------------------------------------------------------------------------------------------
    _row(
        "copying-undo",
        S.COPIES,
        _ANY_D,
        Step.CANCEL,
        "cancelled while that is safe",
        lambda now: now.intent.undo is not None and not now.overdue,
    ),
    _row(
        "copying-ignores-cancel",
        S.COPIES,
        _ANY_D,
        Step.FENCE_DESTINATION,
        "the source does not give the migration up; without a destination it has to",
        lambda now: now.intent.undo is not None and _fenceable(now),
    ),
    _row(
        "copying-cannot-fence",
        S.COPIES,
        _ANY_D,
        State.HELD,
        "the source does not give the migration up, and the destination cannot be fenced from here",
        lambda now: now.intent.undo is not None,
    ),
    _row("copying-rejected", S.COPIES, D.FAILED, Step.CANCEL, "the destination has failed"),
    _row(
        "copying-stalled",
        S.COPIES,
        _ANY_D,
        Step.CANCEL,
        "the migration makes no progress",
        lambda now: now.overdue,
    ),
    _row("copying", S.COPIES, _ANY_D, Step.WAIT, "memory is being copied"),
    # --- at the last safe point --------------------------------------------------------------------------------
    _row(
        "at-switch-undo",
        S.AT_SWITCH,
        _ANY_D,
        Step.CANCEL,
        "undone at the last safe point",
        # A cancel that was not obeyed by the time it is overdue is not tried again.
        lambda now: (now.intent.undo is not None) is not now.overdue and not now.may_have_switched,
    ),
    _row(
        "at-switch-rejected",
        S.AT_SWITCH,
        {D.FAILED},
        Step.CANCEL,
        "the destination has failed",
        lambda now: not now.overdue and not now.may_have_switched,
    ),
    _row(
        "switch",
        S.AT_SWITCH,
        D.LOADS,
        Step.SWITCH,
        "the destination lives, answers, and waits for the rest",
        lambda now: now.destination.status in (_M.ACTIVE, _M.OTHER) and not now.overdue,
    ),
    _row(
        "at-switch-fence",
        S.AT_SWITCH,
        _ANY_D - _GONE_D,
        Step.FENCE_DESTINATION,
        "the switch may be on its way and the destination does not go on: no cancel before it is dead",
        lambda now: (now.overdue or destination_is(now.destination) is D.FAILED) and _fenceable(now),
    ),
    _row(
        "at-switch-cannot-fence",
        S.AT_SWITCH,
        _ANY_D - _GONE_D,
        State.HELD,
        "the switch may be on its way, and the destination neither goes on nor can be fenced from here",
        lambda now: now.overdue,
    ),
    _row(
        "at-switch",
        S.AT_SWITCH,
        _ANY_D,
        Step.WAIT,
        "the guest stands still; the destination is not ready yet",
    ),
    # --- between the switch and its outcome ----------------------------------------------------------------------
    _row(
        "postcopy-rejected",
        {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE},
        {D.FAILED},
        State.HELD,
        "the destination rejected the guest after a postcopy switch; the source holds the memory but may not run it",
        lambda now: now.intent.postcopy and now.overdue,
    ),
    _row(
        "postcopy-stalled",
        {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE},
        _ANY_D - _GONE_D,
        State.HELD,
        "the postcopy switch makes no progress; the source holds the memory but may not run it again",
        lambda now: now.intent.postcopy and now.overdue,
    ),
    _row(
        "postcopy-failing",
        S.FAILING,
        _ANY_D - _GONE_D,
        State.HELD,
        "the postcopy switch failed half-way; the source holds the memory but may not run it again",
        lambda now: now.overdue and _past_postcopy_switch(now),
    ),
    _row(
        "switch-rejected",
        {S.SWITCHING, S.DONE},
        D.FAILED,
        Step.FENCE_DESTINATION,
        "the destination rejected the guest; the source may go on once it is dead",
        lambda now: not now.intent.postcopy and _fenceable(now),
    ),
    _row(
        "switch-stalled",
        {S.SWITCHING, S.DONE, S.FAILING},
        _ANY_D - _GONE_D,
        Step.FENCE_DESTINATION,
        "the switch makes no progress; the source may go on once the destination is dead",
        lambda now: now.overdue and _fenceable(now),
    ),
    _row(
        "switch-stalled-cannot-fence",
        {S.SWITCHING, S.DONE, S.FAILING},
        _ANY_D - _GONE_D,
        State.HELD,
        "the switch makes no progress, and the destination cannot be fenced from here",
        lambda now: now.overdue,
    ),
    _row(
        "switching",
        {S.SWITCHING, S.SERVES, S.BROKEN, S.DONE, S.FAILING},
        _ANY_D,
        Step.WAIT,
        "the outcome is on its way",
        lambda now: not now.overdue,
    ),
    # --- an end that does not answer -------------------------------------------------------------------------------
    _row(
        "source-silent",
        S.SILENT,
        _ANY_D,
        Step.WAIT,
        "the source does not answer",
        lambda now: not now.overdue,
    ),
    _row(
        "source-silent-fence",
        S.SILENT,
        _ANY_D - _GONE_D - {D.RUNS},
        Step.FENCE_DESTINATION,
        "the source does not answer; its migration is broken off so that it cannot reach the switch alone",
        lambda now: not now.may_have_switched and _fenceable(now),
    ),
    _row(
        "both-silent-fence",
        S.SILENT,
        {D.SILENT, D.LOADS, D.FAILED},
        Step.FENCE_DESTINATION,
        "the source does not answer, as it does not while it waits for a destination that has stalled; its process "
        "lives and holds the guest, and may go on once the destination is dead",
        lambda now: now.source.process is Process.ALIVE and not now.intent.postcopy and _fenceable(now),
    ),
    _row("source-does-not-answer", S.SILENT, _ANY_D, State.HELD, "the source does not answer"),
    _row("unclear", _ANY_S, _ANY_D, State.HELD, "both ends together show something that no rule answers"),
)


def decide(intent: Intent, source: View, destination: View, *, overdue: bool = False) -> Next:
    """The next safe step; total and pure.

    :param intent: what was meant and done so far.
    :param source: a fresh view of the source.
    :param destination: a fresh view of the destination.
    :param overdue: nothing has changed for longer than this phase may take.
    """
    now = _Now(intent=intent, source=source, destination=destination, overdue=overdue)
    here, there = classify(intent, source, destination)
    for row in ROWS:
        if here in row.source and there in row.destination and row.when(now):
            return Next(step=row.step, row=row.name, why=row.why, state=row.state)
    raise AssertionError("the last row fits everything")


def classify(intent: Intent, source: View, destination: View) -> tuple[SourceIs, DestinationIs]:
    """Both ends classified, with what only the intent can tell."""
    here, there = source_is(source), destination_is(destination)
    reset = source.run is _R.PRELAUNCH and source.status is _M.COMPLETED
    if here is S.RESTS and reset and intent.milestone >= Milestone.SWITCHING:
        # Somebody sent system_reset to a source whose migration had completed: postmigrate becomes prelaunch. It
        # cannot run by itself, and its memory is not the guest's any more. Before the switch the same view is a guest
        # that was never started, with the status of the migration that once brought it here.
        here = S.DONE
    if (
        there is D.LOADED
        and intent.milestone >= Milestone.HANDED_OVER
        and destination.run not in _NOT_YET_RUN
    ):
        there = D.RUNS  # it ran, and has come to rest by itself: powered off, panicked, asleep, out of disk
    return here, there


def can_cancel(intent: Intent, source: View) -> bool:
    """Whether a cancel is still safe: before migrate-continue was sent, and while the source says so."""
    here = source_is(source)
    if here is S.COPIES:
        return True
    before_switch = intent.live and intent.milestone < Milestone.SWITCHING
    return before_switch and here in {S.RUNS, S.RESTS, S.AT_SWITCH, S.SILENT}


def state_of(intent: Intent, source: View, destination: View) -> State:
    """The lifecycle's word for a migration that has not ended."""
    here, there = classify(intent, source, destination)
    if intent.undo is not None or intent.milestone is Milestone.RETIRING:
        return State.FINISHING
    if there in (D.RUNS, D.FETCHES):
        return State.POSTCOPY if there is D.FETCHES else State.FINISHING
    if intent.milestone is Milestone.PREPARING:
        return State.PREPARING
    if here is S.COPIES or (intent.milestone is Milestone.MIGRATING and here in (S.RUNS, S.RESTS, S.SILENT)):
        return State.PRECOPY
    return State.SWITCHOVER
