"""Review of an operator's answer on a held migration, before anything of it is done. Pure and total.

The answer goes into the lifecycle table like everything else that is meant, and the table is followed in thought to its
end: an answer is accepted only if that end is what the operator said, and then the review names each step on the way. A
refusal names the answers that would be accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from migrator.core.migration.lifecycle import Next, Step, decide
from migrator.core.migration.operator_rows import in_postcopy
from migrator.core.migration.situation import (
    DestinationIs,
    Intent,
    Milestone,
    OperatorAnswer,
    SourceIs,
    as_said,
    classify,
)
from migrator.core.model import MigrationStatus, ProcessState, RunState, State, View

S, D = SourceIs, DestinationIs
_GONE_S, _GONE_D = {S.DEAD, S.ENDED}, {D.DEAD, D.ENDED}
#: Steps that end a process or a migration; in postcopy no answer may lead to one.
_ENDS_ONE = {Step.FENCE_SOURCE, Step.FENCE_DESTINATION, Step.DISMISS, Step.CANCEL}
#: It is driven on, and what both ends do then decides.
_GOES_ON = (Step.WAIT, Step.SWITCH, Step.PAUSE_STREAM, Step.RECOVER)
#: More steps than any way through the table has.
_STEPS_AT_MOST = 12


class OperatorAction(StrEnum):
    """An action of the operator after which an answer is accepted, or none is needed."""

    #: Wake it, free its monitor, or mend the way to its host.
    REACH_SOURCE = "reach-source"
    REACH_DESTINATION = "reach-destination"
    #: Mend the way between both hosts.
    MEND = "mend"
    END_SOURCE = "end-source"
    END_DESTINATION = "end-destination"


@dataclass(frozen=True, kw_only=True)
class AnswerReview:
    """Consequences of an operator's answer; see :func:`review_answer`."""

    word: OperatorAnswer
    accepted: bool
    #: Stable: tells one course of action from another.
    code: str
    #: Why it is refused; else why the last step is taken.
    why: str
    #: Steps that would be taken, in this order.
    steps: tuple[Next, ...] = ()
    #: How it would end; ``None``: it is driven on, and what both ends do next decides.
    state: State | None = None
    #: Answers that would be accepted instead of a refused one.
    instead: tuple[OperatorAnswer, ...] = ()
    #: Actions of the operator that would help after a refusal, the gentlest first.
    acts: tuple[OperatorAction, ...] = ()


def review_answer(
    word: OperatorAnswer, intent: Intent, source: View, destination: View, *, held_code: str | None = None
) -> AnswerReview:
    """Return what would be done on this answer of the operator, or why nothing would be.

    :param intent: what was meant so far; what was answered before does not count.
    :param source: a fresh view of the source.
    :param destination: a fresh view of the destination.
    :param held_code: the row that holds it; ``None`` where there is no record of what was meant.
    """
    answer = _judge(word, intent, source, destination, held_code)
    if answer.accepted:
        return answer
    others = [each for each in OperatorAnswer if each is not word]
    instead = tuple(each for each in others if _judge(each, intent, source, destination, held_code).accepted)
    return replace(answer, instead=instead, acts=_acts(intent, source, destination))


def with_answer(intent: Intent, word: OperatorAnswer) -> Intent:
    """Return the intent with the answer in force; what could not be done before is tried again."""
    undo = (intent.undo or State.FAILED) if word is OperatorAnswer.SOURCE else intent.undo
    return replace(intent, said=word, undo=undo, live=False, fence_failed=False, dismissed=False)


def _judge(
    word: OperatorAnswer, intent: Intent, source: View, destination: View, held_code: str | None
) -> AnswerReview:
    meant = with_answer(intent, word)
    steps, last = _follow(meant, source, destination)
    code = ".".join(each.row for each in (*steps, last))
    here, there = classify(meant, source, destination)
    why = ""
    split = in_postcopy(source) or in_postcopy(destination)
    match word:
        case _ if split and any(each.step in _ENDS_ONE for each in steps):
            why = _why_not(word, here, there, source, destination, last)
        case OperatorAnswer.SOURCE:
            given_time = held_code is None or held_code == _overdue(intent, source, destination).row
            if last.state not in (State.FAILED, State.CANCELLED, State.GUEST_ENDED) and not (
                last.step is Step.WAIT and here is S.FAILING and there in _GONE_D
            ):
                why = _why_not(word, here, there, source, destination, last)
            elif not given_time and _completes(intent, source, destination):
                why = "the destination has all of the guest, and it completes there by itself"
        case OperatorAnswer.DESTINATION:
            goes_on = last.step in _GOES_ON and not {here, there} & {S.SILENT, D.SILENT}
            undone = intent.undo is not None and intent.milestone < Milestone.SWITCHING
            stalled = held_code == "arrived-source-stalled" and in_postcopy(source)
            if last.state not in (State.COMPLETED, State.GUEST_ENDED) and not (
                goes_on and not undone and not stalled and there not in _GONE_D | {D.FAILED}
            ):
                why = _why_not(word, here, there, source, destination, last)
        case OperatorAnswer.LOST:
            harmless = all(each.step in (Step.DISMISS, Step.RETIRE) for each in steps)
            if not (harmless and (last.row == "said-lost" or last.state is State.GUEST_ENDED)):
                why = _why_not(word, here, there, source, destination, last)
    if why:
        return AnswerReview(word=word, accepted=False, code=code, why=why)
    ends = last.state if last.step is Step.END else None
    return AnswerReview(word=word, accepted=True, code=code, why=last.why, steps=steps, state=ends)


def _why_not(
    word: OperatorAnswer, here: SourceIs, there: DestinationIs, source: View, destination: View, last: Next
) -> str:
    if word is OperatorAnswer.SOURCE and here in _GONE_S:
        return "the source's QEMU does not answer: its process is gone"
    if word is OperatorAnswer.DESTINATION and there in _GONE_D:
        return "the destination's QEMU does not answer: its process is gone"
    if in_postcopy(source) or in_postcopy(destination):
        if there is D.RUNS:
            return "the guest runs at the destination, complete, and the source does not come to its end"
        if here in _GONE_S or there in _GONE_D:
            return "the guest's memory was at both ends, and one of them is gone; the other can never run it alone"
        return "the guest's memory is at both ends: neither may be ended, and neither can go on alone"
    if there is D.SILENT and last.state is not State.FAILED:
        return "the destination's QEMU does not answer, and it may hold or run the guest"
    if here is S.SILENT:
        return "the source's QEMU does not answer, and it may hold or run the guest"
    if last.state is State.HELD:
        return last.why
    if here in _GONE_S and there in _GONE_D:
        return "neither process is left"
    if here in (S.RUNS, S.RESTS, S.COPIES):
        return "the guest is at the source"
    if there in (D.RUNS, D.FETCHES):
        return "the guest is at the destination"
    return f"both ends show something else: {last.why}"


def _follow(intent: Intent, source: View, destination: View) -> tuple[tuple[Next, ...], Next]:
    """Return the steps that the table names one after another while each succeeds, and the answer that ends them."""
    source, destination = as_said(intent, source), as_said(intent, destination)
    steps: list[Next] = []
    while True:
        answer = decide(intent, source, destination)
        if answer.step in (Step.END, *_GOES_ON) or len(steps) == _STEPS_AT_MOST:
            return tuple(steps), answer
        steps.append(answer)
        intent, source, destination = after(answer.step, intent, source, destination)


def after(step: Step, intent: Intent, source: View, destination: View) -> tuple[Intent, View, View]:
    """Return intent and views as a step that succeeds leaves them."""
    run = RunState.RUNNING if intent.guest_runs else RunState.PAUSED
    undone = replace(intent, undo=intent.undo or State.FAILED)
    match step:
        case Step.FENCE_DESTINATION:
            return undone, source, _dead(destination)
        case Step.FENCE_SOURCE:
            return intent, _dead(source), destination
        case Step.SWITCH:
            switching = replace(intent, milestone=max(intent.milestone, Milestone.SWITCHING))
            return switching, replace(source, status=MigrationStatus.DEVICE), destination
        case Step.HAND_OVER:
            handed = replace(intent, milestone=max(intent.milestone, Milestone.HANDED_OVER))
            return handed, source, replace(destination, run=RunState.RUNNING)
        case Step.RETIRE:
            return replace(intent, milestone=Milestone.RETIRING), _dead(source), destination
        case Step.RECOVER:
            return intent, source, destination  # what comes of it only the next look tells
        case Step.PAUSE_STREAM:
            status = MigrationStatus.POSTCOPY_PAUSED
            return intent, replace(source, status=status), replace(destination, status=status)
        case Step.DISMISS:
            return replace(intent, dismissed=True), source, _dead(destination)
        case Step.RESTORE:
            ran_again = intent.stopped_by_us and intent.guest_runs
            restored = replace(undone, restored=True, stopped_by_us=False)
            return restored, replace(source, run=run) if ran_again else source, destination
        case _:  # cancelled, revived or resumed: it settles at the source
            cancelled = replace(source, run=run, status=MigrationStatus.CANCELLED)
            return replace(undone, stopped_by_us=False), cancelled, destination


def _dead(view: View) -> View:
    return View(process=ProcessState.DEAD, can_fence=view.can_fence)


def _overdue(intent: Intent, source: View, destination: View) -> Next:
    return decide(replace(intent, said=None, live=False), source, destination, overdue=True)


def _completes(intent: Intent, source: View, destination: View) -> bool:
    """Tell whether the guest would go on at the destination without any answer."""
    steps, last = _follow(replace(intent, said=None, live=False), source, destination)
    return last.state is State.COMPLETED or any(each.step in (Step.HAND_OVER, Step.RETIRE) for each in steps)


def _acts(intent: Intent, source: View, destination: View) -> tuple[OperatorAction, ...]:
    here, there = classify(intent, source, destination)
    if here in _GONE_S or there in _GONE_D:
        if here not in _GONE_S:
            return (
                (OperatorAction.REACH_SOURCE, OperatorAction.END_SOURCE)
                if here is S.SILENT
                else (OperatorAction.END_SOURCE,)
            )
        return (
            (OperatorAction.REACH_DESTINATION, OperatorAction.END_DESTINATION)
            if there is D.SILENT
            else (OperatorAction.END_DESTINATION,)
        )
    postcopy = in_postcopy(source) or in_postcopy(destination)
    if postcopy and there is D.RUNS:
        return (OperatorAction.END_SOURCE,)
    acts = []
    if here is S.SILENT:
        acts.append(OperatorAction.REACH_SOURCE)
    if there is D.SILENT:
        acts.append(OperatorAction.REACH_DESTINATION)
    if postcopy or (intent.postcopy and here in (S.SWITCHING, S.FAILING)):
        acts.append(OperatorAction.MEND)
    elif here is S.SILENT and there in (D.RUNS, D.LOADED):
        acts.append(OperatorAction.END_SOURCE)
    elif here is not S.SILENT or there is D.STRANGE:
        acts.append(OperatorAction.END_DESTINATION)
    return tuple(acts)


#: What a person says, and each interface has a way to say.
PLACES = {
    OperatorAnswer.SOURCE: "at the source",
    OperatorAnswer.DESTINATION: "at the destination",
    OperatorAnswer.LOST: "lost",
}
_AWAITED = {
    OperatorAction.REACH_SOURCE: "the source's QEMU to answer",
    OperatorAction.REACH_DESTINATION: "the destination's QEMU to answer",
    OperatorAction.MEND: "the stream between both hosts to go on",
}


def awaited_actions(intent: Intent, source: View, destination: View, held_code: str | None) -> str:
    """Describe what a held migration waits for, in a few words."""
    words = [word for word in OperatorAnswer if _judge(word, intent, source, destination, held_code).accepted]
    acts = _acts(intent, source, destination)
    texts = [_AWAITED[act] for act in acts if act in _AWAITED]
    if words:
        texts.append(f"a person's word that the guest is {' or '.join(PLACES[word] for word in words)}")
    if not texts:
        ends = [
            side
            for side, act in (
                ("source", OperatorAction.END_SOURCE),
                ("destination", OperatorAction.END_DESTINATION),
            )
            if act in acts
        ]
        texts.append(f"the end of the {' or the '.join(ends)}'s process")
    return ", or ".join(texts)


def unrecorded_intent(source: View, destination: View) -> Intent:
    """Return the intent to assume where nothing records one: whatever may have been done was done.

    Only for an answer of the operator. A pair in which neither end runs the guest is held without one.
    """
    never_ran = destination.answers and destination.run is RunState.INMIGRATE
    rests = classify(Intent(), source, destination)[0] is S.RESTS
    return Intent(
        milestone=Milestone.SWITCHING if never_ran else Milestone.HANDED_OVER,
        postcopy=in_postcopy(source) or in_postcopy(destination),
        guest_runs=not rests,
        live=False,
    )
