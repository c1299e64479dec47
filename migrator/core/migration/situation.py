"""Input of a decision: what was intended, and what both ends show, classified. Pure and total."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from migrator.core.model import RUNNING_STATES, MigrationStatus, ProcessState, RunState, State, View


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


class OperatorAnswer(StrEnum):
    """Answer of an operator who has looked: where the guest of a held migration is."""

    #: The guest is, or shall go on, at the source.
    SOURCE = "source"
    #: The guest is, or shall go on, at the destination.
    DESTINATION = "destination"
    #: Neither end holds it any more.
    LOST = "lost"


@dataclass(frozen=True, kw_only=True)
class Intent:
    """Everything that the controller meant to do so far: the record, read back."""

    milestone: Milestone = Milestone.PREPARING
    #: ``migrate-start-postcopy`` may have been sent.
    postcopy: bool = False
    #: The guest shall run in the end (read again at every STOP).
    guest_runs: bool = True
    #: We stopped the guest ourselves, so that its memory comes to rest; undoing means running it again.
    stopped_by_us: bool = False
    #: Why the migration shall be undone: ``CANCELLED`` or ``FAILED``; ``None`` while it shall go on.
    undo: State | None = None
    #: It is undone only because the controller goes away, or went, before anything was sent: it begins anew.
    postponed: bool = False
    #: This controller sent every command itself and knows what it did not send. False after taking a record up.
    live: bool = True
    #: The destination was told to quit, and waited for.
    dismissed: bool = False
    #: The source's parameters and capabilities were put back, and the guest runs again if we stopped it.
    restored: bool = False
    #: An attempt to fence came to nothing.
    fence_failed: bool = False
    #: When the guest was stopped for the migration, in seconds since the epoch, give or take so many.
    stopped_at: float | None = None
    stopped_give_or_take: float = 0.0
    #: For so long it stood still, give or take; ``None`` while it was not seen to go on.
    stood_seconds: float | None = None
    stood_give_or_take: float = 0.0
    #: The guest was seen running at the destination; if it stands still there, somebody wanted that.
    ran_there: bool = False
    #: Where a person has said that it is, until that is done or turns out not to be so.
    said: OperatorAnswer | None = None
    #: A person has seen to it that an end whose host cannot be asked is off.
    said_off: bool = False


class SourceIs(StrEnum):
    """The source end, classified."""

    #: Its process is gone, without a word.
    DEAD = "dead"
    #: Its process is gone after it announced its end.
    ENDED = "ended"
    #: QEMU does not answer; its process lives, or nobody knows.
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
    #: QEMU does not answer; its process lives, or nobody knows.
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
    if view.process is ProcessState.DEAD:
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
    if view.process is ProcessState.DEAD:
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


def as_found(intent: Intent, destination: View) -> Intent:
    """Return the intent after a look at the destination: a guest that ran there and stands still was stopped by
    somebody.
    """
    stands = destination.answers and destination.run in _NOT_YET_RUN
    if intent.ran_there and intent.guest_runs and stands and intent.milestone >= Milestone.HANDED_OVER:
        return replace(intent, guest_runs=False)
    return intent


#: Both are of a migration that did not complete.
_NOT_COMPLETED = (_M.CANCELLING, _M.CANCELLED, _M.FAILING, _M.FAILED)
#: A destination of which nothing says that the guest ran there.
_NOT_SEEN_RUNNING = (
    DestinationIs.DEAD,
    DestinationIs.SILENT,
    DestinationIs.LOADS,
    DestinationIs.FAILED,
    DestinationIs.LOADED,
)


def not_handed_over(intent: Intent, source: View, destination: View) -> bool:
    """Tell whether both ends show that the guest was not handed over, though a record that may lack its last entries is
    read so.

    A destination is told to run once it is whole, and the source's migration completed, or in postcopy switched. So it
    was not where it still waits and the source has the guest; nor where the source has not left the last safe point;
    nor, but for postcopy, where the source's migration has failed or was cancelled.
    """
    unsure = not intent.live and intent.milestone is Milestone.HANDED_OVER and intent.said is None
    here, there = source_is(source), destination_is(destination)
    if not unsure or intent.ran_there or there not in _NOT_SEEN_RUNNING:
        return False
    if here in (SourceIs.COPIES, SourceIs.AT_SWITCH) and there is not DestinationIs.LOADED:
        return True
    if source.answers and source.status in _NOT_COMPLETED and not intent.postcopy:
        return True
    return destination.answers and destination.run is _R.INMIGRATE and here in (SourceIs.RUNS, SourceIs.RESTS)


def as_said(intent: Intent, view: View) -> View:
    """Return an end that nobody can ask as dead where the operator has seen to that; one that lives never is."""
    if intent.said_off and view.process is ProcessState.UNKNOWN and not view.answers:
        return replace(view, process=ProcessState.DEAD)
    return view


def classify(intent: Intent, source: View, destination: View) -> tuple[SourceIs, DestinationIs]:
    """Classify both ends, with what only the intent can tell."""
    source, destination = as_said(intent, source), as_said(intent, destination)
    here, there = source_is(source), destination_is(destination)
    reset = source.run is _R.PRELAUNCH and source.status is _M.COMPLETED
    if here is SourceIs.RESTS and reset and intent.milestone >= Milestone.SWITCHING:
        # Somebody sent system_reset to a source whose migration had completed: postmigrate becomes prelaunch. It
        # cannot run by itself, and its memory is not the guest's any more. Before the switch the same view is a guest
        # that was never started, with the status of the migration that once brought it here.
        here = SourceIs.DONE
    if (
        there is DestinationIs.LOADED
        and intent.milestone >= Milestone.HANDED_OVER
        and destination.run not in _NOT_YET_RUN
    ):
        there = (
            DestinationIs.RUNS
        )  # it ran, and has come to rest by itself: powered off, panicked, asleep, out of disk
    return here, there
