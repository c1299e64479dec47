"""Invariants of every look at both ends, whatever the decision table answers: checked in production too.

The table keeps these rules by itself; this module states them a second time, apart from it. So a rule that is wrong, or
an end that shows what no QEMU should, holds the migration before the next step, instead of costing a guest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from migrator.core.migration.rules import Next, Step
from migrator.core.migration.situation import Intent, Milestone, SourceIs, source_is
from migrator.core.model import RUNNING_STATES, MigrationStatus, RunState, State, View

#: The action of the decision that tells of a violation.
VIOLATED = "invariant-violated"


class Invariant(StrEnum):
    """A rule that no state of both ends may break; its value is the code of a migration that is held for it.

    See :data:`MEANINGS`.
    """

    NEVER_TWO = "never-two"
    NO_RETURN = "no-return"
    NEVER_NONE = "never-none"
    INTENT_FIRST = "intent-first"


#: The rules, as a person reads them.
MEANINGS: Mapping[Invariant, str] = {
    Invariant.NEVER_TWO: "the guest runs at one end at most",
    Invariant.NO_RETURN: "after the hand-over the source does not run the guest again, and could not by itself",
    Invariant.NEVER_NONE: "a source is ended only when the destination has the guest",
    Invariant.INTENT_FIRST: "neither end is further than the steps that were put on record",
}


@dataclass(frozen=True, kw_only=True)
class Violation:
    """An invariant that both ends together break."""

    invariant: Invariant
    #: What they show, for a person.
    why: str


def violations(intent: Intent, source: View, destination: View) -> tuple[Violation, ...]:
    """Return what is broken, the worst first; total and pure.

    What a controller that took a record up cannot know is not held against anybody: its intent says less than was
    done, and after a reboot more.

    :param intent: what was meant and done so far.
    :param source: a fresh view of the source.
    :param destination: a fresh view of the destination.
    """
    return tuple(
        Violation(invariant=invariant, why=why) for invariant, why in _broken(intent, source, destination)
    )


def _broken(intent: Intent, source: View, destination: View) -> Iterator[tuple[Invariant, str]]:
    runs_here = source.answers and source.run in RUNNING_STATES
    if runs_here and destination.answers and destination.run in RUNNING_STATES:
        yield Invariant.NEVER_TWO, "the guest runs at both ends"
    here = source_is(source)
    if (
        (runs_here or here is SourceIs.AT_SWITCH)
        and intent.live
        and intent.milestone >= Milestone.HANDED_OVER
    ):
        yield (
            Invariant.NO_RETURN,
            "the guest was handed to the destination, and runs at the source again, or would after a cancel",
        )
    waits = destination.answers and destination.run is RunState.INMIGRATE
    if waits and intent.milestone is Milestone.RETIRING:
        yield (
            Invariant.NEVER_NONE,
            "the source was ended, or is about to be, and the destination still waits for the guest",
        )
    if not intent.live or intent.milestone >= Milestone.SWITCHING:
        return
    if here in _MIGRATES and intent.milestone is Milestone.PREPARING:
        yield Invariant.INTENT_FIRST, "the source migrates, and nobody here had it begin"
    complete = destination.answers and destination.status is MigrationStatus.COMPLETED
    if here is SourceIs.COPIES and complete and destination.run is RunState.PAUSED:
        yield (
            Invariant.INTENT_FIRST,
            "the destination has a whole guest, and the source, which was not switched, still copies this one",
        )


_MIGRATES = frozenset({SourceIs.COPIES, SourceIs.AT_SWITCH, SourceIs.SERVES})


def guarded(answer: Next, intent: Intent, source: View, destination: View) -> Next:
    """Return the table's answer, or ``held`` where both ends break an invariant and the table would go on.

    A person's word is carried out all the same: whoever gave it has looked at both ends.
    """
    if answer.state is State.HELD or intent.said is not None:
        return answer
    for each in violations(intent, source, destination):
        return Next(step=Step.END, row=each.invariant, why=each.why, outcome=State.HELD)
    return answer
