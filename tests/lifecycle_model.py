"""A model of two QEMUs, a controller and what may go wrong between them, to be explored state by state.

It knows what QEMU does (QEMU 7.2 where :attr:`Setting.old`, else 10.0) and what the engine does for each step that the
lifecycle table answers; what the table has to keep is asserted wherever a state would break it. Everything that takes
time is a move of its own, so that moves fall into each other as they may in reality: a look shows the one end at one
moment and the other at a later one, a command arrives when the end has moved on, or is carried out long after it was
given up, and a controller may die between any two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from migrator.core.migration.answer_review import AnswerReview, review_answer, with_answer
from migrator.core.migration.invariants import violations
from migrator.core.migration.lifecycle import Next, Step, can_cancel, decide
from migrator.core.migration.situation import (
    DestinationIs,
    Intent,
    Milestone,
    OperatorAnswer,
    SourceIs,
    destination_is,
    not_handed_over,
    source_is,
)
from migrator.core.model import MigrationStatus, ProcessState, RunState, Sample, State, View

R = RunState
M = MigrationStatus
RUNNING, PAUSED, INMIGRATE = R.RUNNING, R.PAUSED, R.INMIGRATE
FINISH, POSTMIGRATE = R.FINISH_MIGRATE, R.POSTMIGRATE
RECOVERING = frozenset({M.POSTCOPY_RECOVER_SETUP, M.POSTCOPY_RECOVER})
POSTCOPY = frozenset({M.POSTCOPY_ACTIVE, M.POSTCOPY_PAUSED, *RECOVERING})


class Broken(AssertionError):
    """The guest was doubled, lost, or left where nobody can run it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stays the same in one exploration."""

    postcopy: bool = False
    #: QEMU 7.2, which leaves some sources stopped that 10.0 resumes.
    old: bool = False
    guest_runs: bool = True
    can_fence: bool = True
    #: Killing a process comes to nothing, or may do so.
    fence_fails: bool = False
    #: A phase may be taken for overdue at any time, even while something happens.
    hasty: bool = True
    #: None is, before nothing moves any more.
    unhurried: bool = False
    #: The controller stops the guest before postcopy begins.
    stops_first: bool = True
    #: The controller has stopped the guest before memory is copied.
    offline: bool = False
    #: The guard has the source's monitor for itself while it looks and acts, as it does; else the controller's commands
    #: may fall between the two.
    exclusive: bool = True
    #: The record may lack its last entries: whoever takes it up reads it as if the guest had been handed over.
    behind: bool = False
    #: What a guard does otherwise than it should.
    guard_flaw: str = ""


class Fault(StrEnum):
    """What happens at most once, at any moment."""

    DESTINATION_DIES = "destination dies"
    SOURCE_DIES = "source dies"
    #: For good.
    DESTINATION_STALLS = "destination stalls"
    #: It wakes at any later moment.
    DESTINATION_DOZES = "destination dozes"
    SOURCE_STALLS = "source stalls"
    SOURCE_DOZES = "source dozes"
    #: Packets are lost from here on, in silence; they may come through again later.
    BLACK_HOLE = "black hole"
    #: The connection breaks, and both ends hear of it.
    RESET = "reset"
    REJECTED = "the destination rejects the guest"
    GUEST_ENDS = "the guest powers off"


class End(NamedTuple):
    """One QEMU."""

    life: ProcessState = ProcessState.ALIVE
    ended: bool = False
    run: R = RUNNING
    status: M = M.NONE
    #: "" / "dozes" / "stalls" / "blocked": it does nothing, and what it is told waits.
    asleep: str = ""
    #: Its connection is gone, and it knows.
    cut: bool = False
    #: Destination: waits for a connection to recover by. Source: was told to connect for it (7.2 does not show that).
    recovers: bool = False
    #: Source: all of the guest was given to its kernel.
    sent: bool = False
    #: The controller has seen it end, by whatever means.
    seen_dead: bool = False
    told: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        return self.life is not ProcessState.DEAD

    @property
    def acts(self) -> bool:
        return self.alive and not self.asleep


class ModelState(NamedTuple):
    """One state of everything."""

    source: End = End()
    destination: End = End(run=INMIGRATE)
    #: migrate-start-postcopy, and migrate-continue, have been heard.
    start_postcopy: bool = False
    continues: bool = False
    #: The source has lost the mark that the controller removes just before it sends migrate-continue.
    committed: bool = False
    #: The guest ran when the migration stopped it: then QEMU runs it again when the migration fails.
    resumes: bool = False
    #: Packets get lost between the two.
    lost: bool = False
    #: The destination holds all of the guest.
    whole: bool = False
    #: The guest has run at the destination.
    ran: bool = False
    #: The source ran on after the destination was whole.
    forked: bool = False
    #: What the record and the controller say, and where the controller is in its round: nothing seen, one end seen,
    #: both ends seen, a step decided and recorded; ``None``: ended.
    intent: Intent = Intent()
    seen_source: View | None = None
    seen_destination: View | None = None
    step: Step | None = None
    end: Next | None = None
    #: What may still happen: so many of these faults, each once.
    faults: frozenset[Fault] = frozenset()
    misfortunes: int = 1
    crashes: int = 0
    cancels: int = 0
    #: A person may say so often where the guest is, once it is held.
    words: int = 0
    #: A guard of the source may look so often, whether or not its controller is there; what it saw and has not acted on
    #: yet; it has sent its cancel.
    guards: int = 0
    guard_saw: tuple[R, M, bool] | None = None
    guard_cancelled: bool = False
    #: What has happened.
    happened: frozenset[Fault] = frozenset()

    @property
    def idle(self) -> bool:
        """The controller is between two rounds."""
        return (
            self.seen_source is None
            and self.seen_destination is None
            and self.step is None
            and self.end is None
        )


Moves = Iterator[tuple[str, ModelState]]


def kept(world: ModelState) -> None:
    """What holds in every state.

    :raise Broken: when it does not.
    """
    here, there = world.source, world.destination
    if there.alive and there.run is RUNNING:
        if here.alive and here.run is RUNNING:
            raise Broken("the guest runs twice")
        if world.forked:
            raise Broken("the guest runs from a state that its disks are ahead of")
    if world.ran and here.alive and here.run is RUNNING:
        raise Broken("the guest runs at the source after it ran at the destination")


# --- the two QEMUs ---------------------------------------------------------------------------------------------------


def qemu_moves(world: ModelState, setting: Setting) -> Moves:  # noqa: C901 - one case for each thing that QEMU does
    """What the QEMUs do by themselves next."""
    here, there = world.source, world.destination
    connected = not (world.lost or here.cut or there.cut) and there.acts
    # An end whose packets are lost hears nothing of the other's end.
    broken = here.cut or ((there.cut or not there.alive) and not world.lost)

    def source(name: str, run: R, status: M, **more: object) -> tuple[str, ModelState]:
        forked = world.forked or (world.whole and run is RUNNING)
        return name, world._replace(source=here._replace(run=run, status=status), forked=forked, **more)  # type: ignore[arg-type]

    def destination(name: str, run: R, status: M, **more: object) -> tuple[str, ModelState]:
        return name, world._replace(destination=there._replace(run=run, status=status), **more)  # type: ignore[arg-type]

    if here.acts:
        match here.status:
            case M.SETUP if connected and there.status is M.SETUP:
                yield source("connects", here.run, M.ACTIVE, destination=there._replace(status=M.ACTIVE))
            case M.SETUP | M.ACTIVE if broken or there.status is M.FAILED:
                yield source("fails in precopy", here.run, M.FAILED)
            case M.ACTIVE if connected:
                yield source("stops", FINISH, M.PRE_SWITCHOVER, resumes=here.run is RUNNING)
            case M.PRE_SWITCHOVER if world.continues:
                direct = world.start_postcopy and setting.old
                yield source("continues", FINISH, M.POSTCOPY_ACTIVE if direct else M.DEVICE, continues=False)
            case M.DEVICE if world.start_postcopy:
                # 10.0 stays in device for ever when the destination is gone.
                if there.alive:
                    yield source("switches to postcopy", FINISH, M.POSTCOPY_ACTIVE)
            case M.DEVICE if broken or there.status is M.FAILED:
                yield source("fails at the switch", FINISH, M.FAILED)
            case M.DEVICE if connected and there.status is M.COMPLETED:
                yield source("is done", FINISH, M.COMPLETED)
            case M.COMPLETED if here.run is FINISH:
                yield source("settles", POSTMIGRATE, M.COMPLETED)
            case M.CANCELLING:
                yield source("has cancelled", here.run, M.CANCELLED)
            case M.FAILED | M.CANCELLED if here.run is FINISH:
                if setting.old and (world.start_postcopy or not world.resumes):
                    yield source("stays stopped", POSTMIGRATE, here.status)
                else:
                    yield source("resumes", RUNNING if world.resumes else PAUSED, here.status)
            case M.POSTCOPY_ACTIVE if broken or there.status is M.FAILED:
                yield "loses postcopy", _cut(world, "source", M.POSTCOPY_PAUSED)
                # All pages were sent (10.0), or none yet (7.2): then it is taken for a precopy that failed.
                if there.status is M.ACTIVE if setting.old else here.sent:
                    yield source("fails in postcopy", FINISH, M.FAILED)
            case M.POSTCOPY_ACTIVE if connected and there.status is M.COMPLETED:
                yield source("has served", FINISH, M.COMPLETED)
            case M.POSTCOPY_ACTIVE if not here.sent and connected and there.status is M.POSTCOPY_ACTIVE:
                yield "has sent all", world._replace(source=here._replace(sent=True))
            case M.POSTCOPY_PAUSED | M.POSTCOPY_RECOVER_SETUP if here.recovers:
                yield from _connects(world)
            case M.POSTCOPY_RECOVER if connected and there.status in (M.POSTCOPY_ACTIVE, M.COMPLETED):
                yield source("goes on with postcopy", here.run, M.POSTCOPY_ACTIVE)
            case M.POSTCOPY_RECOVER if broken and not setting.old:
                yield "loses postcopy again", _cut(world, "source", M.POSTCOPY_PAUSED)
    if here.asleep == "blocked" and ((there.acts and not world.lost) or broken):
        yield "unblocks", _wake(world, "source", setting)
    unheard = world.lost or (there.alive and there.asleep)
    if here.acts and here.status is M.DEVICE and unheard and not broken and not world.start_postcopy:
        yield "blocks", world._replace(source=here._replace(asleep="blocked"))

    if there.acts:
        reaches = not (world.lost or here.cut or there.cut) and here.alive
        # Where it is cut off in silence it hears nothing of the source's end either.
        hears_end = there.cut or not here.alive or (here.cut and not world.lost)
        match there.status:
            case M.ACTIVE if reaches and here.status is M.DEVICE and not world.start_postcopy:
                if Fault.REJECTED in world.happened:
                    yield destination("rejects", INMIGRATE, M.FAILED)
                else:
                    yield destination("has loaded", PAUSED, M.COMPLETED, whole=True)
            case M.ACTIVE if reaches and here.status is M.POSTCOPY_ACTIVE:
                if Fault.REJECTED in world.happened:
                    yield destination("rejects", INMIGRATE, M.FAILED)
                else:
                    yield destination("is ready", PAUSED, M.POSTCOPY_ACTIVE)
            case M.POSTCOPY_ACTIVE if reaches and here.status is M.POSTCOPY_ACTIVE and here.sent:
                yield destination("has fetched", there.run, M.COMPLETED, whole=True)
            case M.POSTCOPY_ACTIVE if hears_end:
                yield "loses postcopy", _cut(world, "destination", M.POSTCOPY_PAUSED)
            case M.POSTCOPY_RECOVER if reaches and here.status is M.POSTCOPY_RECOVER:
                yield destination("goes on with postcopy", there.run, M.POSTCOPY_ACTIVE)
            case M.POSTCOPY_RECOVER if hears_end and setting.old:
                # 7.2 ends when the connection breaks in the midst of a recovery.
                dead, died = there._replace(life=ProcessState.DEAD), Fault.DESTINATION_DIES
                yield (
                    "dies of a lost recovery",
                    world._replace(destination=dead, happened=world.happened | {died}),
                )
            case M.POSTCOPY_RECOVER if hears_end:
                yield "loses postcopy again", _cut(world, "destination", M.POSTCOPY_PAUSED)
            case M.SETUP | M.ACTIVE if hears_end:
                yield destination("fails", INMIGRATE, M.FAILED)
                if here.status is M.DEVICE and not world.start_postcopy and not here.alive:
                    # All of it was on its way already.
                    yield destination("has loaded", PAUSED, M.COMPLETED, whole=True)
            case M.FAILED:
                yield "gives up", world._replace(destination=there._replace(life=ProcessState.DEAD))
    for name, end in (("source", here), ("destination", there)):
        if end.alive and end.asleep == "dozes":
            yield f"{name} wakes", _wake(world, name, setting)


def _cut(world: ModelState, name: str, status: M) -> ModelState:
    end: End = getattr(world, name)
    return world._replace(**{name: end._replace(status=status, cut=True)})  # type: ignore[arg-type]


def _connects(world: ModelState) -> Moves:
    """A source that was told to recover the stream connects, or does not."""
    here, there = world.source, world.destination
    if not world.lost and there.acts and there.status is M.POSTCOPY_PAUSED and there.recovers:
        yield (
            "connects again",
            world._replace(
                source=here._replace(status=M.POSTCOPY_RECOVER, cut=False, recovers=False, sent=False),
                destination=there._replace(status=M.POSTCOPY_RECOVER, cut=False, recovers=False),
            ),
        )
    else:
        yield (
            "does not connect",
            world._replace(source=here._replace(status=M.POSTCOPY_PAUSED, recovers=False)),
        )


def _wake(world: ModelState, name: str, setting: Setting) -> ModelState:
    end: End = getattr(world, name)
    world = world._replace(**{name: end._replace(asleep="", told=())})  # type: ignore[arg-type]
    for command in end.told:
        world = tell(world, name, command, setting)
    return world


#: A second one makes no difference.
_ONCE = ("cancel", "pause-stream", "recover", "resume-stream")


def tell(world: ModelState, name: str, command: str, setting: Setting) -> ModelState:
    """An end is given a command, and carries it out if it is awake."""
    end: End = getattr(world, name)
    if not end.alive:
        return world
    if command in _ONCE and command in end.told:
        return world
    if end.asleep:
        return world._replace(**{name: end._replace(told=(*end.told, command))})  # type: ignore[arg-type]
    if name == "destination":
        return _destination_obeys(world, end, command, setting)
    return _source_obeys(world, end, command, setting)


def _source_obeys(  # noqa: C901 - one case a command
    world: ModelState, end: End, command: str, setting: Setting
) -> ModelState:
    changed = end
    match command:
        case "migrate" if end.status in (M.NONE, M.FAILED, M.CANCELLED) and end.run in (RUNNING, PAUSED):
            changed = end._replace(status=M.SETUP)
        case "start-postcopy" if end.status in (M.SETUP, M.ACTIVE):
            return world._replace(start_postcopy=True)
        case "commit":
            return world._replace(committed=True)
        case "continue" if end.status is M.PRE_SWITCHOVER:
            return world._replace(continues=True)
        case "cancel" if end.status in POSTCOPY and (world.destination.alive or world.ran):
            raise Broken("migrate_cancel in postcopy destroys the guest")
        case "cancel" if end.status is M.POSTCOPY_ACTIVE and setting.old:
            changed = end._replace(status=M.CANCELLING)
        case "cancel" if end.status in (M.SETUP, M.ACTIVE, M.PRE_SWITCHOVER, M.DEVICE):
            changed = end._replace(status=M.CANCELLING)
        case "cont" if end.run in (POSTMIGRATE, PAUSED):
            if world.destination.alive:
                raise Broken("the source is run while the destination lives")
            changed = end._replace(run=RUNNING if setting.guest_runs else PAUSED)
            return world._replace(source=changed, forked=world.forked or world.whole)
        case "resume" if end.run in (POSTMIGRATE, PAUSED):
            if world.ran or world.whole:
                raise Broken("the source is run though the destination has the guest")
            return world._replace(source=end._replace(run=RUNNING))
        case "restore" if end.run is PAUSED and setting.guest_runs:
            if world.ran:
                raise Broken("the source is run after the destination ran")
            return world._replace(source=end._replace(run=RUNNING), forked=world.forked or world.whole)
        case "stop" if end.run is RUNNING:
            changed = end._replace(run=PAUSED)
        case "pause-stream" if end.status is M.POSTCOPY_ACTIVE:
            # It is not known at once whether that ends in a pause or as a failure: see what QEMU does when cut.
            changed = end._replace(cut=True)
        case "pause-stream" if end.status is M.POSTCOPY_RECOVER and not setting.old:
            changed = end._replace(cut=True, status=M.POSTCOPY_PAUSED)
        case "resume-stream" if end.status is M.POSTCOPY_PAUSED:
            status = end.status if setting.old else M.POSTCOPY_RECOVER_SETUP
            changed = end._replace(recovers=True, status=status)
        case "quit":
            changed = end._replace(life=ProcessState.DEAD)
    return world._replace(source=changed)


def _destination_obeys(world: ModelState, end: End, command: str, setting: Setting) -> ModelState:
    match command:
        case "pause-stream" if end.status is M.POSTCOPY_ACTIVE or (
            end.status is M.POSTCOPY_RECOVER and not setting.old
        ):
            return world._replace(destination=end._replace(status=M.POSTCOPY_PAUSED, cut=True))
        case "recover" if end.status is M.POSTCOPY_PAUSED:
            return world._replace(destination=end._replace(recovers=True))
        case "cont" if end.run is INMIGRATE:
            raise Broken("a destination that is not complete was told to run")
        case "cont" if end.run is PAUSED:
            return world._replace(destination=end._replace(run=RUNNING), ran=True)
        case "quit":
            return world._replace(destination=end._replace(life=ProcessState.DEAD))
    return world


# --- what goes wrong -------------------------------------------------------------------------------------------------


def fault_moves(world: ModelState, setting: Setting) -> Moves:  # noqa: C901 - one case a fault
    """What may go wrong now, once each."""
    here, there = world.source, world.destination
    for fault in world.faults:
        left = world.faults - {fault} if world.misfortunes > 1 else frozenset()
        after = world._replace(
            faults=left, misfortunes=world.misfortunes - 1, happened=world.happened | {fault}
        )
        match fault:
            case Fault.DESTINATION_DIES if there.alive:
                after = after._replace(destination=there._replace(life=ProcessState.DEAD))
            # No second misfortune in the very moment after a switch that failed for the source alone.
            case Fault.SOURCE_DIES | Fault.SOURCE_DOZES | Fault.SOURCE_STALLS if (
                world.forked and world.intent.live and not world.intent.undo
            ):
                continue
            case Fault.SOURCE_DIES if here.alive:
                after = after._replace(source=here._replace(life=ProcessState.DEAD))
            case Fault.DESTINATION_STALLS | Fault.DESTINATION_DOZES if there.acts:
                after = after._replace(destination=there._replace(asleep=fault.split()[-1]))
            case Fault.SOURCE_STALLS | Fault.SOURCE_DOZES if here.acts:
                after = after._replace(source=here._replace(asleep=fault.split()[-1]))
            case Fault.BLACK_HOLE if here.status is not M.NONE:
                after = after._replace(lost=True)
            case Fault.RESET if here.status is not M.NONE:
                after = after._replace(source=here._replace(cut=True), destination=there._replace(cut=True))
            case Fault.REJECTED if here.status in (M.ACTIVE, M.PRE_SWITCHOVER):
                pass
            case Fault.GUEST_ENDS if here.acts and here.run is RUNNING:
                after = after._replace(source=here._replace(life=ProcessState.DEAD, ended=True))
            case Fault.GUEST_ENDS if there.acts and there.run is RUNNING:
                after = after._replace(destination=there._replace(life=ProcessState.DEAD, ended=True))
            case _:
                continue
        yield fault, after
    if world.lost:
        yield "packets come through again", world._replace(lost=False)
        # Hours later an end gives a silent connection up by itself.
        for name, end in (("source", here), ("destination", there)):
            if end.acts and end.status is M.POSTCOPY_ACTIVE:
                yield f"{name} gives the stream up", _cut(world, name, M.POSTCOPY_PAUSED)
    if world.crashes and world.end is None:
        yield "the controller dies", crashed(world, setting)
        if here.told or there.told:
            # What a closed session left unread may be dropped.
            dropped = world._replace(source=here._replace(told=()), destination=there._replace(told=()))
            yield "the controller dies, and with it what it said", crashed(dropped, setting)
    if world.cancels and world.end is None:
        yield "Ctrl-C", world._replace(cancels=world.cancels - 1, happened=world.happened)


# --- the guard -------------------------------------------------------------------------------------------------------

#: What a guard that follows no rule does.
CANCELS_ALWAYS, IS_NOT_RELEASED, RESUMES_ALWAYS = "cancels always", "is not released", "resumes always"
IGNORES_MARK = "ignores the mark"
#: A guest that its controller had stopped, once the guard has cancelled its migration.
_LEFT_STANDING = {
    *((PAUSED, status) for status in (M.CANCELLING, M.CANCELLED, M.FAILED)),
    *((R.POSTMIGRATE, status) for status in (M.CANCELLED, M.FAILED)),
}


def guard_moves(world: ModelState, setting: Setting) -> Moves:
    """What the guard at the source's host does: it looks, and acts on that at any later moment.

    Of its own accord: it may take a controller for dead that is not.
    """
    here, saw = world.source, world.guard_saw
    if saw is None:
        if world.guards and here.acts:
            seen = here.run, here.status, world.committed
            yield "the guard looks", world._replace(guards=world.guards - 1, guard_saw=seen)
        return
    run, status, committed = saw
    after = world._replace(guard_saw=None)
    stopped = world.intent.stopped_by_us
    copies = status in (M.SETUP, M.ACTIVE)
    untold = status is M.PRE_SWITCHOVER and (not committed or setting.guard_flaw == IGNORES_MARK)
    if untold or (copies and stopped) or setting.guard_flaw == CANCELS_ALWAYS:
        yield "the guard cancels", tell(after._replace(guard_cancelled=True), "source", "cancel", setting)
    elif setting.guard_flaw == RESUMES_ALWAYS or (
        world.guard_cancelled and stopped and (run, status) in _LEFT_STANDING
    ):
        yield "the guard resumes the source", tell(after, "source", "resume", setting)
    else:
        yield "the guard leaves it", after  # parking changes nothing of the states


def found_ended_by_guard(world: ModelState, source: View) -> bool:
    """Whether the controller finds that a guard has ended the migration."""
    over = source_is(source) in (SourceIs.RUNS, SourceIs.RESTS, SourceIs.FAILING, SourceIs.LEFT_STOPPED)
    return world.guard_cancelled and over and source.status in (M.CANCELLING, M.CANCELLED, M.FAILED)


def crashed(world: ModelState, setting: Setting) -> ModelState:
    """Another controller takes the record up."""
    intent = _but(world.intent, live=False, dismissed=False, fence_failed=False)
    if setting.behind and not intent.restored:
        intent = _but(intent, milestone=max(intent.milestone, Milestone.HANDED_OVER))
    return world._replace(
        crashes=max(0, world.crashes - 1),
        intent=intent,  # as it is read from a record
        seen_source=None,
        seen_destination=None,
        step=None,
        # Neither process's last event was heard by the new one.
        source=world.source._replace(ended=False, seen_dead=False),
        destination=world.destination._replace(ended=False, seen_dead=False),
    )


# --- the controller --------------------------------------------------------------------------------------------------


@cache
def _view(
    life: ProcessState, ended: bool, run: R, status: M, answers: bool, can_fence: bool, sent: bool
) -> View:
    if not answers:
        return View(process=life, ended=ended, can_fence=can_fence)
    sample = Sample(remaining_bytes=0 if sent else 1)
    return View(
        process=life, answers=True, run=run, status=status, ended=ended, can_fence=can_fence, sample=sample
    )


def view(end: End, setting: Setting) -> View:
    """What a look at this end shows."""
    life = end.life if setting.can_fence or end.seen_dead else ProcessState.UNKNOWN
    return _view(life, end.ended, end.run, end.status, end.acts, setting.can_fence, end.sent)


@cache
def _decide(intent: Intent, source: View, destination: View, overdue: bool, expired: bool) -> Next:
    return decide(intent, source, destination, overdue=overdue, expired=expired)


def forget_answers() -> None:
    """What the table answers is remembered: forget it when the table was changed."""
    _decide.cache_clear()
    _consider.cache_clear()


@cache
def _but(intent: Intent, **changes: object) -> Intent:
    return replace(intent, **changes)  # type: ignore[arg-type]


def controller_moves(world: ModelState, setting: Setting) -> Moves:
    """The next thing the controller does: looks at either end, decides and records, acts."""
    if world.end is not None:
        return
    if world.step is not None:
        yield from _act(world._replace(step=None), world.step, setting)
        return
    if world.seen_source is None:
        yield "look at the source", world._replace(seen_source=view(world.source, setting))
    if world.seen_destination is None:
        yield "look at the destination", world._replace(seen_destination=view(world.destination, setting))
    if world.seen_source is not None and world.seen_destination is not None:
        yield decided(world, setting, overdue=False)
        now = view(world.source, setting), view(world.destination, setting)
        stream = {world.seen_source.status, world.seen_destination.status} & POSTCOPY
        # A stream that carries something is never taken for one that does not: how much it did is seen.
        cut = world.source.cut or world.destination.cut
        stalls = not stream or world.lost or cut or not (world.source.acts and world.destination.acts)
        if setting.unhurried:
            return
        if stalls and ((setting.hasty and not stream) or now == (world.seen_source, world.seen_destination)):
            yield decided(world, setting, overdue=True)
            if stream:
                yield decided(world, setting, overdue=True, expired=True)


def decided(  # noqa: C901 - one case a step
    world: ModelState, setting: Setting, *, overdue: bool, expired: bool = False, cancel: bool = False
) -> tuple[str, ModelState]:
    """What the table answers to what was seen, recorded before it is done."""
    source, destination = world.seen_source, world.seen_destination
    assert source is not None
    assert destination is not None
    intent = world.intent
    world = world._replace(seen_source=None, seen_destination=None)
    if not_handed_over(intent, source, destination):
        intent = _but(intent, milestone=Milestone.SWITCHING)
    if cancel and intent.undo is None and can_cancel(intent, source):
        intent = _but(intent, undo=State.CANCELLED)
    if (
        intent.undo is None
        and intent.milestone < Milestone.HANDED_OVER
        and found_ended_by_guard(world, source)
    ):
        intent = _but(intent, undo=State.CANCELLED, postponed=True)
    here = source_is(source)
    answer = _decide(intent, source, destination, overdue, expired)
    if intent.said is None and answer.state is not State.HELD:
        for each in violations(intent, source, destination):
            raise Broken(f"{answer.row}: {each.invariant} is broken, and nothing holds the migration")
    failed = {} if intent.undo else {"undo": State.FAILED}
    if answer.step in (Step.CANCEL, Step.REVIVE, Step.RESUME, Step.RESTORE, Step.FENCE_DESTINATION):
        intent = _but(intent, **failed)
    match answer.step:
        case Step.WAIT:
            if here is SourceIs.COPIES and setting.postcopy and not intent.postcopy and intent.undo is None:
                if setting.guard_flaw != IS_NOT_RELEASED:
                    if world.guard_saw is not None:
                        return "wait for the guard", world._replace(intent=intent)
                    world = world._replace(guards=0)
                stops = setting.stops_first and setting.guest_runs
                world = world._replace(intent=_but(intent, postcopy=True, stopped_by_us=stops))
                if stops:
                    world = tell(world, "source", "stop", setting)
                return "start postcopy", tell(world, "source", "start-postcopy", setting)
            return "wait", world._replace(intent=intent)
        case Step.END:
            _ended(world, answer, setting)
            return f"end: {answer.row}", world._replace(intent=intent, end=answer)
        case Step.DISMISS | Step.FENCE_DESTINATION if (
            source.process is not ProcessState.ALIVE and not world.source.alive
        ):
            # A source that lived a moment ago may have died since: nobody can know.
            stuck = overdue and destination_is(destination) is DestinationIs.LOADS
            if world.whole and not stuck and not world.source.ended and not world.forked:
                raise Broken(f"{answer.row} ends the only process that holds the guest")
        case Step.RETIRE | Step.FENCE_SOURCE if not world.whole and Fault.GUEST_ENDS not in world.happened:
            raise Broken(f"{answer.row} ends the source, and the destination has not the whole guest")
        case Step.SWITCH:
            intent = _but(intent, milestone=Milestone.SWITCHING)
        case Step.HAND_OVER:
            intent = _but(intent, milestone=Milestone.HANDED_OVER)
        case Step.RETIRE:
            intent = _but(intent, milestone=Milestone.RETIRING)
    return f"decide: {answer.row}", world._replace(intent=intent, step=answer.step)


def _act(world: ModelState, step: Step, setting: Setting) -> Moves:  # noqa: C901 - one case a step
    """Take a step, whatever has become of both ends since it was decided."""
    intent = world.intent
    match step:
        case Step.SWITCH:
            # QEMU carries out both in this order; the second is dropped where its client goes just then.
            committed = tell(world, "source", "commit", setting)
            yield "continue", tell(committed, "source", "continue", setting)
            if world.guards or world.crashes:
                yield "continue is dropped", committed
        case Step.HAND_OVER:
            yield "cont the destination", tell(world, "destination", "cont", setting)
        case Step.PAUSE_STREAM:
            paused = tell(world, "source", "pause-stream", setting)
            if paused.source.status not in RECOVERING:  # else it has refused
                paused = tell(paused, "destination", "pause-stream", setting)
            yield "pause the stream", paused
        case Step.RECOVER:
            if world.lost:
                yield "see that nothing comes through", world
            # What was seen to come through may be lost a moment later.
            listens = tell(world, "destination", "recover", setting)
            yield "recover the stream", tell(listens, "source", "resume-stream", setting)
        case Step.CANCEL:
            told = tell(world, "source", "cancel", setting)
            if told.source.asleep == "blocked" and intent.live:
                # It is not answered in time: a yank out of band breaks the stream off, and then it is carried out.
                told = _wake(told._replace(source=told.source._replace(cut=True)), "source", setting)
            yield "cancel", told
        case Step.REVIVE:
            yield "cont the source", tell(world, "source", "cont", setting)
        case Step.RESUME:
            after = tell(world, "source", "resume", setting)
            if after.source.acts:
                after = after._replace(intent=_but(intent, stopped_by_us=False))
            yield "resume the source", after
        case Step.RESTORE:
            after = tell(world, "source", "restore", setting) if intent.stopped_by_us else world
            if after.source.acts or not intent.stopped_by_us:
                after = after._replace(intent=_but(intent, restored=True, stopped_by_us=False))
            yield "restore", after
        case Step.DISMISS:
            reached = setting.can_fence or world.destination.acts
            after = _killed(world, "destination") if reached else tell(world, "destination", "quit", setting)
            yield "dismiss", after._replace(intent=_but(intent, dismissed=True))
        case Step.RETIRE if setting.can_fence or world.source.acts or not world.source.alive:
            yield "retire", _killed(world, "source")
        case Step.RETIRE:
            # The engine warns of a source that could not be seen to end, and has done.
            left = Next(step=Step.END, row="source-left", why="", outcome=State.COMPLETED)
            _ended(world, left, setting)
            yield "end: source-left", world._replace(end=left)
        case Step.FENCE_DESTINATION:
            yield "fence the destination", _killed(world, "destination")
            if setting.fence_fails:
                yield "fail to fence", world._replace(intent=_but(intent, fence_failed=True))
        case Step.FENCE_SOURCE:
            yield "fence the source", _killed(world, "source")
            if setting.fence_fails:
                yield "fail to fence", world._replace(intent=_but(intent, fence_failed=True))


@cache
def _consider(
    word: OperatorAnswer, intent: Intent, source: View, destination: View, held_code: str
) -> AnswerReview:
    return review_answer(word, intent, source, destination, held_code=held_code)


def person_moves(world: ModelState, setting: Setting) -> Moves:
    """What happens while it is held: both ends go on, and a person who has looked says what is true.

    Only a person can know what became of the disks: whether the destination wrote to them before it died, or the
    source after the destination was whole.
    """
    assert world.end is not None
    yield from qemu_moves(world, setting)
    for word in OperatorAnswer:
        if word is OperatorAnswer.SOURCE and world.ran and not world.destination.alive:
            continue
        if word is OperatorAnswer.DESTINATION and world.forked:
            continue
        here, there = view(world.source, setting), view(world.destination, setting)
        answer = _consider(word, world.intent, here, there, world.end.row)
        if answer.accepted:
            ended = Fault.GUEST_ENDS in world.happened
            if (
                word is OperatorAnswer.LOST
                and not ended
                and (world.source.alive or (world.destination.alive and world.whole))
            ):
                raise Broken("lost, and a process that holds the guest lives")
            heard = world._replace(intent=with_answer(world.intent, word), end=None, words=world.words - 1)
            yield f"a person says: {word} ({answer.code})", heard


def _killed(world: ModelState, name: str) -> ModelState:
    """The controller ends a process: it must hold nothing that only it has."""
    here, there = world.source, world.destination
    if name == "destination" and there.alive:
        if world.ran:
            raise Broken("the destination was ended and had run the guest")
        if here.alive and here.status in POSTCOPY:
            raise Broken("the destination was ended past the postcopy switch: the source can never run again")
    end: End = getattr(world, name)
    return world._replace(**{name: end._replace(life=ProcessState.DEAD, seen_dead=True)})  # type: ignore[arg-type]


def _ended(world: ModelState, answer: Next, setting: Setting) -> None:  # noqa: C901 - one case an end
    """What has to be so when the controller says that it is over."""
    here, there = world.source, world.destination
    runs = RUNNING if setting.guest_runs else PAUSED
    match answer.state:
        case State.COMPLETED:
            if Fault.GUEST_ENDS in world.happened or Fault.DESTINATION_DIES in world.happened:
                return  # at the very moment
            if not (there.alive and world.whole and there.run is runs):
                raise Broken("completed, and the guest is not there as it was")
        case State.FAILED if answer.row == "said-lost":
            if here.alive or there.alive:
                raise Broken("lost, and a process lives")
        case State.FAILED | State.CANCELLED:
            if {Fault.GUEST_ENDS, Fault.SOURCE_DIES} & world.happened:
                return
            if not (here.alive and here.run is runs):
                raise Broken(f"{answer.state}, and the guest is not at the source as it was")
            if there.alive and (setting.can_fence or there.acts):
                raise Broken(f"{answer.state}, and the destination is left")
        case State.GUEST_ENDED:
            if Fault.GUEST_ENDS not in world.happened:
                raise Broken("nobody ended the guest")
        case State.HELD:
            if {Fault.GUEST_ENDS, Fault.SOURCE_DIES, Fault.DESTINATION_DIES} & world.happened:
                return
            if (
                not (here.alive and not world.ran)
                and not (there.alive and world.whole)
                and not (here.alive and there.alive)
            ):
                raise Broken("held, and the guest is nowhere")
        case _:
            raise Broken(f"no end: {answer}")


# --- going through all of it -----------------------------------------------------------------------------------------


def began(setting: Setting, **what_may_happen: object) -> ModelState:
    """The moment at which ``migrate`` was noted and not yet sent, destination listening."""
    intent = Intent(
        guest_runs=setting.guest_runs, milestone=Milestone.MIGRATING, stopped_by_us=setting.offline
    )
    return ModelState(
        source=End(run=RUNNING if setting.guest_runs and not setting.offline else PAUSED),
        destination=End(run=INMIGRATE, status=M.SETUP),
        intent=intent,
        **what_may_happen,  # type: ignore[arg-type]
    )


Trace = Callable[[ModelState], list[str]]


def explore(setting: Setting, **what_may_happen: object) -> dict[ModelState, tuple[ModelState, str] | None]:
    """Every state that can be reached, each with where it was reached from.

    :raise Broken: with the way to the first state that breaks an invariant.
    """
    first = began(setting, **what_may_happen)
    begun = tell(first, "source", "migrate", setting)
    # A controller that dies before it sent migrate leaves the first.
    reached: dict[ModelState, tuple[ModelState, str] | None] = {begun: None}
    front = [begun]
    if first.crashes:
        reached[crashed(first, setting)] = None
        front.append(crashed(first, setting))
    while front:
        following: list[ModelState] = []
        for world in front:
            try:
                for name, after in _moves(world, setting):
                    if after not in reached:
                        reached[after] = (world, name)
                        kept(after)
                        following.append(after)
            except Broken as error:
                raise Broken(f"{error}: {' → '.join(way(reached, world))} → ?\n{setting}\n{world}") from None
        front = following
    return reached


def way(reached: dict[ModelState, tuple[ModelState, str] | None], world: ModelState) -> list[str]:
    """How a state was reached."""
    names: list[str] = []
    step = reached.get(world)
    while step is not None:
        world, name = step
        names.append(name)
        step = reached.get(world)
    return names[::-1]


def _moves(world: ModelState, setting: Setting) -> Moves:
    if world.end is not None:
        if world.end.state is State.HELD and world.words:
            yield from person_moves(world, setting)
        return
    yield from qemu_moves(world, setting)
    for name, after in fault_moves(world, setting):
        if name == "Ctrl-C":
            if world.seen_source is not None and world.seen_destination is not None:
                yield name, decided(after, setting, overdue=False, cancel=True)[1]
        else:
            yield name, after
    if world.guards or world.guard_saw is not None:
        yield from guard_moves(world, setting)
    if not (setting.exclusive and world.guard_saw is not None):
        yield from controller_moves(world, setting)


# --- coming to an end ------------------------------------------------------------------------------------------------


def came_to_rest(world: ModelState, setting: Setting) -> list[ModelState]:
    """What becomes of it if the controller only watches, until nothing happens any more."""
    resting, front, seen = [], [world], {world}
    while front:
        now = front.pop()
        following = [after for _, after in qemu_moves(now, setting)]
        if not following:
            resting.append(now)
        for after in following:
            if after not in seen:
                seen.add(after)
                front.append(after)
    return resting


class Endings:
    """Where a controller that is left alone ends, from any state between two of its rounds.

    It is given all the time it wants: it looks when nothing moves any more, and what does not change is overdue.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._known: dict[ModelState, frozenset[str]] = {}

    def of(self, world: ModelState) -> frozenset[str]:
        """The rows that it may end with.

        :raise Broken: when it need not end at all.
        """
        world = world._replace(faults=frozenset(), misfortunes=0, crashes=0, cancels=0, guards=0)
        rows: set[str] = set()
        for resting in came_to_rest(world, self._setting):
            rows |= self._of_resting(resting, ())
        return frozenset(rows)

    def _of_resting(self, world: ModelState, before: tuple[ModelState, ...]) -> frozenset[str]:
        if world.end is not None:
            return frozenset({world.end.row})
        if world in before:
            if not {world.source.status, world.destination.status} & POSTCOPY:
                raise Broken(f"the controller goes round in circles: {world}")
            # It tries to recover the stream again and again, until its time is over.
            (ended,) = self._round(world, overdue=True, expired=True)
            if ended.end is None:
                raise Broken(f"the controller tries to recover the stream for ever: {ended}")
            return frozenset({ended.end.row})
        if world not in self._known:
            after = self._round(world, overdue=False)
            if after == {world}:
                after = self._round(world, overdue=True)
            if after == {world}:
                after = self._round(world, overdue=True, expired=True)
            rows: set[str] = set()
            for following in after:
                rows |= self._of_resting(following, (*before, world))
            self._known[world] = frozenset(rows)
        return self._known[world]

    def _round(self, world: ModelState, *, overdue: bool, expired: bool = False) -> set[ModelState]:
        setting = self._setting
        looked = world._replace(
            seen_source=view(world.source, setting), seen_destination=view(world.destination, setting)
        )
        _, after = decided(looked, setting, overdue=overdue, expired=expired)
        if after.step is None:
            return set(came_to_rest(after, setting))
        return {
            resting
            for _, done in _act(after._replace(step=None), after.step, setting)
            for resting in came_to_rest(done, setting)
        }
