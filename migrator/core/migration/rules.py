"""Parts of the lifecycle table: steps, rows, and the conditions that a row may ask for. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from migrator.core.migration.situation import DestinationIs, Intent, Milestone, OperatorAnswer, SourceIs
from migrator.core.model import MigrationStatus, ProcessState, State, View


class Step(StrEnum):
    """The next step of a migration."""

    #: Nothing; look again at the next event, or soon.
    WAIT = "wait"
    #: ``migrate-continue`` at the source.
    SWITCH = "switch"
    #: ``migrate-pause`` at each end of a postcopy stream that has not noticed that it carries nothing any more.
    PAUSE_STREAM = "pause-stream"
    #: ``migrate-recover`` at the destination and ``migrate`` with resume at the source, once the network between them
    #: was seen to carry packets as large as the stream's.
    RECOVER = "recover"
    #: ``cont`` at the destination: the point of no return.
    HAND_OVER = "hand-over"
    #: Quit the source; the guest is elsewhere.
    RETIRE = "retire"
    #: ``migrate_cancel`` at the source, ``yank`` where that is not answered.
    CANCEL = "cancel"
    #: Kill the destination's process and see it dead.
    FENCE_DESTINATION = "fence-destination"
    #: Kill the source's process and see it dead; the destination holds the whole guest.
    FENCE_SOURCE = "fence-source"
    #: ``cont`` at the source (then ``stop``, if the guest was paused).
    REVIVE = "revive"
    #: ``cont`` at a source that is being cancelled and never came to the switch: we had stopped its guest.
    RESUME = "resume"
    #: Parameters and capabilities of the source as they were; the guest runs again if we stopped it.
    RESTORE = "restore"
    #: ``quit`` to the destination, which has nothing worth keeping, and wait for its end.
    DISMISS = "dismiss"
    #: ``stop`` at a source that its manager let go on while nobody can tell whether the guest runs elsewhere as well.
    HALT = "halt"
    #: The end; :attr:`Next.state` says which.
    END = "end"


@dataclass(frozen=True, kw_only=True)
class Next:
    """The answer of :func:`decide`."""

    step: Step
    #: The row that answered; stable, and the code of a ``held``.
    row: str
    #: Why, for a person.
    why: str
    #: The final state of the migration: with :attr:`Step.END` it has come to it, with :attr:`Step.RETIRE` it does so
    #: once the source is gone; ``None`` with every other step.
    outcome: State | None = None
    #: With :attr:`Step.RETIRE`: the guest has arrived, and its addresses are announced there if it runs.
    announce: bool = False
    #: The same step was named before, and is taken once more: no news for a person.
    again: bool = False

    @property
    def state(self) -> State | None:
        """The final state, with :attr:`Step.END`; ``None`` while there is a step to take."""
        return self.outcome if self.step is Step.END else None


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The situation that the table is asked about."""

    intent: Intent
    source: View
    destination: View
    #: Nothing has changed for longer than this phase may take.
    overdue: bool
    #: Nothing has come through a postcopy stream for longer than its recovery is tried.
    expired: bool = False

    @property
    def handed(self) -> bool:
        """True once the destination may run the guest, or have run it."""
        if (
            self.said(OperatorAnswer.SOURCE)
            and self.destination.process is ProcessState.DEAD
            and not self.destination.ended
        ):
            return False  # a person has looked at what it may have written
        return self.intent.milestone >= Milestone.HANDED_OVER

    def said(self, word: OperatorAnswer) -> bool:
        """Tell whether the operator gave this answer, and what follows from it is being done."""
        return self.intent.said is word

    @property
    def may_have_switched(self) -> bool:
        """True once ``migrate-continue`` may be on its way, of which a controller that took a record up cannot be
        sure.
        """
        return self.intent.milestone >= Milestone.SWITCHING or not self.intent.live


ANY_S, ANY_D = frozenset(SourceIs), frozenset(DestinationIs)
GONE_S, GONE_D = (
    frozenset({SourceIs.DEAD, SourceIs.ENDED}),
    frozenset({DestinationIs.DEAD, DestinationIs.ENDED}),
)
#: The source cannot run again unless somebody sends it ``cont``.
CANNOT_RUN = frozenset({SourceIs.DEAD, SourceIs.ENDED, SourceIs.DONE})
#: An end of a postcopy stream: the guest's memory is at both ends, and neither can go on alone.
STREAM_S = frozenset({SourceIs.SERVES, SourceIs.BROKEN})
STREAM_D = frozenset({DestinationIs.FETCHES, DestinationIs.READY, DestinationIs.BROKEN})
#: The source runs, or would by itself: what the record says of a hand-over cannot be so.
OWNS = frozenset({SourceIs.RUNS, SourceIs.RESTS, SourceIs.COPIES, SourceIs.AT_SWITCH})


@dataclass(frozen=True, kw_only=True)
class Row:
    """A rule: where both ends are in these sets and the condition holds, `answer` is what to do."""

    source: frozenset[SourceIs]
    destination: frozenset[DestinationIs]
    answer: Next
    when: Callable[[Situation], bool] = lambda now: True

    @property
    def name(self) -> str:
        """The row's name; stable, and the code of a ``held``."""
        return self.answer.row


def row(
    name: str,
    source: SourceIs | frozenset[SourceIs] | set[SourceIs],
    destination: DestinationIs | frozenset[DestinationIs] | set[DestinationIs],
    answer: Step | State,
    why: str,
    when: Callable[[Situation], bool] = lambda now: True,
    *,
    outcome: State | None = None,
    announce: bool = False,
    again: bool = False,
) -> Row:
    """Build a :class:`Row`, in the order that a person reads it.

    :param answer: the step to take, or the final state.
    :param outcome: with :attr:`Step.RETIRE`: see :attr:`Next.outcome`.
    """
    return Row(
        source=frozenset({source}) if isinstance(source, SourceIs) else frozenset(source),
        destination=frozenset({destination})
        if isinstance(destination, DestinationIs)
        else frozenset(destination),
        answer=Next(
            step=answer if isinstance(answer, Step) else Step.END,
            row=name,
            why=why,
            outcome=outcome if isinstance(answer, Step) else answer,
            announce=announce,
            again=again,
        ),
        when=when,
    )


def recovers(view: View) -> bool:
    """Tell whether this end has joined an attempt to recover the stream, whose outcome is not known yet."""
    return view.answers and view.status in (
        MigrationStatus.POSTCOPY_RECOVER,
        MigrationStatus.POSTCOPY_RECOVER_SETUP,
    )


def fenceable(now: Situation) -> bool:
    """Tell whether the destination can be killed and seen dead."""
    return now.destination.can_fence and not now.intent.fence_failed


def past_postcopy_switch(intent: Intent) -> bool:
    """Tell whether the memory may be at both ends."""
    return intent.postcopy and intent.milestone >= Milestone.SWITCHING
