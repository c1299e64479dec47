"""Measure what the controller computes for each guest of one evacuation, few or many; in simulated time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from bench.evacuation import simulated
from bench.evacuation.peers import OURS
from bench.figures import ms, paragraphs, table
from bench.scale.progress import Budget, say

COUNTS = (10, 50, 300, 1000, 2000)
_SPREAD_RATIO = 0.20
#: For all of them.
_SECONDS = 150.0
#: Of so few guests one evacuation says little.
_GUESTS_AT_LEAST = 100


def cost(counts: Sequence[int] = COUNTS) -> str:
    """Return what one evacuation of so many idle guests computes for each of them."""
    found, rows, budget = [], [], Budget(_SECONDS)
    with ProcessPoolExecutor(max_workers=1) as pool:
        for count in counts:
            if not budget.allows(count):
                continue
            began = time.monotonic()
            times = max(1, _GUESTS_AT_LEAST // count)
            each = [
                pool.submit(simulated.run, "idle", "default", count, seed, OURS).result()
                for seed in range(times)
            ]
            budget.took(count, time.monotonic() - began)
            say(f"{count} guests took {time.monotonic() - began:.0f} s")
            seconds = statistics.median(one.cpu_seconds for one in each) / count
            found.append(seconds)
            moved = sum(guest.state == "completed" for guest in each[0].guests)
            rows.append([f"{count}", ms(seconds), f"{each[0].makespan_seconds:.0f}", f"{moved}"])
    middle = statistics.median(found)
    spread = max(abs(each - middle) for each in found) / middle
    return paragraphs(
        "One host of idle guests is emptied to four others, by the engine itself on simulated hosts, in simulated "
        "time; the simulation's computing is left out, that of forecasts is in it.",
        table(["guests", "computing each, ms", "simulated s", "moved"], rows),
        f"Aim: each is within {_SPREAD_RATIO:.0%} of the median; they are within {spread:.0%}. "
        + ("Aim met." if spread <= _SPREAD_RATIO else "**Aim not met.**")
        + budget.text(),
    )
