"""The ends of a migration that the guest's manager carries out, classified by what they show. Pure and total."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from migrator.core.model import RUNNING_STATES, MigrationStatus, ProcessState, RunState, View


class SourceHas(StrEnum):
    """State of the guest at the source, as the manager there tells it."""

    #: The manager cannot be asked.
    SILENT = "silent"
    #: Nothing: it has left, or ended.
    NOTHING = "nothing"
    #: Nothing: it ended by itself.
    ENDED = "ended"
    #: The guest, and it runs; no migration is under way.
    RUNS = "runs"
    #: The guest, and it stands still because somebody wanted that; no migration is under way.
    RESTS = "rests"
    #: A migration is under way, and may be cancelled.
    COPIES = "copies"
    #: The guest stands still for the switch of a migration that is under way.
    SWITCHES = "switches"
    #: The guest stands still after a migration of which nobody saw the end.
    STANDS = "stands"
    #: The pages of a guest that runs at the destination.
    SERVES = "serves"
    #: ... over a stream that is broken.
    BROKEN = "broken"


class DestinationHas(StrEnum):
    """State of the guest at the destination, as the manager there tells it."""

    SILENT = "silent"
    NOTHING = "nothing"
    #: It ended there by itself.
    ENDED = "ended"
    #: It waits for the guest, or takes it in.
    WAITS = "waits"
    RUNS = "runs"
    #: All of the guest, which stands still.
    RESTS = "rests"
    #: It runs and fetches its memory.
    FETCHES = "fetches"
    BROKEN = "broken"


_POSTCOPY_BROKEN = {
    MigrationStatus.POSTCOPY_PAUSED,
    MigrationStatus.POSTCOPY_RECOVER,
    MigrationStatus.POSTCOPY_RECOVER_SETUP,
}


def source_has(view: View) -> SourceHas:
    """Classify the source; total."""
    if view.process is ProcessState.DEAD:
        return SourceHas.ENDED if view.ended else SourceHas.NOTHING
    if not view.answers:
        return SourceHas.SILENT
    if view.status in _POSTCOPY_BROKEN:
        return SourceHas.BROKEN
    if view.status in (MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_DEVICE):
        return SourceHas.SERVES
    if view.run is RunState.POSTMIGRATE:
        return SourceHas.STANDS
    if view.run is RunState.FINISH_MIGRATE and view.status is not MigrationStatus.ACTIVE:
        return SourceHas.SWITCHES
    if view.status in (MigrationStatus.ACTIVE, MigrationStatus.SETUP):
        return SourceHas.COPIES
    return SourceHas.RUNS if view.run in RUNNING_STATES else SourceHas.RESTS


def has_more(source: View) -> bool:
    """Return whether the source is known to have pages that it has not sent."""
    return source.sample is not None and source.sample.remaining_bytes > 0


def standing_copy(source: View) -> View:
    """Return the source of a guest that stands still while it is copied, as one that copies where it still does.

    It looks the same as at its switch but for what is left. What has more to send cannot have been taken in whole.
    """
    switches = source.run is RunState.FINISH_MIGRATE and source.status is MigrationStatus.DEVICE
    return replace(source, status=MigrationStatus.ACTIVE) if switches and has_more(source) else source


def destination_has(view: View) -> DestinationHas:
    """Classify the destination; total."""
    if view.process is ProcessState.DEAD:
        return DestinationHas.ENDED if view.ended else DestinationHas.NOTHING
    if not view.answers:
        return DestinationHas.SILENT
    if view.status in _POSTCOPY_BROKEN:
        return DestinationHas.BROKEN
    if view.run in (RunState.PRELAUNCH, RunState.INMIGRATE, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE):
        return DestinationHas.WAITS
    if view.status in (MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_DEVICE):
        return DestinationHas.FETCHES
    return DestinationHas.RUNS if view.run in RUNNING_STATES else DestinationHas.RESTS
