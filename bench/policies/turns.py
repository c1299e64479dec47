"""Choice of cases for real QEMU where not all fit into the time: whole ones, the same for every algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from bench.policies import named, simulated

#: Strategy, guest, setting, seed.
Job = tuple[str, str, str, int]
#: What all algorithms meet: the jobs of one guest, policy and seed.
Case = list[Job]

#: Seconds that a run takes besides its migration: two QEMUs, their hosts and a guest that settles.
_AROUND_SECONDS = 5.0


def choose(cases: Sequence[Case], *, seconds: float, horizon_seconds: float) -> tuple[list[Case], int]:
    """Return the cases that fit into the time, as the simulator tells how long they take, and how many were left out.

    The first seed of every case comes before the second of any, the short ones first. Within a case the algorithms take
    turns in being first.

    :param horizon_seconds: nobody waits longer for a run.
    """
    with ProcessPoolExecutor() as pool:
        expected = list(pool.map(_expected, cases, [horizon_seconds] * len(cases), chunksize=4))
    order = sorted(range(len(cases)), key=lambda place: (cases[place][0][3], expected[place]))
    chosen: list[Case] = []
    for place in order:
        if expected[place] <= seconds:
            seconds -= expected[place]
            turn = len(chosen) % len(cases[place])
            chosen.append(cases[place][turn:] + cases[place][:turn])
    return chosen, len(cases) - len(chosen)


def _expected(case: Case, horizon_seconds: float) -> float:
    return sum(
        min(horizon_seconds, simulated.run(*named.find(job)).seconds) + _AROUND_SECONDS for job in case
    )
