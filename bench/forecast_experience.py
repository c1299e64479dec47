"""Forecasts of guests that have moved before, and of the same guests before anything was seen of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

from bench.figures import table
from bench.forecast_runs import Judged, Recorded, run
from bench.policies import simulated
from bench.policies.cases import GUESTS, SETTINGS, Guest, Setting
from migrator.core.guest_experience import GuestExperience, LastMove

#: Seeds of the moves from before: others than those that are judged.
_TAUGHT_BY = 100_000


def learned(guest: Guest, setting: Setting, seeds: Iterable[int]) -> GuestExperience:
    """Return what is kept of a guest after these migrations, an hour apart."""
    known = GuestExperience()
    for number, seed in enumerate(seeds):
        outcome, steering = simulated.steered(Recorded, guest, setting, seed)
        assert isinstance(steering, Recorded)
        model = steering.state.model
        if model.last is None or outcome.end != "completed":
            continue  # as the service learns: from those that arrived
        at = number * 3600.0
        move = LastMove(at=at, source="a", destination="b", seconds=outcome.seconds)
        known = known.after_move(
            move,
            working_set_bytes=model.most_dirty_bytes,
            watched_seconds=model.last.at_seconds,
            first_pass_ratio=model.first_pass_ratio,
            changes=steering.state.habit_changes,
        )
        if model.rounds:
            known = known.after_rate(model.measured_rate(), at=0.0)
    return known


def error_before_first_round(judged: Sequence[Judged]) -> float:
    """Return the median over runs of how far the forecasts of each were off until the end of its first round."""
    return statistics.median(
        statistics.median(one.error_of(each) or 0.0 for each in one.before_first_round)
        for one in judged
        if one.before_first_round
    )


def coverage_before_first_round(judged: Sequence[Judged]) -> float:
    """Return the share of those forecasts whose interval held the truth, on the average over runs."""
    return statistics.fmean(
        statistics.fmean(one.covers(each) for each in one.before_first_round)
        for one in judged
        if one.before_first_round
    )


def with_experience(
    seeds: Sequence[int], *, guests: Sequence[Guest] = GUESTS, settings: Sequence[Setting] = SETTINGS
) -> list[Judged]:
    """Run every guest under every policy with each of these seeds, as one that has moved twice before."""
    jobs = [(guest.name, setting.name, seed) for seed in seeds for guest in guests for setting in settings]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_run_experienced, jobs, chunksize=4))


def _run_experienced(job: tuple[str, str, int]) -> Judged:
    name, setting_name, seed = job
    guest = next(each for each in GUESTS if each.name == name)
    setting = next(each for each in SETTINGS if each.name == setting_name)
    known = learned(guest, setting, (_TAUGHT_BY + 2 * seed, _TAUGHT_BY + 2 * seed + 1))
    return run(guest, setting, seed, known)


def before_first_round(without: Sequence[Judged], experienced: Sequence[Judged]) -> str:
    """Return the table of forecasts until the end of the first round."""
    rows = [
        [
            name,
            f"{min(first.at_seconds for one in judged for first in one.before_first_round[:1]):.1f} s",
            f"{error_before_first_round(judged):.0%}",
            f"{coverage_before_first_round(judged):.0%}",
        ]
        for name, judged in (("nothing known", without), ("moved twice before", experienced))
    ]
    return table(["guest", "first forecast after", "off by", "interval held the truth"], rows)
