"""Bandwidth that each running transfer gets of the links it takes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from heapq import heapify, heappop, heappush
from itertools import chain, count

from migrator.core.schedule.transfers import LinkDirection, Move

#: Rounding is no difference.
_ABOUT = 1 + 1e-9


def share(moves: Sequence[Move], held_back: Collection[Move] = ()) -> dict[Move, float]:
    """Return bytes per second for each move: more than 0 for everybody, and on no link more than it has for migrations.

    Everybody gets a fourth of an even share at least: a stream that carries next to nothing looks to its own controller
    like one that never ends. Then those that barely converge come first, with all they can have; the others share the
    rest evenly, as far as each can use it. What is left after that is given too, so that an estimate that was too low
    holds nobody back.

    :param held_back: these have what the others leave.
    """
    on: dict[LinkDirection, list[Move]] = {}
    for move in moves:
        for link in move.links:
            on.setdefault(link, []).append(move)
    given: dict[Move, float] = {}
    last = frozenset(held_back)
    for move in moves:
        if move in given:
            continue
        if all(len(on[link]) == 1 for link in move.links):
            given[move] = move.speed
        else:
            given.update(_share_joined(_joined(move, on), on, last))
    return given


def _joined(first: Move, on: Mapping[LinkDirection, Sequence[Move]]) -> list[Move]:
    """Return all whose links are shared with it, or with one whose links are, and so on."""
    found, new = {first: None}, [first]
    while new:
        move = new.pop()
        for other in chain.from_iterable(on[link] for link in move.links):
            if other not in found:
                found[other] = None
                new.append(other)
    return list(found)


def _share_joined(
    moves: Sequence[Move], on: Mapping[LinkDirection, Sequence[Move]], held_back: AbstractSet[Move]
) -> dict[Move, float]:
    given = dict.fromkeys(moves, 0.0)
    left = {pipe: pipe.capacity for move in moves for pipe in move.links}

    def least(move: Move) -> float:
        a_fourth = min(pipe.capacity / len(on[pipe]) for pipe in move.links) / 4
        return min(a_fourth, move.speed)

    _raise(given, left, moves, least)
    _raise(given, left, [move for move in moves if move.alone], lambda move: move.speed)
    first = [move for move in moves if move not in held_back]
    _raise(given, left, first, Move.demand)
    _raise(given, left, first, lambda move: move.speed)
    _raise(given, left, moves, lambda move: move.speed)
    return given


def _raise(
    given: dict[Move, float],
    left: dict[LinkDirection, float],
    moves: Collection[Move],
    most: Callable[[Move], float],
) -> None:
    """Raise all of them evenly, each until it has `most` or one of its links is full (max-min fairness)."""
    want = {move: more for move in moves if (more := most(move) - given[move]) > 0}
    users: dict[LinkDirection, list[Move]] = {}
    for move in want:
        for link in move.links:
            users.setdefault(link, []).append(move)
    rising = {link: len(those) for link, those in users.items()}
    #: How far all had risen when what is left of a link was last reckoned.
    reckoned = dict.fromkeys(users, 0.0)
    number = count()

    def full_at(link: LinkDirection) -> float:
        return reckoned[link] + max(0.0, left[link]) / rising[link]

    # How far all have risen when each stops; that of a link only grows, as those who stop elsewhere leave it.
    stops: list[tuple[float, int, Move | LinkDirection]] = [
        *((more, next(number), move) for move, more in want.items()),
        *((full_at(link), next(number), link) for link in users),
    ]
    heapify(stops)
    while want:
        level, _, which = heappop(stops)
        if isinstance(which, Move):
            stopped = [which] if which in want else []
        elif not rising[which]:
            continue
        elif (later := full_at(which)) > level * _ABOUT:
            heappush(stops, (later, next(number), which))
            continue
        else:
            stopped = [move for move in users[which] if move in want]
        for move in stopped:
            del want[move]
            given[move] += level
            for link in move.links:
                left[link] -= (level - reckoned[link]) * rising[link]
                reckoned[link] = level
                rising[link] -= 1
