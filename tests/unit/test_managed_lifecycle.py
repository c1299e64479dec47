"""The table of migrations that a manager carries out, over everything that both ends can show."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from migrator.core.migration import managed_lifecycle
from migrator.core.migration.managed_lifecycle import ManagerCall, agrees, awaited, decide
from migrator.core.migration.managed_situation import (
    DestinationHas,
    SourceHas,
    destination_has,
    source_has,
    standing_copy,
)
from migrator.core.migration.rules import Step
from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer
from migrator.core.model import MigrationStatus, ProcessState, RunState, Sample, State, View

_VIEWS = [
    View(process=ProcessState.DEAD),
    View(process=ProcessState.DEAD, ended=True),
    View(process=ProcessState.UNKNOWN),
    *(
        View(process=ProcessState.ALIVE, answers=True, run=run, status=status)
        for run in RunState
        for status in MigrationStatus
    ),
]
#: One view for each thing that an end can have.
_SOURCES = {source_has(view): view for view in _VIEWS}
_DESTINATIONS = {destination_has(view): view for view in _VIEWS}
_CALLS = (
    ManagerCall(),
    ManagerCall(runs=True),
    ManagerCall(went_well=True),
    ManagerCall(failed=True),
    ManagerCall(failed=True, watched=True),
    ManagerCall(failed=True, source_watched=True),
)
_STEPS = {
    *(Step.WAIT, Step.CANCEL, Step.PAUSE_STREAM, Step.RECOVER, Step.REVIVE),
    *(Step.FENCE_SOURCE, Step.HALT, Step.END),
}
_INTENTS = [
    Intent(milestone=milestone, undo=undo, postcopy=postcopy, said=said, stopped_by_us=stopped_by_us)
    for milestone in (Milestone.PREPARING, Milestone.MIGRATING, Milestone.SWITCHING, Milestone.HANDED_OVER)
    for undo in (None, State.CANCELLED, State.FAILED)
    for postcopy in (False, True)
    for said in (None, *OperatorAnswer)
    for stopped_by_us in (False, True)
]
#: Overdue, and so long that a manager has noticed that its peer is gone.
_LATE = ((False, False), (True, False), (True, True))
_HERE, _THERE = SourceHas, DestinationHas
_NOWHERE = {_THERE.NOTHING, _THERE.ENDED}


def test_every_end_is_classified_and_every_class_is_met() -> None:
    assert set(_SOURCES) == set(SourceHas)
    assert set(_DESTINATIONS) == set(DestinationHas)


@pytest.mark.parametrize("here", SourceHas)
def test_every_combination_has_an_answer_that_is_safe(here: SourceHas) -> None:
    source = _SOURCES[here]
    for (there, target), intent, call, (overdue, lapsed), expired in itertools.product(
        _DESTINATIONS.items(), _INTENTS, _CALLS, _LATE, (False, True)
    ):
        answer = decide(intent, source, target, call, overdue=overdue, lapsed=lapsed, expired=expired)
        case = (here, there, intent, call, overdue, lapsed, expired, answer)
        assert answer.step in _STEPS, case
        assert (answer.outcome is not None) == (answer.step is Step.END), case
        if answer.outcome is State.COMPLETED:
            # It is there, and nothing of it is here: or the manager has said so, and cannot be asked any more.
            assert there in {_THERE.RUNS, _THERE.RESTS}, case
            assert here in {_HERE.NOTHING, _HERE.ENDED} or (call.went_well and here is _HERE.SILENT), case
        if answer.outcome in {State.FAILED, State.CANCELLED} and answer.row != "said-lost":
            assert here in {_HERE.RUNS, _HERE.RESTS}, case
            assert there in _NOWHERE | {_THERE.SILENT}, case
            if here is _HERE.RESTS and intent.stopped_by_us and intent.milestone is not Milestone.PREPARING:
                # It would be let go on, and rests like that after its switch, too: its manager has said that it failed.
                assert call.failed, case
                assert call.watched, case
                assert there in _NOWHERE, case
            if there is _THERE.SILENT:
                assert intent.milestone < Milestone.SWITCHING, case
                # Nor was there a switch that nobody saw: whoever takes it up from another controller cannot tell.
                assert intent.milestone is Milestone.PREPARING or call.source_watched, case
        if answer.step is Step.REVIVE:
            assert there in _NOWHERE, case
            assert not call.runs, case
            assert intent.said is OperatorAnswer.SOURCE, (
                case
            )  # it may have run there, and written to its disks
        if answer.step is Step.CANCEL:
            assert here in {_HERE.COPIES, _HERE.SWITCHES}, case
            assert here is _HERE.COPIES or there in {_THERE.WAITS, *_NOWHERE}, case
            assert not intent.postcopy, case
        if answer.step is Step.RECOVER:
            assert (here, there) == (_HERE.BROKEN, _THERE.BROKEN), case
            assert not call.runs, case
        if answer.step is Step.PAUSE_STREAM:
            assert here is _HERE.SERVES, case
            assert there in {_THERE.FETCHES, _THERE.BROKEN}, case  # it would be lost before it runs
        if answer.step is Step.FENCE_SOURCE:
            assert (here, there) == (_HERE.SWITCHES, _THERE.RUNS), case
        if here is _HERE.RUNS and there is _THERE.SILENT and intent.milestone >= Milestone.SWITCHING:
            assert answer.step is Step.HALT or (call.runs and answer.step is Step.WAIT), case


def test_guest_that_runs_at_its_source_is_held_until_its_target_gives_it_up() -> None:
    for intent, call in itertools.product(_INTENTS, _CALLS):
        if call.runs:
            continue
        answer = decide(
            intent, _SOURCES[_HERE.RUNS], _DESTINATIONS[_THERE.WAITS], call, overdue=True, lapsed=True
        )
        assert (answer.outcome, answer.row) == (State.HELD, "left-over")
        sooner = decide(intent, _SOURCES[_HERE.RUNS], _DESTINATIONS[_THERE.WAITS], call, overdue=True)
        assert sooner.step is Step.WAIT
        assert "libvirt at its target" in awaited(answer.row)
        for gone in _NOWHERE:
            released = decide(
                intent, _SOURCES[_HERE.RUNS], _DESTINATIONS[gone], call, overdue=True, lapsed=True
            )
            assert (released.outcome, released.row) == (intent.undo or State.FAILED, "stays")


def test_switch_that_libvirt_is_about_is_watched_where_the_guest_may_run_at_its_target() -> None:
    intent, silent = Intent(milestone=Milestone.SWITCHING), _SOURCES[_HERE.SILENT]
    for there in (_THERE.SILENT, _THERE.RUNS, _THERE.RESTS, _THERE.WAITS):
        at_work = decide(intent, silent, _DESTINATIONS[there], ManagerCall(runs=True), overdue=True)
        assert (at_work.outcome is State.HELD) == (there is _THERE.WAITS)
        ended = decide(intent, silent, _DESTINATIONS[there], ManagerCall(failed=True), overdue=True)
        assert ended.outcome is State.HELD


def test_standing_copy_can_be_cancelled_until_all_of_it_is_sent() -> None:
    stands = View(
        process=ProcessState.ALIVE, answers=True, run=RunState.FINISH_MIGRATE, status=MigrationStatus.DEVICE
    )
    intent = Intent(milestone=Milestone.SWITCHING, undo=State.CANCELLED)
    waits, call = _DESTINATIONS[_THERE.WAITS], ManagerCall(runs=True)
    for remaining, step in ((4096, Step.CANCEL), (0, Step.WAIT)):
        source = standing_copy(replace(stands, sample=Sample(remaining_bytes=remaining)))
        assert decide(intent, source, waits, call).step is step
    assert source_has(standing_copy(stands)) is SourceHas.SWITCHES


def test_guest_that_runs_twice_is_held_whatever_was_meant() -> None:
    for intent in _INTENTS:
        answer = decide(intent, _SOURCES[_HERE.RUNS], _DESTINATIONS[_THERE.RUNS], ManagerCall(), overdue=True)
        assert (answer.outcome, answer.row) == (State.HELD, "runs-twice")


def test_word_of_a_person_is_taken_only_where_both_ends_show_the_same() -> None:
    for (here, source), (there, target) in itertools.product(_SOURCES.items(), _DESTINATIONS.items()):
        taken = {word for word in OperatorAnswer if not agrees(word, source, target)}
        if OperatorAnswer.SOURCE in taken:
            assert here in {_HERE.RUNS, _HERE.RESTS, _HERE.STANDS}
            assert there in _NOWHERE
        if OperatorAnswer.DESTINATION in taken:
            assert there in {_THERE.RUNS, _THERE.RESTS}
            assert here in {_HERE.NOTHING, _HERE.ENDED}
        if OperatorAnswer.LOST in taken:
            assert here in {_HERE.NOTHING, _HERE.ENDED}
            assert there in _NOWHERE


def test_postcopy_is_never_cancelled() -> None:
    for view in _VIEWS:
        assert not managed_lifecycle.can_cancel(Intent(postcopy=True), view)
