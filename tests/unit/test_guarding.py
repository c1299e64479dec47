"""What a guard has done is found out, whichever end is heard of first."""

from __future__ import annotations

from typing import Any, cast

import pytest

from migrator.core.migration.situation import Milestone
from migrator.core.model import MigrationStatus, ProcessState, RunState, State, View
from migrator.engine.migration.guarding import GUARD, Guarding
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.ports import Qemu, Record, Unguarded

SILENT = View(process=ProcessState.UNKNOWN)
COPIES = View(process=ProcessState.ALIVE, answers=True, run=RunState.RUNNING, status=MigrationStatus.ACTIVE)
CANCELLED = View(
    process=ProcessState.ALIVE, answers=True, run=RunState.RUNNING, status=MigrationStatus.CANCELLED
)
SAID = "the source does not answer; the destination is dead and never ran the guest"


class Noted:
    """A record that takes what it is given."""

    def note_behind(self, intent: object) -> None:
        """Take it."""


class Guarded:
    """A source whose guard has ended a migration, or none."""

    def __init__(self, *, ended: bool) -> None:
        self.guard = Ending() if ended else Unguarded()


class Ending(Unguarded):
    """A guard that has ended every migration."""

    async def has_ended(self, migration: str) -> bool:
        return bool(migration)


def guarding(*, ended: bool) -> tuple[Guarding, IntentLog, MigrationOutcome]:
    result = MigrationOutcome(id="m", state=State.PRECOPY)
    log = IntentLog(cast(Record, Noted()), result=result, on_decision=lambda decision: None)
    log.note(milestone=Milestone.MIGRATING)
    source = cast(Qemu, cast(Any, Guarded(ended=ended)))
    return Guarding(source, migration="m", intent_log=log), log, result


@pytest.mark.parametrize("ended", [True, False])
async def test_guard_that_ended_a_migration_is_why_though_the_destination_was_heard_of_first(
    ended: bool,
) -> None:
    made, log, result = guarding(ended=ended)
    for view in (COPIES, SILENT):
        assert await made.note_end(view)
    log.undo(State.FAILED, SAID)
    for view in (SILENT, CANCELLED):
        assert await made.note_end(view)
    assert (log.intent.undo, log.intent.postponed) == (
        (State.CANCELLED, True) if ended else (State.FAILED, False)
    )
    assert (GUARD in [each.action for each in result.decisions]) is ended
    assert log.undone_by_choice is ended


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
async def test_what_was_decided_before_the_source_fell_silent_counts(state: State) -> None:
    made, log, _ = guarding(ended=True)
    assert await made.note_end(COPIES)
    log.undo(state, "a reason")
    for view in (SILENT, CANCELLED):
        assert await made.note_end(view)
    assert (log.intent.undo, log.intent.postponed, log.undo_reason) == (state, False, "a reason")


async def test_who_cancels_while_the_source_is_silent_has_cancelled() -> None:
    made, log, _ = guarding(ended=True)
    assert await made.note_end(SILENT)
    log.undo(State.CANCELLED, "cancelled", by_choice=True)
    assert await made.note_end(CANCELLED)
    assert (log.intent.postponed, log.undo_reason) == (False, "cancelled")
