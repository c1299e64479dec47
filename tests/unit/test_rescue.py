"""Which way out of a pair that nobody drives, over everything that both ends can show."""

from __future__ import annotations

from itertools import product

import pytest

from migrator.core.migration.rescue import GONE, RescuePlan, RescueRefusal, RescueSituation, find_rescue
from migrator.core.migration.situation import (
    DestinationIs,
    Intent,
    OperatorAnswer,
    SourceIs,
    destination_is,
    source_is,
)
from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from tests.unit.test_lifecycle_table import DESTINATIONS, SOURCES, every_view, shown

S, D, R, M = SourceIs, DestinationIs, RunState, MigrationStatus
AT_SWITCH, COPIES = shown(R.FINISH_MIGRATE, M.PRE_SWITCHOVER), shown(R.RUNNING, M.ACTIVE)
DONE, SERVES = shown(R.POSTMIGRATE, M.COMPLETED), shown(R.FINISH_MIGRATE, M.POSTCOPY_ACTIVE)
LEFT, RUNS = shown(R.POSTMIGRATE, M.CANCELLED), shown(R.RUNNING, M.CANCELLED)
DEVICE, BROKEN = shown(R.FINISH_MIGRATE, M.DEVICE), shown(R.FINISH_MIGRATE, M.POSTCOPY_PAUSED)
LOADS, LOADED = shown(R.INMIGRATE, M.ACTIVE), shown(R.PAUSED, M.COMPLETED)
READY, ARRIVED = shown(R.PAUSED, M.POSTCOPY_ACTIVE), shown(R.RUNNING, M.COMPLETED)
FETCHES, SILENT = shown(R.RUNNING, M.POSTCOPY_ACTIVE), View(process=ProcessState.ALIVE)


def fenceable(view: View) -> View:
    return View(**{**vars(view), "can_fence": True})


@pytest.mark.parametrize(
    ("source", "destination", "word"),
    [
        (AT_SWITCH, LOADS, OperatorAnswer.SOURCE),
        (AT_SWITCH, GONE, OperatorAnswer.SOURCE),
        (AT_SWITCH, SILENT, OperatorAnswer.SOURCE),
        (COPIES, LOADS, OperatorAnswer.SOURCE),
        (COPIES, GONE, OperatorAnswer.SOURCE),
        (LEFT, LOADS, OperatorAnswer.SOURCE),
        (RUNS, LOADS, OperatorAnswer.SOURCE),
        (DONE, LOADED, OperatorAnswer.DESTINATION),
        (DONE, ARRIVED, OperatorAnswer.DESTINATION),
        (SERVES, READY, OperatorAnswer.DESTINATION),
        (SERVES, FETCHES, OperatorAnswer.DESTINATION),
        (BROKEN, FETCHES, OperatorAnswer.DESTINATION),
    ],
)
def test_the_one_way_that_both_ends_leave_is_taken(
    source: View, destination: View, word: OperatorAnswer
) -> None:
    found = find_rescue(RescueSituation(source=source, destination=fenceable(destination), runs=True))
    assert isinstance(found, RescuePlan)
    assert found.word is word
    assert found.says[-1] == f"the guest then runs at the {word}"


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        (DONE, GONE, "say --guest-at source"),
        (LEFT, GONE, "say --guest-at source"),
        (GONE, LOADED, "say --guest-at destination"),
        (RUNS, ARRIVED, "say --guest-at source"),
        (RUNS, LOADED, "say --guest-at source"),
        (DEVICE, LOADS, "look at the disks"),
        (SERVES, GONE, "can never run it alone"),
        (GONE, READY, "its process is gone"),
        (AT_SWITCH, ARRIVED, "look at the disks"),
        (SILENT, LOADS, "wake its QEMU (kill -CONT)"),
        (DONE, SILENT, "wake its QEMU (kill -CONT)"),
    ],
)
def test_where_a_person_has_to_decide_they_are_told_what(source: View, destination: View, says: str) -> None:
    found = find_rescue(
        RescueSituation(source=fenceable(source), destination=fenceable(destination), runs=True)
    )
    assert isinstance(found, RescueRefusal)
    assert says in found.why
    assert not found.nothing_to_do


def test_two_guests_are_not_taken_for_one() -> None:
    found = find_rescue(
        RescueSituation(source=DONE, destination=fenceable(ARRIVED), runs=True, same_guest=False)
    )
    assert found == RescueRefusal(why="the two ends show different guests: check the addresses")


@pytest.mark.parametrize(
    ("source", "destination"), [(RUNS, GONE), (GONE, ARRIVED), (GONE, GONE), (GONE, LOADS)]
)
def test_a_guest_that_takes_part_in_no_migration_needs_no_rescue(source: View, destination: View) -> None:
    found = find_rescue(RescueSituation(source=source, destination=destination))
    assert isinstance(found, RescueRefusal)
    assert found.nothing_to_do


def test_whether_it_shall_run_is_asked_where_nothing_tells() -> None:
    found = find_rescue(RescueSituation(source=DONE, destination=fenceable(LOADED)))
    assert isinstance(found, RescueRefusal)
    assert "say --run-state running or paused" in found.why


def test_a_guest_that_somebody_paused_is_not_run_but_by_a_persons_word() -> None:
    paused = shown(R.PAUSED, M.ACTIVE)
    for said in (False, True):
        found = find_rescue(
            RescueSituation(source=paused, destination=fenceable(LOADS), runs=True, run_state_said=said)
        )
        assert isinstance(found, RescuePlan)
        assert found.intent.guest_runs is said


def test_without_a_persons_word_no_end_is_lost_that_may_hold_what_the_other_has_not() -> None:
    sources = [
        *SOURCES,
        *(view for view in every_view() if view.answers and view.process is ProcessState.ALIVE),
    ]
    for source, destination in product(sources, map(fenceable, DESTINATIONS)):
        found = find_rescue(RescueSituation(source=fenceable(source), destination=destination, runs=True))
        if not isinstance(found, RescuePlan):
            continue
        here, there = source_is(source), destination_is(destination)
        doing = " ".join(found.says)
        assert isinstance(found.intent, Intent)
        if "destination's process is killed" in doing or "is ended" in doing.partition("source, which")[0]:
            assert there in {D.LOADS, D.FAILED, D.SILENT}, (source, destination, found)
        assert "the source's process is killed" not in doing
        if "told to run the guest" in doing:
            assert here in {S.DONE, S.SERVES}, (source, destination, found)
            assert there in {D.LOADED, D.READY}, (source, destination, found)
        if "source is told to go on" in doing:
            assert here is S.LEFT_STOPPED, (source, destination, found)
        if "migrate_cancel" in doing:
            assert here in {S.COPIES, S.AT_SWITCH}, (source, destination, found)
