"""Times at which each migration will begin and end: the schedule, simulated forward. Pure.

The simulation asks the very function that decides, so that what is told is what will be done.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from migrator.core.inventory import Host
from migrator.core.schedule import ScheduleDecision, decide, partition, would_be_late
from migrator.core.schedule.transfers import (
    LinkDirection,
    LinkRules,
    LinkTable,
    Move,
    Transfer,
    TransferPhase,
    moves_of,
)

#: Standard deviations between the median and the 10th or 90th percentile.
P90 = 1.2816
#: Events nearer than this are taken together.
_INSTANT = 1e-3


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Seconds from now."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Expected times of one guest."""

    #: Its transfer begins; it ends and the guest runs at its target.
    begins: Quantiles
    ends: Quantiles


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected times of all guests of a schedule."""

    #: Guests that will run, in the order in which their transfers begin.
    guests: Mapping[str, Expected] = field(default_factory=dict)
    #: All are at their targets and cleared away after.
    makespan: Quantiles = field(default_factory=lambda: Quantiles(p10=0.0, p50=0.0, p90=0.0))
    #: No order can be faster: what the fullest link must carry, or the largest guest alone.
    bound_seconds: float = 0.0
    #: Guests that will not run, each with the reason.
    never: Mapping[str, str] = field(default_factory=dict)
    #: Guests that have a deadline and will miss it at p50, and at p90 but not at p50.
    late: tuple[str, ...] = ()
    at_risk: tuple[str, ...] = ()


def predict(
    transfers: Iterable[Transfer], hosts: Mapping[str, Host], rules: LinkRules | None = None
) -> Prediction:
    """Simulate the schedule from now on.

    The interval: everything takes as much less or more time as one in ten times it may. Guests' own spreads even out
    along a link, what is common to all of them does not. 500 guests of one source take about 0.1 s.
    """
    rules = rules or LinkRules()
    transfers = tuple(transfers)
    moves = moves_of(transfers, hosts, rules)
    common = math.exp(P90 * _common_spread(moves, rules))
    own_doubts = {move.transfer.guest: (move.path.doubt - 1) * move.sending_left for move in moves}
    run = _Run(moves, rules)
    run.to_the_end()
    # As far as it is before them: others are prepared while these transfer.
    off = {
        move.transfer.guest: rules.prepare_spread_ratio * move.transfer.prepare_seconds
        for move in moves
        if move.transfer.phase in (TransferPhase.WAITING, TransferPhase.PREPARING)
    }
    guests = {}
    #: What paths that nobody has measured may cost, by their sources, of all that begin before.
    doubts: dict[str, float] = {}
    sources = {move.transfer.guest: move.transfer.source for move in moves}
    for guest in sorted(run.ends, key=lambda one: (run.begins[one], one)):
        begin, end = run.begins[guest], run.ends[guest]
        own = math.exp(P90 * run.own_spread[guest])
        begins = _interval(begin, common, off.get(guest, 0.0))
        before = doubts.get(sources[guest], 0.0)
        after = doubts[sources[guest]] = before + own_doubts[guest]
        begins = replace(begins, p90=begins.p90 + before)
        guests[guest] = Expected(
            begins=begins,
            ends=Quantiles(
                p10=begins.p10 + (end - begin) / own,
                p50=end,
                p90=begins.p90 + (end - begin) * own + after - before,
            ),
        )
    limits = {one.guest: one.deadline_seconds for one in transfers if one.guest in guests}
    late = [guest for guest, limit in limits.items() if limit is not None and guests[guest].ends.p50 > limit]
    at_risk = [
        guest for guest, limit in limits.items() if limit is not None and guests[guest].ends.p90 > limit
    ]
    makespan = _interval(run.now, common, max(off.values(), default=0.0))
    return Prediction(
        guests=guests,
        makespan=replace(makespan, p90=makespan.p90 + max(doubts.values(), default=0.0)),
        bound_seconds=lower_bound_seconds((one for one in transfers if one.guest in guests), hosts, rules),
        never=run.never,
        late=tuple(late),
        at_risk=tuple(guest for guest in at_risk if guest not in late),
    )


def lower_bound_seconds(
    transfers: Iterable[Transfer], hosts: Mapping[str, Host], rules: LinkRules | None = None
) -> float:
    """Return the least time that moving everything can take.

    It is the largest of the bytes that one link must carry by its speed without the reserve, and of one guest's bytes
    by
    its own speed.
    """
    rules = rules or LinkRules()
    network = LinkTable(hosts, rules)
    carries: dict[LinkDirection, float] = {}
    alone = 0.0
    for transfer in transfers:
        if transfer.phase is TransferPhase.FINISHING:
            continue
        move = Move(transfer, network, rules)
        carried = transfer.disk_bytes_left + transfer.bytes_left
        alone = max(alone, carried / move.speed)
        for pipe in move.links:
            carries[pipe] = carries.get(pipe, 0.0) + carried
    return max(alone, *(total / pipe.capacity for pipe, total in carries.items())) if carries else 0.0


def _common_spread(moves: Sequence[Move], rules: LinkRules) -> float:
    """Return the relative spread of a chain of moves: of the links', and of the guests' own what does not even out."""
    chains: dict[LinkDirection, list[Move]] = {}
    for move in moves:
        chains.setdefault(move.out, []).append(move)
    # The source with the most to send sets the pace.
    longest = max(chains.values(), key=lambda moves: sum(move.seconds_alone for move in moves), default=[])
    total = sum(move.seconds_alone for move in longest)
    links = max((_link_spread(move, rules) for move in longest), default=rules.link_spread_ratio)
    if total <= 0:
        return links
    parts = (move.seconds_alone * move.transfer.spread_ratio / total for move in longest)
    return math.hypot(links, *parts)


def _link_spread(move: Move, rules: LinkRules) -> float:
    return max(rules.link_spread_ratio, move.path.learned.spread_ratio)


def _interval(seconds: float, factor: float, off: float = 0.0) -> Quantiles:
    return Quantiles(p10=max(0.0, seconds / factor - off), p50=seconds, p90=seconds * factor + off)


class _Run:
    """One simulation."""

    def __init__(self, moves: Sequence[Move], rules: LinkRules) -> None:
        self.now = 0.0
        self.begins: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        self.never: dict[str, str] = {}
        self.own_spread = {
            move.transfer.guest: math.hypot(move.transfer.spread_ratio, _link_spread(move, rules))
            for move in moves
        }
        self._active, self._waiting = partition(moves)
        self._rules = rules
        for move in moves:
            if move.phase is TransferPhase.TRANSFERRING:
                self.begins[move.transfer.guest] = 0.0
            elif move.phase is TransferPhase.FINISHING:
                self.begins[move.transfer.guest] = self.ends[move.transfer.guest] = 0.0

    def to_the_end(self) -> None:
        """Run until nothing is left that can run."""
        while True:
            decided = decide(self._active, self._waiting, self._rules, now=self.now)
            for move in decided.prepare:
                move.phase = TransferPhase.PREPARING
                self._waiting[move.out, move.into].remove(move)
                insort(self._active, move, key=lambda one: one.key)
            for move in decided.begin:
                move.phase = TransferPhase.TRANSFERRING
                self.begins[move.transfer.guest] = self.now
            step = self._until_next(decided)
            if step is None:
                break
            self._advance(decided, step)
        for move in chain(self._active, *self._waiting.values()):
            self.never[move.transfer.guest] = (
                "it would not end before the deadline" if would_be_late(move, self.now) else move.never
            )

    def _until_next(self, decided: ScheduleDecision) -> float | None:
        waits = []
        for move in self._active:
            if move.phase is TransferPhase.PREPARING:
                waits.append(move.prepare_left)
            elif move.phase is TransferPhase.FINISHING:
                waits.append(move.finish_left)
        for move, speed in decided.bandwidth.items():
            if move.sending_left > 0:
                waits.append((move.disk_seconds_left or move.sending_left) / move.pace_at(speed))
            else:
                waits.append(move.fixed_left)
        again = decided.recheck_seconds(self._rules)
        if again is not None:
            waits.append(again)
        return max(0.0, min(waits)) + _INSTANT if waits else None

    def _advance(self, decided: ScheduleDecision, step: float) -> None:
        self.now += step
        for move in self._active:
            if move.phase is TransferPhase.PREPARING:
                move.prepare_left -= step
                if move.prepare_left <= 0:
                    move.phase = TransferPhase.READY
            elif move.phase is TransferPhase.FINISHING:
                move.finish_left -= step
        for move, speed in decided.bandwidth.items():
            self._send(move, speed, step)
        self._active = [
            move for move in self._active if move.phase is not TransferPhase.FINISHING or move.finish_left > 0
        ]

    def _send(self, move: Move, speed: float, step: float) -> None:
        if move.disk_seconds_left > 0:
            pace = move.pace_at(speed)
            copied = min(move.disk_seconds_left, step * pace)
            move.disk_seconds_left -= copied
            move.sending_left = max(0.0, move.sending_left - copied)
            step -= copied / pace
        if move.sending_left > 0:
            pace = move.pace_at(speed)
            sent = min(move.sending_left, step * pace)
            move.bytes_left *= 1 - sent / move.sending_left
            move.sending_left -= sent
            step -= sent / pace
        move.fixed_left -= step
        if move.sending_left <= 0 and move.fixed_left <= 0:
            move.phase = TransferPhase.FINISHING
            move.path.proven = True  # of this simulation: somebody has gone that way
            self.ends[move.transfer.guest] = self.now
