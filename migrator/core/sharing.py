"""How much bandwidth each running transfer gets of the links it takes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from migrator.core.transfers import Move, Pipe

#: Nobody gets less: QEMU takes 0 for "no limit", and a stream that carries nothing looks like a broken one.
_LEAST_BYTES_PER_SECOND = 2.0**20


def share(moves: Sequence[Move]) -> dict[Move, float]:
    """Bytes per second for each; on no link more than it has for migrations, and more than 0 for everybody.

    Those that barely converge come first, with all they can have; the others share the rest evenly, as far as each can
    use it. What is left after that is given too, so that an estimate that was too low holds nobody back.
    """
    given = dict.fromkeys(moves, 0.0)
    left = {pipe: pipe.capacity for move in moves for pipe in (move.out, move.into)}
    on = dict.fromkeys(left, 0)
    for move in moves:
        on[move.out] += 1
        on[move.into] += 1

    def least(move: Move) -> float:
        a_fourth = min(move.out.capacity / on[move.out], move.into.capacity / on[move.into]) / 4
        return min(_LEAST_BYTES_PER_SECOND, a_fourth, move.speed)

    _raise(given, left, moves, least)
    _raise(given, left, [move for move in moves if move.alone], lambda move: move.speed)
    _raise(given, left, moves, Move.demand)
    _raise(given, left, moves, lambda move: move.speed)
    return given


def _raise(
    given: dict[Move, float], left: dict[Pipe, float], moves: Collection[Move], most: Callable[[Move], float]
) -> None:
    """Raise all of them evenly, each until it has `most` or one of its links is full (max-min fairness)."""
    want = {move: most(move) - given[move] for move in moves}
    rising = {move for move, more in want.items() if more > 0}
    while rising:
        on: dict[Pipe, int] = {}
        for move in rising:
            on[move.out] = on.get(move.out, 0) + 1
            on[move.into] = on.get(move.into, 0) + 1
        step = max(
            0.0, min(*map(want.__getitem__, rising), *(left[pipe] / count for pipe, count in on.items()))
        )
        for move in rising:
            given[move] += step
            want[move] -= step
            left[move.out] -= step
            left[move.into] -= step
        full = {pipe for pipe in on if left[pipe] <= 1e-9 * pipe.capacity}
        rising = {
            move
            for move in rising
            if want[move] > 1e-9 * move.speed and move.out not in full and move.into not in full
        }
