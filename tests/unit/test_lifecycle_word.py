"""A person's word on a held migration, over the whole product of what can be meant, seen and said.

Never two, and never none where something can be saved; a word that is refused names one that is taken, or what makes
one be taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest

from migrator.core.migration import answer_review, lifecycle
from migrator.core.migration.answer_review import (
    AnswerReview,
    OperatorAction,
    review_answer,
    unrecorded_intent,
    with_answer,
)
from migrator.core.migration.lifecycle import ROWS, Next, Row, Step, decide
from migrator.core.migration.operator_rows import OPERATOR_ROWS
from migrator.core.migration.situation import (
    DestinationIs,
    Intent,
    Milestone,
    OperatorAnswer,
    SourceIs,
    as_found,
    classify,
)
from migrator.core.model import MigrationStatus, ProcessState, RunState, State, View
from tests.unit.test_lifecycle_table import DESTINATIONS, FENCES, SOURCES, Situation, faults, sentence, shown

S, D = SourceIs, DestinationIs
R, M = RunState, MigrationStatus
POSTCOPY = {status for status in M if status.startswith("postcopy")}
GONE_S, GONE_D = {S.DEAD, S.ENDED}, {D.DEAD, D.ENDED}
DEAD = View(process=ProcessState.DEAD)
#: Besides one of each class: what a source in postcopy shows before and after it is settled, one that runs on.
HERE = [
    *SOURCES,
    shown(R.RUNNING, M.POSTCOPY_ACTIVE),
    shown(R.RUNNING, M.CANCELLED),
    shown(R.FINISH_MIGRATE, M.FAILED),
]
THERE = [*DESTINATIONS, View(process=ProcessState.UNKNOWN)]


def every_intent(*, all_of_it: bool = False) -> Iterator[Intent]:
    flags = (False, True)
    undone = (None, State.CANCELLED, State.FAILED) if all_of_it else (None, State.FAILED)
    runs = [(False, False), (True, False), (True, True)] if all_of_it else [(False, False), (True, True)]
    for milestone, undo, restored in product(Milestone, undone, flags if all_of_it else (False,)):
        for postcopy, ran_there in product(flags, repeat=2):
            if ran_there and milestone < Milestone.HANDED_OVER:
                continue
            for guest_runs, stopped_by_us in runs:
                yield Intent(
                    milestone=milestone,
                    postcopy=postcopy,
                    guest_runs=guest_runs,
                    stopped_by_us=stopped_by_us,
                    undo=undo,
                    live=False,
                    restored=restored,
                    ran_there=ran_there,
                )


INTENTS = list(every_intent())
ALL_INTENTS = list(every_intent(all_of_it=True))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers, looked up instead of looked for, and each found once."""

    @cache
    def rows_of(here: SourceIs, there: DestinationIs) -> tuple[Row, ...]:
        return tuple(row for row in ROWS if here in row.source and there in row.destination)

    @cache
    def quick_decide(intent: Intent, source: View, destination: View, *, overdue: bool = False) -> Next:
        lifecycle.ROWS = rows_of(*classify(intent, source, destination))
        return decide(intent, source, destination, overdue=overdue)

    monkeypatch.setattr(lifecycle, "ROWS", ROWS)
    monkeypatch.setattr(answer_review, "_judge", cache(answer_review._judge))
    monkeypatch.setattr(answer_review, "decide", quick_decide)
    monkeypatch.setattr(lifecycle, "decide", quick_decide)


def every_pair(sources: list[View]) -> Iterator[tuple[View, View]]:
    for source, destination, (fence_source, fence) in product(sources, THERE, FENCES):
        yield replace(source, can_fence=fence_source), replace(destination, can_fence=fence)


def held_codes(intent: Intent, source: View, destination: View) -> Iterator[str | None]:
    """It is held for what both ends still show, or for what they showed before; or nobody knows what was meant."""
    yield lifecycle.decide(intent, source, destination, overdue=True).row
    yield "controller-failed"


@pytest.mark.parametrize(
    ("source", "intents"),
    [
        *(
            # Every other one in `make test`: what it has to be is true of all in the test below, too.
            pytest.param(
                each, INTENTS, id=f"most-{sentence(each)}", marks=pytest.mark.matrix if n % 2 else ()
            )
            for n, each in enumerate(HERE)
        ),
        *(
            pytest.param(each, ALL_INTENTS, id=f"all-{sentence(each)}", marks=pytest.mark.matrix)
            for each in HERE
        ),
    ],
)
@pytest.mark.timeout(600)
def test_no_word_doubles_a_guest_or_loses_one_that_can_be_saved(source: View, intents: list[Intent]) -> None:
    wrong: dict[str, str] = {}
    for here, there in every_pair([source]):
        for intent in intents:
            for code, word in product(held_codes(intent, here, there), OperatorAnswer):
                answer = review_answer(word, intent, here, there, held_code=code)
                rules = (
                    harm(answer, intent, here, there)
                    if answer.accepted
                    else dead_ends(answer, intent, here, there)
                )
                for fault in rules:
                    wrong.setdefault(fault, f"{fault}: {answer}\n  {intent}\n  {here}\n  {there}")
    assert not wrong, "\n".join(wrong.values())


def harm(  # noqa: C901 - one case for each thing that must not be
    answer: AnswerReview, intent: Intent, source: View, destination: View
) -> Iterator[str]:
    """What is wrong with doing what was said."""
    split = any(view.answers and view.status in POSTCOPY for view in (source, destination))
    here, there = classify(intent, source, destination)
    handed, switched = intent.milestone >= Milestone.HANDED_OVER, intent.milestone >= Milestone.SWITCHING
    names = [each.step for each in answer.steps]
    fenced = Step.FENCE_DESTINATION in names
    if split and {Step.FENCE_DESTINATION, Step.FENCE_SOURCE, Step.DISMISS, Step.CANCEL} & set(names):
        yield "an end is ended in a postcopy status"
    if fenced and there is D.SILENT and handed:
        yield "a destination that may run the guest and does not answer is killed"
    if {Step.FENCE_DESTINATION, Step.DISMISS} & set(names):
        if there in (D.FETCHES, D.BROKEN, D.READY, D.STRANGE):
            yield "the destination holds what only it has"
        if there is D.RUNS and not (here in (S.RUNS, S.COPIES) and source.run is R.RUNNING):
            yield "the destination runs the guest"
        if here is S.SILENT:
            yield "the source may be unable to run the guest"
        if here in GONE_S and (there in (D.LOADED, D.RUNS) or (there is D.SILENT and switched)):
            yield "nobody else has the guest"
    if fenced and not destination.can_fence:
        yield "the destination cannot be seen dead"
    if Step.FENCE_SOURCE in names and not (there in (D.RUNS, D.LOADED) and source.can_fence):
        yield "the source is ended, and the destination has not all of the guest"
    if Step.RETIRE in names and there not in (D.RUNS, D.LOADED, D.READY, D.ENDED):
        yield "the source is retired before the guest has arrived"
    cannot_run = {*GONE_S, S.DONE, S.SERVES} | ({S.BROKEN} if there is D.LOADED else set())
    if Step.HAND_OVER in names and Step.FENCE_SOURCE not in names and here not in cannot_run:
        yield "the destination is run while the source may run"
    if Step.REVIVE in names and there not in GONE_D and not fenced:
        yield "the source is run while the destination lives"
    match answer.word:
        case OperatorAnswer.LOST:
            empty = there in {*GONE_D, D.LOADS, D.FAILED} or (there is D.SILENT and not switched)
            if answer.state is not State.GUEST_ENDED and not (here in GONE_S and empty):
                yield "lost, and a process that may hold it lives"
        case OperatorAnswer.SOURCE:
            if answer.state in (State.COMPLETED, State.HELD) or (
                answer.state is None and there not in GONE_D
            ):
                yield "it does not end at the source"
        case OperatorAnswer.DESTINATION:
            if answer.state in (State.FAILED, State.CANCELLED, State.HELD):
                yield "it does not end at the destination"


def dead_ends(answer: AnswerReview, intent: Intent, source: View, destination: View) -> Iterator[str]:
    """What is wrong with a refusal."""
    if answer.steps or not answer.why:
        yield "a refusal says what it would do, or not why"
    if answer.instead:
        return
    if not _helps(answer.acts, intent, source, destination):
        yield "nothing that it advises is of any use"


def as_fenceable(view: View, other: View) -> View:
    return view if view.can_fence == other.can_fence else replace(view, can_fence=other.can_fence)


def _helps(acts: tuple[OperatorAction, ...], intent: Intent, source: View, destination: View) -> bool:
    """Some of it done, a word is taken or none is needed."""

    def ends(here: View, there: View) -> bool:
        here, there = as_fenceable(here, source), as_fenceable(there, destination)
        by_itself = lifecycle.decide(intent, here, there).state is not State.HELD
        return by_itself or any(
            review_answer(word, intent, here, there, held_code="controller-failed").accepted
            for word in OperatorAnswer
        )

    sources, destinations = [source], [destination]
    for act in acts:
        match act:
            case OperatorAction.END_SOURCE:
                sources.append(DEAD)
            case OperatorAction.END_DESTINATION:
                destinations.append(DEAD)
            case OperatorAction.REACH_SOURCE:
                sources += [view for view in SOURCES if view.answers]
            case OperatorAction.REACH_DESTINATION:
                destinations += [view for view in DESTINATIONS if view.answers]
            case OperatorAction.MEND:
                sources += [view for view in SOURCES if view.answers]
                destinations += [view for view in DESTINATIONS if view.answers]
    return any(ends(here, there) for here, there in product(sources, destinations))


@pytest.mark.parametrize("word", OperatorAnswer)
@pytest.mark.parametrize("source", HERE, ids=sentence)
def test_table_that_has_heard_it_is_as_careful_as_before(word: OperatorAnswer, source: View) -> None:
    """Between the answer and the act anything may change: whatever is seen then, the table does no harm."""
    said = {row.name for row in OPERATOR_ROWS}
    wrong: dict[tuple[str, str], str] = {}
    all_meant = [with_answer(intent, word) for intent in INTENTS]
    for here, there in every_pair([source]):
        for meant in all_meant:
            for overdue in (False, True):
                answer = lifecycle.decide(meant, here, there, overdue=overdue)
                found_out = as_found(meant, there)
                now = Situation(found_out, here, there, overdue, *classify(found_out, here, there))
                followed = partial(
                    AnswerReview, word=word, accepted=True, code="", why="", state=answer.state
                )
                steps = () if answer.step is Step.END else (answer,)
                if answer.row in said:
                    found = harm(followed(steps=steps, state=None), meant, here, there) if steps else ()
                    found = (each for each in found if not each.startswith("it does not end"))
                elif word is OperatorAnswer.SOURCE and now.there is D.DEAD:
                    continue  # what it may have done before it died a person has looked at
                else:
                    found = faults(answer, now)
                for fault in found:
                    wrong.setdefault((answer.row, fault), f"{answer.row}: {fault}, in {now}")
    assert not wrong, "\n".join(wrong.values())


def test_every_row_of_a_word_is_the_answer_to_something() -> None:
    missing = {row.name for row in OPERATOR_ROWS}
    pairs = list(every_pair(SOURCES))
    for intent, word in product(INTENTS, OperatorAnswer):
        meant = with_answer(intent, word)
        for (source, destination), overdue in product(pairs, (False, True)):
            missing.discard(lifecycle.decide(meant, source, destination, overdue=overdue).row)
        if not missing:
            break
    assert missing == set()


def test_without_a_record_every_word_is_weighed_by_what_both_ends_show() -> None:
    for source, destination in every_pair(SOURCES):
        intent = unrecorded_intent(source, destination)
        for word in OperatorAnswer:
            answer = review_answer(word, intent, source, destination)
            assert not list(harm(answer, intent, source, destination)) or not answer.accepted, answer


SWITCHED = Intent(milestone=Milestone.SWITCHING, postcopy=True, live=False, stopped_by_us=True)
HANDED = replace(SWITCHED, milestone=Milestone.HANDED_OVER)
LOADED, RUNS_THERE = shown(R.PAUSED, M.COMPLETED), shown(R.RUNNING, M.COMPLETED)
INCOMING = shown(R.INMIGRATE, M.ACTIVE)
FROZEN = View(process=ProcessState.ALIVE, can_fence=True)


def fenceable(view: View) -> View:
    return replace(view, can_fence=True)


def of(word: OperatorAnswer, intent: Intent, source: View, destination: View, code: str) -> AnswerReview:
    return review_answer(word, intent, fenceable(source), fenceable(destination), held_code=code)


class TestPostcopyPairWhoseMemoryIsAtBothEnds:
    @pytest.mark.parametrize("there", [INCOMING, shown(R.PAUSED, M.POSTCOPY_ACTIVE), FROZEN])
    @pytest.mark.parametrize(
        "here", [shown(R.FINISH_MIGRATE, M.POSTCOPY_ACTIVE), shown(R.FINISH_MIGRATE, M.DEVICE)]
    )
    def test_is_ended_by_no_word(self, here: View, there: View) -> None:
        for word in OperatorAnswer:
            answer = of(word, SWITCHED, here, there, "postcopy-stalled")
            assert not {Step.FENCE_DESTINATION, Step.FENCE_SOURCE} & {each.step for each in answer.steps}

    def test_is_driven_on_where_a_person_says_destination(self) -> None:
        here, there = shown(R.FINISH_MIGRATE, M.POSTCOPY_ACTIVE), INCOMING
        answer = of(OperatorAnswer.DESTINATION, SWITCHED, here, there, "postcopy-stalled")
        assert (answer.accepted, answer.steps, answer.state) == (True, (), None)
        refused = of(OperatorAnswer.SOURCE, SWITCHED, here, there, "postcopy-stalled")
        assert not refused.accepted
        assert refused.instead == (OperatorAnswer.DESTINATION,)

    def test_that_broke_is_recovered_where_a_person_says_destination(self) -> None:
        here, there = shown(R.FINISH_MIGRATE, M.POSTCOPY_PAUSED), shown(R.RUNNING, M.POSTCOPY_PAUSED)
        answer = of(OperatorAnswer.DESTINATION, HANDED, here, there, "postcopy-broken")
        assert (answer.accepted, answer.steps, answer.state) == (True, (), None)
        for word in (OperatorAnswer.SOURCE, OperatorAnswer.LOST):
            refused = of(word, HANDED, here, there, "postcopy-broken")
            assert not refused.accepted
            assert refused.instead == (OperatorAnswer.DESTINATION,)
            assert refused.acts == (OperatorAction.MEND,)


def test_frozen_destination_that_may_run_the_guest_is_not_killed() -> None:
    precopy = replace(HANDED, postcopy=False)
    answer = of(
        OperatorAnswer.SOURCE, precopy, shown(R.POSTMIGRATE, M.COMPLETED), FROZEN, "silent-after-hand-over"
    )
    assert not answer.accepted
    assert answer.acts == (OperatorAction.REACH_DESTINATION, OperatorAction.END_DESTINATION)


def test_lost_is_taken_once_neither_process_is_left() -> None:
    here, there = shown(R.FINISH_MIGRATE, M.POSTCOPY_PAUSED), shown(R.RUNNING, M.POSTCOPY_PAUSED)
    assert not of(OperatorAnswer.LOST, HANDED, here, DEAD, "postcopy-no-way-back").accepted
    assert not of(OperatorAnswer.LOST, HANDED, DEAD, there, "postcopy-source-died").accepted
    assert of(OperatorAnswer.LOST, HANDED, DEAD, DEAD, "source-died").accepted


def test_host_that_cannot_be_asked_counts_as_off_where_a_person_says_so() -> None:
    unreachable = View(process=ProcessState.UNKNOWN)
    here = shown(R.POSTMIGRATE, M.COMPLETED)
    precopy = replace(HANDED, postcopy=False)
    assert not of(
        OperatorAnswer.SOURCE, precopy, here, replace(unreachable), "silent-after-hand-over"
    ).accepted
    off = replace(precopy, said_off=True)
    answer = of(OperatorAnswer.SOURCE, off, here, unreachable, "silent-after-hand-over")
    assert (answer.accepted, answer.state) == (True, State.FAILED)
    assert not of(OperatorAnswer.SOURCE, off, here, FROZEN, "silent-after-hand-over").accepted, (
        "a process that is seen to live"
    )


def test_guest_that_runs_at_both_ends_stays_where_a_person_says() -> None:
    here = shown(R.RUNNING, M.FAILED)
    for word, step in (
        (OperatorAnswer.SOURCE, Step.FENCE_DESTINATION),
        (OperatorAnswer.DESTINATION, Step.FENCE_SOURCE),
    ):
        answer = of(word, HANDED, here, RUNS_THERE, "both-run")
        assert (answer.accepted, answer.steps[0].step) == (True, step)


def test_destination_that_refuses_to_run_gives_way_to_the_source() -> None:
    precopy = replace(HANDED, postcopy=False)
    here = shown(R.POSTMIGRATE, M.COMPLETED)
    answer = of(OperatorAnswer.SOURCE, precopy, here, LOADED, "refuses-to-run")
    assert [each.step for each in answer.steps][:2] == [Step.FENCE_DESTINATION, Step.REVIVE]
    # Where it has not had its time it completes by itself.
    assert of(OperatorAnswer.SOURCE, precopy, here, LOADED, "not-reachable").instead == (
        OperatorAnswer.DESTINATION,
    )
