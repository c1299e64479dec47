"""The schedule: which migrations run now, and with how much bandwidth each. Pure.

::

    transfers = [Transfer(guest="vm-1", source="host-1", target="host-3", bytes_left=4 * 2**30), ...]
    moves = moves_of(transfers, hosts, rules)       # hosts: name -> migrator.core.inventory.Host
    decided = decide(*partition(moves), rules)
    decided.prepare                                 # those to start preparing
    decided.begin                                   # those that are ready and get the link now
    decided.bandwidth                               # move -> bytes per second, for all that transfer now
    decided.reasons()                               # move -> a sentence, for everybody
    decided.recheck_seconds(rules)                  # ask again at this time at the latest; None: at the next event
    predict(transfers, hosts)                       # when each begins and ends, and all: see core/schedule/timetable.py

Ask at every event: something is added, becomes ready, ends, fails, or a host changes; and with fresh `bytes_left` of
what is running every second or so. A new bandwidth is worth telling QEMU if it differs by a few per cent. Nothing is
remembered between calls. A guest that failed is put in again as WAITING once its pause is over. It is assumed that what
is begun ends some day, however late; then everything has its turn.

The rules: a link, out of the source and into the target, is a resource of its own. A guest that barely converges is
given its links for itself, up to what it can use of them. Quiet ones share a link, but only as many as fill it: a link
that is full carries no more by being shared out. The next one begins when one has little left to send. Preparing and
clearing away hold no link; a few are prepared ahead. The order of turn is priority, then what must begin first to keep
its deadline, then the longest first. Nobody takes a link that one before him waits for, but for the second link of one
that needs two for itself: what has ended by the time the first is free may have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from migrator.core.schedule.queues import Queues, by_turn, partition
from migrator.core.schedule.sharing import share
from migrator.core.schedule.transfers import LinkDirection, LinkRules, Move, Transfer, TransferPhase
from migrator.units import show_rate, show_seconds

__all__ = [
    "LinkRules",
    "ScheduleDecision",
    "Transfer",
    "TransferPhase",
    "decide",
    "partition",
    "would_be_late",
]

#: Rounding must not keep out what fits exactly.
_ABOUT = 1 + 1e-6
#: So much more than it carries is on a link before somebody who transfers already is held back.
_TOO_FULL = 1.25


@dataclass(kw_only=True)
class LinkUse:
    """Use of one direction of a link."""

    users: list[Move] = field(default_factory=list)
    #: Bandwidth that they would take if each had it alone, and that they are expected to take; bytes per second.
    speed: float = 0.0
    load: float = 0.0
    #: One of them needs it for itself.
    alone: bool = False
    #: One whose path nobody has measured yet.
    proving: Move | None = None


@dataclass(kw_only=True)
class ScheduleDecision:
    """A decision, in moves; the prediction uses it too."""

    #: What was begun in any way, in the order of turn, and what was not.
    active: Sequence[Move]
    waiting: Queues
    #: Seconds since the transfers' deadlines were given.
    now: float
    prepare: list[Move] = field(default_factory=list)
    begin: list[Move] = field(default_factory=list)
    bandwidth: dict[Move, float] = field(default_factory=dict)
    #: Of those that transfer, those that would not be begun now, and have what the others leave.
    held_back: list[Move] = field(default_factory=list)
    #: Ready moves, and the links that have no room for each.
    blocked: dict[Move, list[LinkDirection]] = field(default_factory=dict)
    #: Ready moves, and the move that waits for the link before each.
    behind: dict[Move, Move] = field(default_factory=dict)
    on: dict[LinkDirection, LinkUse] = field(default_factory=dict)

    def recheck_seconds(self, rules: LinkRules) -> float | None:
        """Return the seconds until the first of those that run has so little left that another may begin."""
        waits = [
            (move.sending_left - rules.overlap_seconds) / move.pace_at(speed)
            for move, speed in self.bandwidth.items()
            if not move.alone and move.sending_left > rules.overlap_seconds
        ]
        return min(waits, default=None)

    def reasons(self) -> dict[Move, str]:
        """Return a sentence for each."""
        return {move: self._reason(move) for move in chain(self.active, *self.waiting.values())}

    def _reason(self, move: Move) -> str:
        if move in self.bandwidth:
            return self._reason_running(move)
        if move.phase is TransferPhase.FINISHING:
            return "is being cleared away after; holds no link"
        if move.never:
            return f"cannot run: {move.never}"
        if move in self.prepare:
            return "is prepared while others transfer" if self.bandwidth else "is prepared: it is its turn"
        if move.phase is TransferPhase.PREPARING:
            return "is being prepared"
        if would_be_late(move, self.now):
            left = show_seconds(max(0.0, (move.transfer.deadline_seconds or 0.0) - self.now))
            return f"is not begun: it takes {show_seconds(move.seconds_alone)}, and the deadline is in {left}"
        if move.phase is TransferPhase.WAITING:
            return (
                "waits for its turn: enough others are prepared already (limits.prepared_per_source and "
                "prepared_per_target)"
            )
        if move in self.behind:
            return f"is ready; {self.behind[move].transfer.guest} is before it and waits for the same link"
        pipes = self.blocked[move]
        others = [other.transfer.guest for other in self.on[pipes[0]].users]
        if pipes[0].limit is not None and len(others) >= pipes[0].limit:
            limit = f"{pipes[0].host} takes {pipes[0].limit} at a time ({pipes[0].key})"
            return f"is ready; waits for {_names(others)}: {limit}"
        proving = self.on[pipes[0]].proving
        if proving is not None and not move.path.proven:
            return f"is ready; nobody has measured {pipes[0].name} yet: {proving.transfer.guest} shows what it carries"
        if move.alone:
            return f"is ready; needs {pipes[0].name} for itself and waits for {_names(others)}"
        return f"is ready; {pipes[0].name} is filled by {_names(others)}"

    def _reason_running(self, move: Move) -> str:
        speed = self.bandwidth[move]
        slower = min(move.links, key=lambda pipe: pipe.capacity)
        others = [other.transfer.guest for other in self.on[slower].users if other is not move]
        if move.alone:
            dirty = move.transfer.dirty_rate_bytes_per_second
            return f"has all it can use, {show_rate(speed)}: it barely converges (dirties {show_rate(dirty)})"
        if move in self.held_back:
            return (
                f"is held back to {show_rate(speed)}: {slower.name} is filled by {_names(others)}, and fewer at a time "
                "end sooner"
            )
        if others:
            return f"has {show_rate(speed)} of {slower.name}, shared with {_names(others)}"
        return f"has {slower.name} for itself: {show_rate(speed)}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def would_be_late(move: Move, now: float) -> bool:
    """Tell whether a migration would be cancelled before it ended."""
    return now + move.sending_left + move.fixed_left > move.must_end


def decide(
    active: Sequence[Move],
    waiting: Queues,
    rules: LinkRules,
    *,
    now: float = 0.0,
) -> ScheduleDecision:
    """Make the decision, on moves in the order of turn (see :func:`partition`); none of them is changed.

    :param now: seconds since the transfers' deadlines were given.
    """
    decided = ScheduleDecision(active=active, waiting=waiting, now=now)
    running = [move for move in active if move.phase is TransferPhase.TRANSFERRING]
    for move in running:
        _occupy(decided, move, rules)
    _begin(decided, rules)
    _prepare(decided, rules)
    decided.held_back = _held_back(running, decided, rules)
    decided.bandwidth = share([*running, *decided.begin], decided.held_back)
    return decided


def _occupy(decided: ScheduleDecision, move: Move, rules: LinkRules) -> None:
    for pipe in move.links:
        use = decided.on.get(pipe)
        if use is None:
            use = decided.on[pipe] = LinkUse()
        use.users.append(move)
        use.speed += move.speed
        use.load += move.load_now(rules)
        use.alone = use.alone or bool(move.alone)
        if not move.path.proven:
            use.proving = move


def _begin(decided: ScheduleDecision, rules: LinkRules) -> None:
    # Links that somebody waits for: who, and how long others may have it.
    claimed: dict[LinkDirection, tuple[float, Move]] = {}
    for move in decided.active:
        if move.phase is not TransferPhase.READY or move.never or would_be_late(move, decided.now):
            continue
        pipes = move.links
        full = [pipe for pipe in pipes if not _room(decided, pipe, move, rules)]
        if full:
            decided.blocked[move] = full
            for pipe in full:
                claimed.setdefault(pipe, (0.0, move))
            if move.alone:
                # Others may have its second link until its first is free.
                free = max(_seconds_until_free(decided.on[pipe]) for pipe in full)
                for pipe in pipes:
                    claimed.setdefault(pipe, (free, move))
            continue
        before = next((pipe for pipe in pipes if not _passes(decided, move, pipe, claimed)), None)
        if before is not None:
            decided.behind[move] = claimed[before][1]
        else:
            decided.begin.append(move)
            _occupy(decided, move, rules)


def _room(decided: ScheduleDecision, pipe: LinkDirection, move: Move, rules: LinkRules) -> bool:
    use = decided.on.get(pipe)
    if use is None:
        return True
    if pipe.limit is not None and len(use.users) >= pipe.limit:
        return False
    if use.proving is not None and not move.path.proven:
        return False  # a moment later it is known what the links carry
    if move.alone or use.alone:
        # Only beside what neither of them can use.
        return use.speed + move.speed <= pipe.capacity * _ABOUT
    if use.speed + move.speed > rules.quiet_at_a_time * pipe.capacity * _ABOUT:
        return False
    # It comes if more than half of what it needs is free: less would only make all of them slower.
    return use.load + move.load / 2 <= pipe.capacity * _ABOUT


def _held_back(running: Sequence[Move], decided: ScheduleDecision, rules: LinkRules) -> list[Move]:
    """Return those that transfer although the links, as they turned out to be, are filled by others.

    A link that carries less than was believed when they were begun is not shared out among them: whoever has the least
    left ends first. Not so beside one that needs it for itself, which has what it can use anyway.
    """
    load: dict[LinkDirection, float] = {}
    found = []
    narrowed = [move for move in running if any(pipe.narrow for pipe in move.links)]
    for move in sorted(narrowed, key=lambda one: (-one.transfer.priority, one.sending_left, one.key)):
        if move.alone or any(decided.on[pipe].alone for pipe in move.links):
            continue
        narrow = [pipe for pipe in move.links if pipe.narrow]
        if any(load.get(pipe) and load[pipe] + move.load / 2 > _TOO_FULL * pipe.capacity for pipe in narrow):
            found.append(move)
            continue
        for pipe in narrow:
            load[pipe] = load.get(pipe, 0.0) + move.load_now(rules)
    return found


def _seconds_until_free(use: LinkUse) -> float:
    return max(user.sending_left * len(use.users) + user.fixed_left for user in use.users)


def _passes(
    decided: ScheduleDecision,
    move: Move,
    pipe: LinkDirection,
    claimed: Mapping[LinkDirection, tuple[float, Move]],
) -> bool:
    if pipe not in claimed:
        return True
    sharers = 1 + len(decided.on[pipe].users) if pipe in decided.on else 1
    return move.sending_left * sharers + move.fixed_left <= claimed[pipe][0]


def _prepare(decided: ScheduleDecision, rules: LinkRules) -> None:
    # By host, as source and as target: what is prepared and has no link yet.
    ahead: dict[LinkDirection, list[Move]] = {}
    begun = set(decided.begin)
    for move in decided.active:
        if move.never or would_be_late(move, decided.now):
            continue
        if move.phase is TransferPhase.PREPARING or (move.phase is TransferPhase.READY and move not in begun):
            for pipe in (move.out, move.into):
                ahead.setdefault(pipe, []).append(move)
    closed: set[LinkDirection] = set()
    for move in by_turn(decided.waiting, closed):
        if move.never or would_be_late(move, decided.now):
            continue
        for pipe, bound in ((move.out, rules.prepared_per_source), (move.into, rules.prepared_per_target)):
            if not _may_prepare(decided, move, pipe, ahead.get(pipe, ()), bound, rules):
                closed.add(pipe)
                break
        else:
            decided.prepare.append(move)
            for pipe in (move.out, move.into):
                ahead.setdefault(pipe, []).append(move)


def _may_prepare(
    decided: ScheduleDecision,
    move: Move,
    pipe: LinkDirection,
    ahead: Sequence[Move],
    bound: int,
    rules: LinkRules,
) -> bool:
    # One of higher priority does not wait for those below it.
    ahead = [other for other in ahead if other.transfer.priority >= move.transfer.priority]
    if len(ahead) < bound:
        return True
    if len(ahead) >= rules.prepared_at_most:
        return False
    # What is ready and waits for its other end only does not use this link yet.
    soon = [other for other in ahead if pipe in decided.blocked.get(other, (pipe,))]
    return len(soon) < bound or sum(other.link_seconds for other in soon) < move.prepare_left
