"""The next safe step of a migration that the guest's manager carries out: it switches and hands over by itself.

Nothing here sends ``migrate-continue``, or lets a guest run at the destination: the manager does, and undoes it by
itself where that is safe. What is left is to wait, to cancel, to have a broken postcopy go on, to let a guest that was
left standing go on at its source where a person said so, and to say where it ended. Pure and total.

One thing is done against the manager: libvirt takes a hand-over whose answer it did not hear for one that failed, and
lets the guest go on at its source while it runs at its target (seen with 9.0, 18 to 28 s after the network broke). So
the source's is ended where the target's is seen to run, and stopped where the target cannot be asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from migrator.core.migration.managed_situation import (
    DestinationHas,
    SourceHas,
    destination_has,
    has_more,
    source_has,
)
from migrator.core.migration.rules import Next, Step
from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer
from migrator.core.model import State, View


@dataclass(frozen=True, kw_only=True)
class ManagerCall:
    """The call by which this process had the manager begin."""

    #: It has not returned.
    runs: bool = False
    #: It returned and said that all went well.
    went_well: bool = False
    #: It returned and said otherwise.
    failed: bool = False
    #: Whatever happened at the target since it began was heard of.
    watched: bool = False
    #: Whatever happened at the source since it began was heard of: a guest that stood still for its switch, too.
    source_watched: bool = False


S, D = SourceHas, DestinationHas
#: Rows that hold a migration until what they say is over.
_LEFT_OVER, _SILENT = "left-over", ("both-silent", "source-silent", "destination-silent")
#: The guest is at the source and nowhere else can it run.
_AT_SOURCE = (S.RUNS, S.RESTS)


def decide(
    intent: Intent,
    source: View,
    destination: View,
    call: ManagerCall,
    *,
    overdue: bool = False,
    lapsed: bool = False,
    expired: bool = False,
) -> Next:
    """Return the next step for what was meant and what both managers show now; has an answer for everything.

    :param overdue: nothing has changed for longer than this phase may take.
    :param lapsed: nor for longer than a manager takes to notice that its peer is gone.
    :param expired: the recovery of a postcopy was tried for as long as it is.
    """
    here, there = source_has(source), destination_has(destination)
    stopped_by_us = intent.stopped_by_us and intent.milestone is not Milestone.PREPARING
    if here is S.RESTS and stopped_by_us and not (call.failed and call.watched and there is not D.SILENT):
        # It looks the same before and after its switch, and the target lets go on what was stopped under way.
        here = S.STANDS
    if intent.said is OperatorAnswer.LOST and here in (S.NOTHING, S.ENDED) and there in (D.NOTHING, D.ENDED):
        return _end("said-lost", State.FAILED, "a person said that the guest is lost")
    if S.SILENT is here or D.SILENT is there:
        return _out_of_reach(intent, here, there, call, overdue=overdue)
    if here in (S.SERVES, S.BROKEN) or there in (D.FETCHES, D.BROKEN):
        return _in_postcopy(here, there, source, call, expired=expired, overdue=overdue)
    if here is S.COPIES:
        if intent.undo is not None and not intent.postcopy:
            return Next(
                step=Step.CANCEL, row="undo", why="the guest stays where it is: its migration is cancelled"
            )
        if overdue and not intent.postcopy:
            return Next(step=Step.CANCEL, row="copying-stalled", why="the migration makes no progress")
        return _wait("copies", "memory is copied")
    if here is S.SWITCHES and overdue:
        return _switch_stalled(intent, there, call)
    if call.runs or here is S.SWITCHES:
        return _wait("under-way", "the manager is at work")
    if here in (S.NOTHING, S.ENDED):
        return _source_has_nothing(here, there, overdue=overdue)
    if here is S.STANDS:
        return _source_stands(intent, there, overdue=overdue)
    return _at_source(intent, here, there, overdue=overdue, lapsed=lapsed)


def _switch_stalled(intent: Intent, there: DestinationHas, call: ManagerCall) -> Next:
    """Answer where the guest has stood still for its switch for too long."""
    if there is D.RUNS:
        return Next(
            step=Step.FENCE_SOURCE,
            row="arrived-unheard",
            why="the guest runs at the target, complete, and its source did not hear that: libvirt there would soon "
            "let it go on as well",
        )
    if there in (D.WAITS, D.NOTHING) and not intent.postcopy:
        return Next(
            step=Step.CANCEL, row="switch-stalled", why="the guest stands still, and its switch does not come"
        )
    if call.runs:
        return _wait("under-way", "the manager is at work")
    return _held("switch-stalled", "the guest stands still for the switch, and it does not come")


def _out_of_reach(
    intent: Intent, here: SourceHas, there: DestinationHas, call: ManagerCall, *, overdue: bool
) -> Next:
    """Answer where a manager cannot be asked."""
    if call.went_well and there in (D.RUNS, D.RESTS):
        return _end("arrived", State.COMPLETED, "the guest has arrived; its source cannot be asked now")
    switched = intent.milestone >= Milestone.SWITCHING
    if here is S.RUNS and switched:
        return Next(
            step=Step.HALT,
            row="may-run-twice",
            why="libvirt lets the guest go on at its source, and whether it runs at the target cannot be asked",
        )
    # A switch that nobody saw may have let the guest run there, though libvirt here has let it go on as well.
    unswitched = intent.milestone is Milestone.PREPARING or (call.failed and call.source_watched)
    if here in _AT_SOURCE and not call.runs and overdue and not switched and unswitched:
        return _end("stays-unseen", State.FAILED, "the guest is at the source; its target cannot be asked")
    # Not held before its libvirt has ended the switch: it may let the guest go on then, and that is to be stopped. A
    # target that still waits is no second place: there is time until the source answers.
    at_switch = here is S.SILENT and intent.milestone is Milestone.SWITCHING and call.runs
    switches = here is S.SWITCHES or (at_switch and there in (D.SILENT, D.RUNS, D.RESTS))
    if not overdue or switches:
        return _wait("out-of-reach", "a manager cannot be asked")
    if S.SILENT is here and D.SILENT is there:
        return _held("both-silent", "libvirt answers at neither end, and where the guest runs is not known")
    if S.SILENT is here:
        return _held(
            "source-silent",
            "libvirt at the source does not answer, and the guest may run or stand there; where its QEMU waits to send "
            "over a network that is gone, libvirt answers once the network is back, or once that connection is ended "
            "(ss -K dst ADDRESS, as root on the source's host, of the target): the guest then goes on at the source",
        )
    return _held(
        "destination-silent", "libvirt at the target does not answer, and the guest may run or stand there"
    )


def _in_postcopy(
    here: SourceHas,
    there: DestinationHas,
    source: View,
    call: ManagerCall,
    *,
    expired: bool,
    overdue: bool,
) -> Next:
    if there in (D.NOTHING, D.ENDED):
        if there is D.ENDED:
            return _end("ended-there", State.GUEST_ENDED, "the guest ended by itself at the target")
        return _held(
            "postcopy-lost-target",
            "the guest's memory was at both ends, and at the target nothing of it is left: the source alone can "
            "never run it again",
        )
    if here in (S.NOTHING, S.ENDED):
        if there is D.RUNS:
            return _end("arrived", State.COMPLETED, "the guest runs at the target, complete")
        if call.runs or not overdue:
            return _wait("finishing", "the last pages are at the target, which says so in a moment")
        return _held(
            "postcopy-lost-source",
            "pages of the guest that its target lacks were at the source, and are gone",
        )
    if here in _AT_SOURCE and there in (D.FETCHES, D.RUNS):
        return _held("runs-twice", "the guest runs at the target, and its source has it as well")
    if expired:
        return _held("postcopy-broken", "the stream of the postcopy is broken and could not be mended")
    if S.BROKEN is here or D.BROKEN is there:
        return _stream_broken(here, there, source, call, overdue=overdue)
    if here is S.SERVES and there is D.FETCHES and overdue and has_more(source):
        # Not before the guest runs there, it would be lost with the stream; nor once the source has given all of it to
        # its kernel: QEMU 10.0 takes a stream that ends then for a migration that failed.
        return Next(
            step=Step.PAUSE_STREAM, row="stream-stalled", why="nothing comes through the stream any more"
        )
    return _wait("serves", "the guest runs at the target and fetches its memory")


def _stream_broken(
    here: SourceHas, there: DestinationHas, source: View, call: ManagerCall, *, overdue: bool
) -> Next:
    """Answer where an end has noticed that the stream of the postcopy is broken."""
    if here is S.SERVES and there is D.BROKEN and overdue and has_more(source):
        return Next(step=Step.PAUSE_STREAM, row="stream-breaks", why="the target has lost the stream")
    if call.runs:
        return _wait("breaks", "the stream of the postcopy is broken, and the manager has not ended its try")
    if there in (D.RUNS, D.RESTS):
        if not overdue:
            return _wait("finishing", "the guest is at the target, and the source has still to let go of it")
        return _held(
            "unconfirmed",
            "the guest is at the target, complete, and the source still has its pages: once the target's is seen "
            "to be well, end the source's (virsh destroy, and virsh undefine)",
        )
    if here is S.BROKEN and there is D.BROKEN:
        return Next(step=Step.RECOVER, row="recover", why="the stream of the postcopy is broken")
    return _wait("breaks", "one end has noticed that the stream is broken")


def _source_has_nothing(here: SourceHas, there: DestinationHas, *, overdue: bool) -> Next:
    if there in (D.RUNS, D.RESTS):
        return _end("arrived", State.COMPLETED, "the guest is at the target")
    if there is D.ENDED or here is S.ENDED:
        return _end("ended", State.GUEST_ENDED, "the guest ended by itself")
    if not overdue:
        return _wait("nowhere-yet", "the source has nothing of the guest any more, and the target not yet")
    if there is D.WAITS:
        return _held(
            "waits-alone", "the source has nothing of the guest any more, and the target waits for it"
        )
    return _held(
        "source-died",
        "the guest's QEMU at the source ended, or was killed, before all of it was at the target: start it from its "
        "disks",
    )


def _source_stands(intent: Intent, there: DestinationHas, *, overdue: bool) -> Next:
    """Answer where the guest stands still at the source after a migration of which nobody saw the end.

    A manager lets it go on by itself where it knows that it was not handed over. That the target has nothing of it does
    not tell: it may have run there, written to its disks, and died, while nobody looked.
    """
    if there in (D.NOTHING, D.ENDED) and intent.said is OperatorAnswer.SOURCE:
        return Next(
            step=Step.REVIVE,
            row="revive",
            why="a person said that the guest is at the source, and the target has nothing of it: it goes on there",
        )
    if there in (D.NOTHING, D.ENDED):
        return _held(
            "stands-alone",
            "the guest stands still at the source, and the target has nothing of it: it may have run there, and "
            "written to its disks, before it died; look at the log of its QEMU there and at the disks before you say "
            "that it goes on at the source",
        )
    if not overdue:
        return _wait("unconfirmed", "the managers have still to agree where the guest is")
    if there in (D.RUNS, D.RESTS):
        return _held(
            "unconfirmed",
            "the guest is at the target, and the source still has it, stopped: once the target's is seen to be "
            "well, end the source's (virsh destroy, and virsh undefine)",
        )
    return _held("stands", "the guest stands still at the source, and the target may have it")


def _at_source(
    intent: Intent, here: SourceHas, there: DestinationHas, *, overdue: bool, lapsed: bool
) -> Next:
    if there in (D.NOTHING, D.ENDED):
        state = intent.undo or State.FAILED
        return _end("stays", state, "the guest is at the source")
    if not overdue or (there is D.WAITS and not lapsed):
        # The guest loses nothing meanwhile; and a hand-over that is still on its way there may yet arrive.
        return _wait("clears", "the target has still to remove what waited for the guest")
    if there is D.RUNS and here is S.RUNS:
        return _held("runs-twice", "the guest runs at both ends: end one of them at once")
    if there is D.WAITS:
        return _held(
            _LEFT_OVER,
            "the guest is at the source, and at the target something waits for it, which libvirt there has not removed",
        )
    return _held("at-both", "both ends have the guest, and which one is meant nobody can tell")


def awaited(row: str) -> str:
    """Return what a migration that this row holds waits for; what both managers show then has an answer."""
    if row == _LEFT_OVER:
        return "libvirt at its target to remove what waits there, or a person's word"
    return "libvirt to answer" if row in _SILENT else "a person's word"


def _wait(row: str, why: str) -> Next:
    return Next(step=Step.WAIT, row=row, why=why)


def _held(row: str, why: str) -> Next:
    return Next(step=Step.END, row=row, why=why, outcome=State.HELD)


def _end(row: str, state: State, why: str) -> Next:
    return Next(step=Step.END, row=row, why=why, outcome=state)


def state_of(intent: Intent, source: View, destination: View) -> State:
    """Return the lifecycle's word for a migration that has not ended."""
    here, there = source_has(source), destination_has(destination)
    if intent.undo is not None:
        return State.FINISHING
    if S.BROKEN is here or D.BROKEN is there:
        return State.RECOVERING
    if there is D.FETCHES or here is S.SERVES:
        return State.POSTCOPY
    if there in (D.RUNS, D.RESTS):
        return State.FINISHING
    return State.SWITCHOVER if here in (S.SWITCHES, S.STANDS) else State.PRECOPY


def can_cancel(intent: Intent, source: View) -> bool:
    """Tell whether a cancel is still safe: the manager takes care of the rest, but for postcopy."""
    return not intent.postcopy and source_has(source) in (S.COPIES, S.RUNS, S.RESTS, S.SWITCHES)


def agrees(word: OperatorAnswer, source: View, destination: View) -> str:
    """Return why an operator's answer is not what both ends show; empty where it is."""
    here, there = source_has(source), destination_has(destination)
    gone_here, gone_there = here in (S.NOTHING, S.ENDED), there in (D.NOTHING, D.ENDED)
    match word:
        case OperatorAnswer.SOURCE if here in (*_AT_SOURCE, S.STANDS) and gone_there:
            return ""
        case OperatorAnswer.SOURCE:
            return "the source does not have it, or the target has it as well: end what is there, with virsh, first"
        case OperatorAnswer.DESTINATION if there in (D.RUNS, D.RESTS) and gone_here:
            return ""
        case OperatorAnswer.DESTINATION:
            return "the target does not have it, or the source has it as well: end what is there, with virsh, first"
        case OperatorAnswer.LOST:
            return (
                ""
                if gone_here and gone_there
                else "an end has it, or cannot be asked: end what is there first"
            )
