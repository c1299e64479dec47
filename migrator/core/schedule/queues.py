"""Moves that wait, in the order of turn, by the links that they will take. Pure; nothing is changed in place."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from migrator.core.schedule.transfers import LinkDirection, Move, TransferPhase

#: The link out of the source and the one into the target, and the moves that will take both, in the order of turn.
Queues = Mapping[tuple[LinkDirection, LinkDirection], Sequence[Move]]
_Copies = dict[tuple[LinkDirection, LinkDirection], list[Move]]


def partition(moves: Iterable[Move]) -> tuple[list[Move], _Copies]:
    """Part moves into the active and the waiting ones, as :func:`migrator.core.schedule.decide` wants them, each in
    their order.
    """
    active, waiting = list[Move](), _Copies()
    for move in moves:
        if move.phase is TransferPhase.WAITING:
            waiting.setdefault((move.out, move.into), []).append(move)
        else:
            active.append(move)
    return active, waiting


def requeued(queues: Queues, *, remove: Iterable[Move] = (), add: Iterable[Move] = ()) -> Queues:
    """Return the queues without these moves and with those, each at its turn.

    One that is to be removed and is not there, or to be added and is there, changes nothing.
    """
    after = dict(queues)
    copies: _Copies = {}

    def queue(move: Move) -> list[Move]:
        links = (move.out, move.into)
        if links not in copies:
            after[links] = copies[links] = list(queues.get(links, ()))
        return copies[links]

    for move in remove:
        moves = queue(move)
        at = bisect_left(moves, move.key, key=_key)
        if at < len(moves) and moves[at] is move:
            del moves[at]
    for move in add:
        moves = queue(move)
        at = bisect_left(moves, move.key, key=_key)
        if at == len(moves) or moves[at] is not move:
            moves.insert(at, move)
    if not copies:
        return queues
    for links, moves in copies.items():
        if not moves:
            del after[links]
    return after


def by_turn(queues: Queues, closed: Container[LinkDirection]) -> Iterator[Move]:
    """Yield all that wait, in the order of turn; those whose links were closed meanwhile are left out."""
    heap = [(moves[0].key, 0, number, moves) for number, moves in enumerate(queues.values()) if moves]
    heapq.heapify(heap)
    while heap:
        _, at, number, moves = heap[0]
        if _open(moves[at], closed):
            yield moves[at]
        if at + 1 < len(moves) and _open(moves[at], closed):
            heapq.heapreplace(heap, (moves[at + 1].key, at + 1, number, moves))
        else:
            heapq.heappop(heap)


def _open(move: Move, closed: Container[LinkDirection]) -> bool:
    return move.out not in closed and move.into not in closed


def _key(move: Move) -> tuple[int, float, float, str]:
    return move.key
