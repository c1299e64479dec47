"""The decision table over the whole product of what can be meant and seen: always an answer, and never a deadly one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import pytest

from migrator.core.migration import lifecycle
from migrator.core.migration.lifecycle import ROWS, Next, Row, Step, can_cancel, decide, state_of
from migrator.core.migration.operator_rows import OPERATOR_ROWS
from migrator.core.migration.situation import (
    DestinationIs,
    Intent,
    Milestone,
    SourceIs,
    classify,
    destination_is,
    not_handed_over,
    source_is,
)
from migrator.core.model import MigrationStatus, ProcessState, RunState, Sample, State, View

S, D = SourceIs, DestinationIs
R, M = RunState, MigrationStatus
GONE_S, GONE_D = {S.DEAD, S.ENDED}, {D.DEAD, D.ENDED}
#: Whatever the record says: a source that shows this has not been switched.
OWNS = {S.RUNS, S.RESTS, S.COPIES, S.AT_SWITCH}


def every_view() -> Iterator[View]:
    """Everything that an end can show, possible or not."""
    for process, answers, ended in product(ProcessState, (False, True), (False, True)):
        for run, status in product(R, M) if answers else [(R.OTHER, M.NONE)]:
            yield View(process=process, answers=answers, run=run, status=status, ended=ended)


def shown(run: RunState, status: MigrationStatus) -> View:
    return View(process=ProcessState.ALIVE, answers=True, run=run, status=status)


DEAD = View(process=ProcessState.DEAD)
ENDED = View(process=ProcessState.DEAD, ended=True)
SILENT = View(process=ProcessState.ALIVE)
UNKNOWN = View(process=ProcessState.UNKNOWN)
#: One view of each class, and those at which a rule looks closer.
SOURCES = [
    *(DEAD, ENDED, SILENT, UNKNOWN, shown(R.RUNNING, M.FAILED), shown(R.PAUSED, M.NONE)),
    *(shown(R.PRELAUNCH, M.COMPLETED), shown(R.RUNNING, M.ACTIVE), shown(R.FINISH_MIGRATE, M.PRE_SWITCHOVER)),
    *(shown(R.FINISH_MIGRATE, M.DEVICE), shown(R.FINISH_MIGRATE, M.POSTCOPY_ACTIVE)),
    *(shown(R.FINISH_MIGRATE, M.POSTCOPY_PAUSED), shown(R.POSTMIGRATE, M.COMPLETED)),
    *(shown(R.FINISH_MIGRATE, M.POSTCOPY_RECOVER),),
    *(replace(shown(R.FINISH_MIGRATE, M.POSTCOPY_ACTIVE), sample=Sample(remaining_bytes=1)),),
    *(
        shown(R.FINISH_MIGRATE, M.CANCELLING),
        shown(R.PAUSED, M.CANCELLING),
        shown(R.POSTMIGRATE, M.CANCELLED),
    ),
]
DESTINATIONS = [
    *(
        DEAD,
        ENDED,
        SILENT,
        shown(R.INMIGRATE, M.SETUP),
        shown(R.INMIGRATE, M.ACTIVE),
        shown(R.INMIGRATE, M.FAILED),
    ),
    *(shown(R.PAUSED, M.COMPLETED), shown(R.SHUTDOWN, M.COMPLETED), shown(R.PAUSED, M.POSTCOPY_ACTIVE)),
    *(
        shown(R.RUNNING, M.COMPLETED),
        shown(R.RUNNING, M.POSTCOPY_ACTIVE),
        shown(R.RUNNING, M.POSTCOPY_PAUSED),
    ),
    shown(R.PAUSED, M.NONE),
]
#: Which end can be fenced: either, so that none is taken for the other.
FENCES = [(True, False), (False, True)]


def every_intent() -> Iterator[Intent]:
    flags = (False, True)
    undone = [*product(Milestone, (None, State.CANCELLED)), (Milestone.SWITCHING, State.FAILED)]
    for milestone, undo in undone:
        for postcopy, live, dismissed, restored, fence_failed in product(flags, repeat=5):
            for guest_runs, stopped_by_us in [(False, False), (True, False), (True, True)]:
                yield Intent(
                    milestone=milestone,
                    postcopy=postcopy,
                    guest_runs=guest_runs,
                    stopped_by_us=stopped_by_us,
                    undo=undo,
                    live=live,
                    dismissed=dismissed,
                    restored=restored,
                    fence_failed=fence_failed,
                )


INTENTS = list(every_intent())


@dataclass(frozen=True, slots=True)
class Situation:
    """What is meant and what is seen, with the table's own words for it."""

    intent: Intent
    source: View
    destination: View
    overdue: bool
    here: SourceIs
    there: DestinationIs
    expired: bool = False

    @property
    def handed(self) -> bool:
        return self.intent.milestone >= Milestone.HANDED_OVER

    @property
    def switched(self) -> bool:
        return self.intent.milestone >= Milestone.SWITCHING

    @property
    def retiring(self) -> bool:
        return self.intent.milestone is Milestone.RETIRING

    @property
    def mends(self) -> bool:
        """A silent destination has run the guest, or joined a recovery of its stream."""
        return self.handed or self.source.status in (M.POSTCOPY_RECOVER, M.POSTCOPY_RECOVER_SETUP)

    @property
    def whole(self) -> bool:
        return self.there in (D.RUNS, D.LOADED)


def every_situation(
    source: View, intents: list[Intent], fitting: Callable[[tuple[Row, ...]], None]
) -> Iterator[Situation]:
    """The product of these intents and of everything that can be seen, for one view of the source.

    :param fitting: is told which rows can answer: leaving the others out is no other answer, but five times as quick.
    """
    for destination, (fence_source, fence) in product(DESTINATIONS, FENCES):
        mine, other = replace(source, can_fence=fence_source), replace(destination, can_fence=fence)
        for intent in intents:
            here, there = classify(intent, mine, other)
            fitting(_fitting(here, there))
            stream = {here, there} & {S.BROKEN, S.SERVES, D.FETCHES, D.BROKEN}
            for overdue in (False, True):
                for expired in (False, True) if stream else (False,):
                    yield Situation(intent, mine, other, overdue, here, there, expired)


@cache
def _fitting(here: SourceIs, there: DestinationIs) -> tuple[Row, ...]:
    return tuple(row for row in ROWS if here in row.source and there in row.destination)


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[Row, ...]], None]:
    """Has :func:`decide` look at these rows only."""

    def only(rows: tuple[Row, ...]) -> None:
        lifecycle.ROWS = rows

    monkeypatch.setattr(lifecycle, "ROWS", ROWS)
    return only


def sentence(view: View) -> str:
    """A view as a test's name has it."""
    if not view.answers:
        return (
            "ended"
            if view.ended
            else {ProcessState.DEAD: "dead", ProcessState.ALIVE: "silent"}.get(view.process, "unknown")
        )
    return f"{view.run}-{view.status}" + ("-has-more" if view.sample is not None else "")


class TestClassification:
    def test_has_a_word_for_everything_that_can_be_seen(self) -> None:
        assert {source_is(view) for view in every_view()} == set(S)
        assert {destination_is(view) for view in every_view()} == set(D)

    def test_of_the_representatives_covers_every_class(self) -> None:
        assert {source_is(view) for view in SOURCES} == set(S)
        assert {destination_is(view) for view in DESTINATIONS} == set(D)

    def test_takes_only_a_proof_for_death(self) -> None:
        for view in every_view():
            assert (source_is(view) in GONE_S) == (view.process is ProcessState.DEAD)
            assert (destination_is(view) in GONE_D) == (view.process is ProcessState.DEAD)

    def test_never_takes_a_running_guest_for_one_that_stands_still(self) -> None:
        for view in every_view():
            if view.answers and view.process is not ProcessState.DEAD and view.run is R.RUNNING:
                assert source_is(view) not in {S.RESTS, S.AT_SWITCH, S.SERVES, S.DONE, S.LEFT_STOPPED} or (
                    view.status is M.PRE_SWITCHOVER
                )
                assert destination_is(view) not in {D.LOADS, D.LOADED, D.READY}

    def test_of_a_source_that_can_no_longer_run_takes_both_its_words(self) -> None:
        for view in every_view():
            if source_is(view) is S.DONE:
                assert (view.run, view.status) == (R.POSTMIGRATE, M.COMPLETED)
            if source_is(view) is S.SERVES:
                assert view.run in (R.FINISH_MIGRATE, R.POSTMIGRATE)
                assert view.status in (M.POSTCOPY_ACTIVE, M.POSTCOPY_DEVICE)

    def test_of_a_complete_destination_takes_both_its_words(self) -> None:
        for view in every_view():
            if destination_is(view) in (D.LOADED, D.RUNS):
                assert view.status is M.COMPLETED
                assert view.run is not R.INMIGRATE

    def test_of_an_unknown_status_is_that_something_goes_on(self) -> None:
        assert source_is(shown(R.RUNNING, M("in-a-later-qemu"))) is S.SWITCHING
        assert destination_is(shown(R.INMIGRATE, M("in-a-later-qemu"))) is D.LOADS
        assert destination_is(shown(R.PAUSED, M("in-a-later-qemu"))) is D.LOADS

    def test_of_a_guest_that_once_migrated_in_is_not_that_it_left(self) -> None:
        assert source_is(shown(R.RUNNING, M.COMPLETED)) is S.RUNS
        assert source_is(shown(R.PAUSED, M.COMPLETED)) is S.RESTS


@pytest.mark.parametrize(
    ("source", "intents"),
    [
        # Every fifth intent in `make test`: every three values of what is meant are among them together.
        *(pytest.param(each, INTENTS[::5], id=f"some-{sentence(each)}") for each in SOURCES),
        *(
            pytest.param(each, INTENTS, id=f"all-{sentence(each)}", marks=pytest.mark.matrix)
            for each in SOURCES
        ),
    ],
)
def test_no_answer_breaks_an_invariant(
    source: View, intents: list[Intent], fitting: Callable[[tuple[Row, ...]], None]
) -> None:
    wrong: dict[tuple[str, str], str] = {}
    for now in every_situation(source, intents, fitting):
        answer = decide(now.intent, now.source, now.destination, overdue=now.overdue, expired=now.expired)
        for fault in faults(answer, now):
            wrong.setdefault((answer.row, fault), f"{answer.row}: {fault}, in {now}")
    assert not wrong, "\n".join(wrong.values())


def faults(answer: Next, now: Situation) -> Iterator[str]:
    """What is wrong with an answer."""
    if answer.step is Step.END:
        assert answer.state is not None
        rules = ENDS.get(answer.state, ())
    else:
        assert answer.state is None
        rules = STEPS[answer.step]
    for fault, holds in rules:
        if not holds(now):
            yield fault


#: Of a stream there is no end by time alone but the one at which its recovery is not tried any more.
STREAM = {S.SERVES, S.BROKEN, D.FETCHES, D.BROKEN}

Rules = list[tuple[str, Callable[[Situation], bool]]]

STEPS: dict[Step, Rules] = {
    Step.WAIT: [
        (
            "waits for ever",
            lambda now: not now.overdue or (not now.expired and bool({now.here, now.there} & STREAM)),
        )
    ],
    Step.PAUSE_STREAM: [
        ("there is no stream", lambda now: now.here in (S.SERVES, S.BROKEN)),
        (
            "the destination may still take in the devices' state",
            lambda now: now.there in (D.FETCHES, D.READY, D.BROKEN) or (now.there is D.SILENT and now.mends),
        ),
        ("it still carries something", lambda now: now.overdue),
        (
            "the source has sent all of it, and would fail",
            lambda now: now.here is S.BROKEN or now.source.sample is not None,
        ),
        ("it is past what anybody waits for", lambda now: not now.expired),
    ],
    Step.RECOVER: [
        ("the stream is not broken", lambda now: now.here is S.BROKEN),
        ("the destination has it still", lambda now: now.there in (D.BROKEN, D.SILENT)),
        ("it is past what anybody waits for", lambda now: not now.expired),
    ],
    Step.SWITCH: [
        ("no switch is due", lambda now: now.here is S.AT_SWITCH),
        (
            "the destination is not ready",
            lambda now: now.there is D.LOADS and now.destination.status in (M.ACTIVE, M.OTHER),
        ),
        ("it shall be undone", lambda now: not now.intent.undo or now.switched or not now.intent.live),
    ],
    Step.HAND_OVER: [
        ("the destination is not stopped and loaded", lambda now: now.there in (D.LOADED, D.READY)),
        (
            "the source may run by itself",
            lambda now: (
                now.here in {*GONE_S, S.DONE, S.SERVES} or (now.here is S.BROKEN and now.there is D.LOADED)
            ),
        ),
        (
            "the guest's memory is not all there and nobody serves it",
            lambda now: now.there is D.LOADED or now.here in (S.SERVES, S.DONE),
        ),
        ("the guest shall stand still", lambda now: now.intent.guest_runs),
        (
            "the source may have run on before it went",
            lambda now: now.here not in GONE_S or now.handed or (now.intent.live and not now.intent.undo),
        ),
    ],
    Step.RETIRE: [
        ("the destination has not all of the guest", lambda now: now.whole or now.there is D.ENDED),
        (
            "the guest's end at the destination is none of its own",
            lambda now: now.there is not D.ENDED or now.handed,
        ),
        (
            "the guest shall run first",
            lambda now: now.there is not D.LOADED or not now.intent.guest_runs or now.retiring,
        ),
        (
            "the source may run the guest",
            lambda now: (
                now.here not in OWNS
                or (now.here is S.RESTS and now.handed and now.intent.postcopy and now.intent.stopped_by_us)
            ),
        ),
        ("it does not answer and may run the guest", lambda now: now.here is not S.SILENT or now.handed),
        ("it is gone", lambda now: now.here not in GONE_S),
    ],
    Step.FENCE_SOURCE: [
        ("the destination has not all of the guest", lambda now: now.there is D.LOADED),
        ("it answers", lambda now: now.here is S.SILENT and now.overdue),
        ("it may own the guest", lambda now: now.switched and not now.intent.undo),
        ("it may have run on unwatched", lambda now: now.intent.live or now.handed),
        ("it cannot be fenced", lambda now: now.source.can_fence and not now.intent.fence_failed),
    ],
    Step.CANCEL: [
        (
            "there is nothing to cancel",
            lambda now: (
                now.here in (S.COPIES, S.AT_SWITCH, S.SWITCHING) or (now.here is S.SILENT and not now.overdue)
            ),
        ),
        ("the destination may have run the guest", lambda now: now.here is not S.SILENT or not now.handed),
        (
            "the switch may have been sent, and the destination is not dead",
            lambda now: (
                now.here is S.COPIES
                or now.there in GONE_D
                or (now.here is S.AT_SWITCH and now.intent.live and not now.switched)
            ),
        ),
        ("the destination has run the guest", lambda now: now.there not in (D.RUNS, D.FETCHES, D.BROKEN)),
        (
            "a postcopy switch has no way back",
            lambda now: now.here not in (S.SWITCHING, S.SILENT) or not now.intent.postcopy,
        ),
    ],
    Step.FENCE_DESTINATION: [
        ("it is gone", lambda now: now.there not in GONE_D),
        ("it runs the guest", lambda now: now.there not in (D.RUNS, D.FETCHES, D.BROKEN, D.STRANGE)),
        ("it may run the guest", lambda now: not now.handed or now.here in (S.COPIES, S.AT_SWITCH)),
        ("the source cannot go on", lambda now: now.here not in {S.SERVES, S.BROKEN, *GONE_S}),
        (
            "it may hold the only copy",
            lambda now: (
                now.here is not S.SILENT or not now.switched or now.source.process is ProcessState.ALIVE
            ),
        ),
        (
            "a postcopy switch has no way back",
            lambda now: not (now.intent.postcopy and now.switched) or now.here in (S.COPIES, S.LEFT_STOPPED),
        ),
        ("it cannot be fenced", lambda now: now.destination.can_fence and not now.intent.fence_failed),
    ],
    Step.REVIVE: [
        ("the destination is not proven dead", lambda now: now.there in GONE_D),
        ("the destination may have run the guest", lambda now: not now.handed),
        (
            "a postcopy switch has no way back",
            # Unless QEMU itself says that it failed and that it may run again.
            lambda now: now.here is S.LEFT_STOPPED or not now.intent.postcopy,
        ),
        ("it is not left stopped", lambda now: now.here in (S.DONE, S.LEFT_STOPPED)),
    ],
    Step.RESUME: [
        ("it is not being cancelled", lambda now: now.source.status is M.CANCELLING),
        ("the switch may have been sent", lambda now: now.intent.live and not now.switched),
        (
            "we have not stopped it",
            lambda now: now.source.run is RunState.PAUSED and now.intent.stopped_by_us,
        ),
        ("the guest shall stand still", lambda now: now.intent.guest_runs),
        (
            "the destination may run the guest",
            lambda now: not now.handed and now.there in {D.LOADS, D.FAILED, D.SILENT, *GONE_D},
        ),
    ],
    Step.RESTORE: [
        ("the source is not settled", lambda now: now.here in (S.RUNS, S.RESTS)),
        (
            "the source would run past the point of no return",
            lambda now: not (now.handed and now.here is S.RESTS and now.intent.stopped_by_us),
        ),
    ],
    Step.DISMISS: [
        ("it is gone", lambda now: now.there not in GONE_D),
        ("it runs the guest", lambda now: now.there not in (D.RUNS, D.FETCHES, D.BROKEN, D.STRANGE)),
        ("it may run the guest", lambda now: not now.handed),
        ("the source is not settled", lambda now: now.here in {S.RUNS, S.RESTS, *GONE_S}),
        (
            "it holds all that is left of the guest",
            lambda now: now.here not in GONE_S or now.there is not D.LOADED,
        ),
        (
            "it may hold all that is left of the guest",
            lambda now: now.here not in GONE_S or not now.switched or (now.there in (D.LOADS, D.FAILED)),
        ),
    ],
}
SETTLED: Rules = [
    ("it runs again by itself after it ran elsewhere", lambda now: not (now.handed and now.intent.live)),
    ("the guest is not at the source", lambda now: now.here in (S.RUNS, S.RESTS)),
    ("the source is not as it was", lambda now: now.intent.restored),
    ("the destination is left", lambda now: now.there in GONE_D or (now.intent.dismissed and not now.handed)),
]
ENDS: dict[State, Rules] = {
    State.COMPLETED: [
        ("the guest is not there", lambda now: now.whole),
        (
            "the guest does not run",
            lambda now: now.there is D.RUNS or not now.intent.guest_runs or now.retiring,
        ),
        ("the source is left", lambda now: now.here in GONE_S),
    ],
    State.FAILED: SETTLED,
    State.CANCELLED: [*SETTLED, ("nobody asked for it", lambda now: now.intent.undo is State.CANCELLED)],
    State.GUEST_ENDED: [
        ("it has not ended", lambda now: now.here is S.ENDED or (now.there is D.ENDED and now.handed)),
        (
            "the destination is left",
            lambda now: now.there in GONE_D or (now.intent.dismissed and not now.handed),
        ),
    ],
}


def test_every_row_is_the_answer_to_something(fitting: Callable[[tuple[Row, ...]], None]) -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names), "the code of a held migration names one row"
    missing = set(names) - {
        row.name for row in OPERATOR_ROWS
    }  # those wait for a word: see test_lifecycle_word.py
    seen = product((INTENTS[::11], INTENTS), SOURCES, DESTINATIONS, FENCES)
    for intents, source, destination, (fence_source, fence) in seen:
        mine, other = replace(source, can_fence=fence_source), replace(destination, can_fence=fence)
        for intent, overdue, expired in product(intents, (False, True), (False, True)):
            rows = _fitting(*classify(intent, mine, other))
            if missing.isdisjoint(row.name for row in rows):
                break
            fitting(rows)
            missing.discard(decide(intent, mine, other, overdue=overdue, expired=expired).row)
    assert missing == set()


def test_state_has_a_word_for_everything_that_goes_on() -> None:
    for intent, source, destination in product(INTENTS[::7], SOURCES, DESTINATIONS):
        assert not state_of(intent, source, destination).final


def test_one_whose_source_dies_while_it_copies_is_not_taken_to_be_past_its_stop() -> None:
    copying = Intent(milestone=Milestone.MIGRATING, live=True)
    dead = View(process=ProcessState.DEAD)
    for destination in DESTINATIONS:
        if destination_is(destination) in {D.LOADS, D.FAILED, D.SILENT, D.DEAD}:
            assert state_of(copying, dead, destination) is State.PRECOPY, destination


class TestCancelling:
    def test_is_safe_only_before_the_switch_may_have_been_sent(self) -> None:
        for intent, source in product(INTENTS, SOURCES):
            if can_cancel(intent, source) and source_is(source) is not S.COPIES:
                assert intent.milestone < Milestone.SWITCHING
                assert source_is(source) in {S.RUNS, S.RESTS, S.AT_SWITCH, S.SILENT}
                assert intent.live or source.status is M.CANCELLED

    def test_that_another_controller_has_sent_is_no_failure(self) -> None:
        taken_up = Intent(milestone=Milestone.MIGRATING, live=False)
        assert can_cancel(taken_up, shown(R.RUNNING, M.CANCELLED))
        assert not can_cancel(taken_up, shown(R.RUNNING, M.FAILED))

    def test_is_always_safe_while_memory_is_copied(self) -> None:
        assert all(can_cancel(intent, shown(R.RUNNING, M.ACTIVE)) for intent in INTENTS)


def test_every_row_that_ends_a_migration_carries_its_outcome_and_no_other_does() -> None:
    for row in ROWS:
        assert (row.answer.outcome is not None) is (row.answer.step in (Step.END, Step.RETIRE)), row.name


def test_a_guest_is_announced_where_it_has_arrived_and_nowhere_else() -> None:
    announced = {row.name for row in ROWS if row.answer.announce}
    arrived = {
        row.name for row in ROWS if row.answer.step is Step.RETIRE and row.answer.outcome is State.COMPLETED
    }
    assert announced == arrived != set()


UNSURE = Intent(milestone=Milestone.HANDED_OVER, live=False)
WAITS, WHOLE = shown(R.INMIGRATE, M.ACTIVE), shown(R.PAUSED, M.COMPLETED)


@pytest.mark.parametrize(
    ("source", "destination", "was_not"),
    [
        # A guard has ended it, which ends the destination.
        (shown(R.RUNNING, M.CANCELLED), DEAD, True),
        (shown(R.FINISH_MIGRATE, M.CANCELLING), DEAD, True),
        (shown(R.PAUSED, M.CANCELLED), SILENT, True),
        (shown(R.RUNNING, M.FAILED), WHOLE, True),
        (shown(R.RUNNING, M.ACTIVE), DEAD, True),
        (shown(R.FINISH_MIGRATE, M.PRE_SWITCHOVER), SILENT, True),
        (shown(R.RUNNING, M.NONE), WAITS, True),
        (shown(R.RUNNING, M.NONE), DEAD, False),
        (shown(R.POSTMIGRATE, M.COMPLETED), DEAD, False),
        (shown(R.RUNNING, M.COMPLETED), DEAD, False),
        (shown(R.FINISH_MIGRATE, M.DEVICE), DEAD, False),
        (shown(R.RUNNING, M.CANCELLED), ENDED, False),
        (shown(R.RUNNING, M.CANCELLED), shown(R.RUNNING, M.COMPLETED), False),
        (shown(R.RUNNING, M.ACTIVE), WHOLE, False),
    ],
)
def test_record_that_may_lack_its_last_entries_gives_way_to_a_source_that_shows_no_hand_over(
    source: View, destination: View, was_not: bool
) -> None:
    assert not_handed_over(UNSURE, source, destination) is was_not
    for sure in (
        replace(UNSURE, live=True),
        replace(UNSURE, ran_there=True),
        replace(UNSURE, milestone=Milestone.RETIRING),
    ):
        assert not not_handed_over(sure, source, destination)
    at_copy = source.status in (M.ACTIVE, M.PRE_SWITCHOVER)
    assert not_handed_over(replace(UNSURE, postcopy=True), source, destination) is (
        was_not and (at_copy or destination is WAITS)
    )
