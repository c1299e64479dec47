"""The safety invariants: what breaks them, that no step of the table does, and that a broken one holds a migration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.migration.answer_review import after
from migrator.core.migration.invariants import VIOLATED, Invariant, guarded, violations
from migrator.core.migration.lifecycle import Next, Row, Step, decide
from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer
from migrator.core.model import MigrationStatus, RunState, State, View
from migrator.testing.workload import MIB
from tests.integration.test_strange_answers import pair
from tests.unit.test_lifecycle_table import (
    DEAD,
    INTENTS,
    SILENT,
    SOURCES,
    every_situation,
    fitting,
    sentence,
    shown,
)

__all__ = ["fitting"]  # a fixture
R, M = RunState, MigrationStatus
COPIES, DONE = shown(R.RUNNING, M.ACTIVE), shown(R.POSTMIGRATE, M.COMPLETED)
LOADS, LOADED, RUNS = (
    shown(R.INMIGRATE, M.ACTIVE),
    shown(R.PAUSED, M.COMPLETED),
    shown(R.RUNNING, M.COMPLETED),
)
PREPARING, COPYING, SWITCHING, HANDED, RETIRING = (Intent(milestone=milestone) for milestone in Milestone)


def taken_up(intent: Intent) -> Intent:
    return replace(intent, live=False)


@pytest.mark.parametrize(
    ("intent", "source", "destination", "broken"),
    [
        (COPYING, COPIES, RUNS, Invariant.NEVER_TWO),
        (taken_up(COPYING), shown(R.RUNNING, M.NONE), RUNS, Invariant.NEVER_TWO),
        (HANDED, shown(R.SUSPENDED, M.FAILED), shown(R.RUNNING, M.POSTCOPY_ACTIVE), Invariant.NEVER_TWO),
        (HANDED, shown(R.RUNNING, M.FAILED), SILENT, Invariant.NO_RETURN),
        (HANDED, COPIES, DEAD, Invariant.NO_RETURN),
        (HANDED, shown(R.FINISH_MIGRATE, M.PRE_SWITCHOVER), DEAD, Invariant.NO_RETURN),
        (RETIRING, DEAD, LOADS, Invariant.NEVER_NONE),
        (RETIRING, DONE, LOADS, Invariant.NEVER_NONE),
        (PREPARING, COPIES, LOADS, Invariant.INTENT_FIRST),
        (PREPARING, shown(R.FINISH_MIGRATE, M.PRE_SWITCHOVER), LOADS, Invariant.INTENT_FIRST),
        (COPYING, COPIES, LOADED, Invariant.INTENT_FIRST),
    ],
)
def test_what_breaks_an_invariant(intent: Intent, source: View, destination: View, broken: Invariant) -> None:
    assert violations(intent, source, destination)[0].invariant is broken


@pytest.mark.parametrize(
    ("intent", "source", "destination"),
    [
        (COPYING, COPIES, LOADS),
        (SWITCHING, DONE, LOADED),
        (HANDED, DONE, RUNS),
        (RETIRING, DEAD, RUNS),
        # After a reboot the record's last lines may be lost, and the hand-over counts as done.
        (taken_up(HANDED), COPIES, LOADS),
        # Another controller may have begun it and not lived to say so.
        (taken_up(PREPARING), COPIES, LOADS),
    ],
)
def test_what_breaks_none(intent: Intent, source: View, destination: View) -> None:
    assert violations(intent, source, destination) == ()


#: No invariant asks for the others.
ASKED_FOR = [each for each in INTENTS if not (each.dismissed or each.restored or each.undo is State.FAILED)]


@pytest.mark.parametrize("source", SOURCES, ids=sentence)
def test_no_step_of_the_table_breaks_one(source: View, fitting: Callable[[tuple[Row, ...]], None]) -> None:
    seen: dict[object, tuple[object, ...]] = {}
    for now in every_situation(source, ASKED_FOR, fitting):
        if violations(now.intent, now.source, now.destination):
            continue
        answer = decide(now.intent, now.source, now.destination, overdue=now.overdue)
        if answer.step not in (Step.WAIT, Step.END):
            left = after(answer.step, now.intent, now.source, now.destination)
            for each in violations(*left):
                seen.setdefault((answer.row, each.invariant), (now, left))
    assert not seen


class TestHeld:
    WAIT = Next(step=Step.WAIT, row="copying", why="memory is being copied")

    def test_instead_of_any_step_that_the_table_would_take(self) -> None:
        answer = guarded(self.WAIT, COPYING, COPIES, RUNS)
        assert (answer.state, answer.row) == (State.HELD, "never-two")

    def test_by_the_row_of_the_table_where_that_holds_it_anyway(self) -> None:
        row = decide(COPYING, COPIES, RUNS)
        assert guarded(row, COPYING, COPIES, RUNS) is row
        assert row.row == "both-run"

    def test_not_against_a_person_who_has_said_where_the_guest_is(self) -> None:
        said = replace(COPYING, said=OperatorAnswer.SOURCE)
        assert guarded(self.WAIT, said, COPIES, RUNS) is self.WAIT

    async def test_a_migration_whose_ends_show_an_impossible_pair_is_held_and_says_so(self) -> None:
        """The destination says that it has a whole guest, and the source still copies it."""
        says = {
            "query-status": {"running": False, "status": "paused"},
            "query-migrate": {"status": "completed"},
        }

        async with pair() as both:

            def distort(command: str, identifier: Any) -> bytes | None:
                if both.source.migration_status != "active" or command not in says:
                    return None
                return json.dumps({"return": says[command], "id": identifier}).encode() + b"\r\n"

            both.destination.answer_with(distort)
            # It copies until somebody has looked at the destination again.
            both.migration.requests.share = 2 * MIB
            result = await both.move()
            assert result is not None
            assert (result.state, result.held_code) == (State.HELD, "intent-first"), result
            assert "the destination has a whole guest" in str(result.error)
            told = [each for each in result.decisions if each.action == VIOLATED]
            assert [each.numbers for each in told] == [{"invariant": "intent-first"}]
            assert (both.source.running, both.destination.running) == (True, False)
