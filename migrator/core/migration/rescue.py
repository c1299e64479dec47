"""Rescue of QEMUs that a migration left and that nobody drives, from what both ends show without a record. Pure.

The caller has seen that nobody drives either end, and that both have shown the same for a while, so that no command
is on its way. Where what they show leaves one way alone, that way is taken as an operator's answer would be
(:mod:`migrator.core.migration.answer_review`), and the lifecycle table takes every step; where it leaves two, an
operator has to answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from migrator.core.migration.answer_review import (
    AnswerReview,
    OperatorAction,
    review_answer,
    unrecorded_intent,
    with_answer,
)
from migrator.core.migration.lifecycle import Step
from migrator.core.migration.situation import (
    DestinationIs,
    Intent,
    Milestone,
    OperatorAnswer,
    SourceIs,
    classify,
    source_is,
)
from migrator.core.model import RUNNING_STATES, ProcessState, RunState, View

#: An end that was not given: a person says that its process is gone.
GONE = View(process=ProcessState.DEAD)

S, D = SourceIs, DestinationIs
_GONE_S, _GONE_D = frozenset({S.DEAD, S.ENDED}), frozenset({D.DEAD, D.ENDED})
_EMPTY = frozenset({D.LOADS, D.FAILED})
_HAS_IT = frozenset({D.LOADED, D.READY, D.RUNS, D.FETCHES})
_STREAM = frozenset({D.READY, D.FETCHES, D.BROKEN})
#: The switch has not been passed, whatever became of the destination.
_BEFORE_SWITCH = frozenset({S.COPIES, S.AT_SWITCH})
#: The guest may go on there.
_NOT_LEFT = _BEFORE_SWITCH | {S.SWITCHING, S.FAILING, S.LEFT_STOPPED}
_STOPPED_BY_QEMU = frozenset({RunState.FINISH_MIGRATE, RunState.POSTMIGRATE, RunState.INMIGRATE})
_STEPS = {
    Step.CANCEL: "the migration is cancelled at the source (migrate_cancel)",
    Step.FENCE_DESTINATION: "the destination's process is killed and seen dead",
    Step.FENCE_SOURCE: "the source's process is killed and seen dead",
    Step.REVIVE: "the source is told to go on (cont)",
    Step.RESUME: "the source is told to go on (cont)",
    Step.RESTORE: "the source's migration settings are put back, as far as they are known",
    Step.DISMISS: "the destination, which holds nothing that is needed, is ended",
    Step.HAND_OVER: "the destination is told to run the guest (cont)",
    Step.RETIRE: "the source, which the guest has left, is ended",
}
_ACTS = {
    OperatorAction.REACH_SOURCE: (
        "let the other client of the source's monitor go, or wake its QEMU (kill -CONT)"
    ),
    OperatorAction.REACH_DESTINATION: (
        "let the other client of the destination's monitor go, or wake its QEMU (kill -CONT)"
    ),
    OperatorAction.MEND: (
        "restore the connection between both hosts, then migrate-recover at the destination and migrate with "
        "resume at the source"
    ),
    OperatorAction.END_SOURCE: "leave --source out once its process has ended, if need be by hand",
    OperatorAction.END_DESTINATION: "leave --destination out once its process has ended, if need be by hand",
}


@dataclass(frozen=True, kw_only=True)
class RescueSituation:
    """Everything that a rescue is decided from."""

    source: View
    destination: View
    #: True where the guest ran before, or a person wants it to run; ``None``: nothing tells.
    runs: bool | None = None
    #: ... and it is a person who wants it.
    run_state_said: bool = False
    #: Both ends belong to one migration, as uuids or marks say.
    same_guest: bool = True
    #: Where the guest is or shall be, by a person's word.
    word: OperatorAnswer | None = None
    #: Intent of a record, where there is one all the same.
    recorded: Intent | None = None


@dataclass(frozen=True, kw_only=True)
class RescuePlan:
    """The steps of a rescue in words, and the intent that the lifecycle table shall follow."""

    says: tuple[str, ...]
    intent: Intent
    word: OperatorAnswer


@dataclass(frozen=True, kw_only=True)
class RescueRefusal:
    """Reason why nothing is done, and what an operator can do."""

    why: str
    #: There is nothing to rescue.
    nothing_to_do: bool = False


def find_rescue(shown: RescueSituation) -> RescuePlan | RescueRefusal:
    """Return the way out, or why there is none that may be taken without an operator; total and pure."""
    intent = _meant(shown)
    here, there = classify(intent, shown.source, shown.destination)
    both = here not in _GONE_S and there not in _GONE_D
    if both and not shown.same_guest:
        return RescueRefusal(why="the two ends show different guests: check the addresses")
    if there is D.STRANGE:
        return RescueRefusal(
            why="the QEMU given as destination never waited for a guest: check that the two are not swapped; what it "
            "runs is a guest of its own"
        )
    if idle := _idle(shown, here, there):
        return RescueRefusal(why=idle, nothing_to_do=True)
    # What was reset after it had left looks like a guest that was never started: only a record, or a person, can tell.
    unsure = shown.recorded is None and source_is(shown.source) is not here
    word = shown.word or (None if unsure else _word(here, there))
    answers = {each: review_answer(each, intent, shown.source, shown.destination) for each in _CHOICES}
    if word is None:
        return RescueRefusal(why=_ask(answers))
    answer = answers[word]
    if not answer.accepted:
        return RescueRefusal(
            why="; ".join([answer.why, *(f"to have it so: {_ACTS[act]}" for act in answer.acts[:1])])
        )
    if shown.runs is None and shown.recorded is None and not _seen_to_run_or_rest(shown, word):
        return RescueRefusal(
            why="whether the guest ran before it was moved cannot be seen any more: say --run-state running or paused"
        )
    return RescuePlan(says=_says(answer, word, shown, intent), intent=with_answer(intent, word), word=word)


_CHOICES = (OperatorAnswer.SOURCE, OperatorAnswer.DESTINATION)


def _meant(shown: RescueSituation) -> Intent:
    intent = shown.recorded or unrecorded_intent(shown.source, shown.destination)
    if shown.recorded is not None and not shown.run_state_said:
        return intent
    here, _ = classify(intent, shown.source, shown.destination)
    if here in _BEFORE_SWITCH and shown.recorded is None:
        intent = replace(intent, milestone=Milestone.SWITCHING)
    if shown.source.run is RunState.PAUSED and here in {S.RESTS, S.COPIES}:
        # Somebody wanted that, who may be the controller that is gone.
        runs = bool(shown.runs and shown.run_state_said)
        return replace(intent, guest_runs=runs, stopped_by_us=runs)
    if shown.runs is None:
        return intent
    # A controller that is gone may have stopped it for the switch: then QEMU leaves it paused when it gives up.
    return replace(intent, guest_runs=shown.runs, stopped_by_us=shown.runs and here in _NOT_LEFT)


def _idle(shown: RescueSituation, here: SourceIs, there: DestinationIs) -> str:
    if here in (S.RUNS, S.RESTS) and there in _GONE_D and not (here is S.RESTS and shown.run_state_said):
        return f"the guest is at the source ({shown.source.run}) and takes part in no migration"
    if here in _GONE_S and there is D.RUNS:
        return f"the guest is at the destination ({shown.destination.run}) and takes part in no migration"
    if here in _GONE_S and there in _GONE_D:
        return "neither process is there any more: start the guest anew if it runs nowhere"
    if here in _GONE_S and there in _EMPTY:
        return "the destination is empty and there is no source: end it, and start the guest anew if it runs nowhere"
    return ""


def _word(here: SourceIs, there: DestinationIs) -> OperatorAnswer | None:
    """Return the one answer that what both ends show leaves; ``None`` where they leave none or more than one."""
    if here in {S.RUNS, S.RESTS} | _BEFORE_SWITCH and there in _EMPTY | _GONE_D:
        return OperatorAnswer.SOURCE
    if here in _BEFORE_SWITCH and there is D.SILENT:
        return OperatorAnswer.SOURCE
    if here is S.LEFT_STOPPED and there in _EMPTY:
        return OperatorAnswer.SOURCE
    if here in (S.DONE, S.SERVES) and there in _HAS_IT:
        return OperatorAnswer.DESTINATION
    if here in (S.BROKEN, S.SERVES) and there in _STREAM:
        return OperatorAnswer.DESTINATION  # its stream is recovered
    return None


def _ask(answers: dict[OperatorAnswer, AnswerReview]) -> str:
    """Say why an operator has to answer, and which answers are possible."""
    can = [f"--guest-at {word} ({answer.why})" for word, answer in answers.items() if answer.accepted]
    if can:
        return (
            "what both ends show does not tell where the guest last ran, and that one alone may go on; look at the "
            f"disks and the guest, then say {' or '.join(can)}"
        )
    acts = dict.fromkeys(act for answer in answers.values() for act in answer.acts)
    why = next(iter(answers.values())).why
    return "; ".join([why, *(_ACTS[act] for act in acts)])


def _seen_to_run_or_rest(shown: RescueSituation, word: OperatorAnswer) -> bool:
    view = shown.source if word is OperatorAnswer.SOURCE else shown.destination
    stopped_by_qemu = {RunState.FINISH_MIGRATE, RunState.POSTMIGRATE, RunState.INMIGRATE}
    if word is OperatorAnswer.SOURCE:
        return view.run not in stopped_by_qemu
    return view.run in RUNNING_STATES or view.run not in {
        *stopped_by_qemu,
        RunState.PAUSED,
        RunState.PRELAUNCH,
    }


def _says(
    answer: AnswerReview, word: OperatorAnswer, shown: RescueSituation, intent: Intent
) -> tuple[str, ...]:
    says = [_STEPS[each.step] for each in answer.steps if each.step in _STEPS]
    if answer.state is None:
        says.append(
            "the migration is watched to its end; then the source, which the guest has left, is ended"
        )
    end = shown.source if word is OperatorAnswer.SOURCE else shown.destination
    if _at_rest_by_itself(end):
        return (*says, f"the guest stays as it is at the {word} ({end.run})")
    return (*says, f"the guest then {'runs' if intent.guest_runs else 'stands still, paused,'} at the {word}")


def _at_rest_by_itself(view: View) -> bool:
    ours = {RunState.PAUSED, RunState.PRELAUNCH, RunState.OTHER, *RUNNING_STATES, *_STOPPED_BY_QEMU}
    return view.answers and view.run not in ours
