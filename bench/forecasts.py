"""``python -m bench.forecasts``: what the controller forecasts, held against what came; ``--write`` puts it into
docs/benchmarks.md.

Every guest of `bench.policies` under every policy, many times, simulated, each time with guest and link in another
mood. Each forecast from the end of the first round on is kept, and judged when the truth is known:

- the interval from p10 to p90 of the time left holds the truth, or not. A migration that does not end has an end
  that is later than any time, which an interval without an upper end holds;
- ``converges`` is right where the guest arrived by precopy, inside its policy, with nothing more done to it;
- ``cannot`` is right where the same guest, left to go on for as long as the policy allows, did not arrive either.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench import document
from bench.figures import paragraphs, table
from bench.forecast_experience import before_first_round, with_experience
from bench.forecast_runs import WITHIN_ROUNDS, Judged, run_all
from bench.machine import describe

_TITLE = "Forecasts, held against what came"
#: The interval from p10 to p90 should hold the truth in so many of the cases.
COVERAGE_AIM = (0.75, 0.90)
#: Median error of the whole time as forecast after the first round, of guests that keep their habit.
ERROR_AIM = 0.10
#: Verdicts that are right.
RIGHT_AIM = 0.95
#: Guests that go on as they were when their migration began.
KEEP_THEIR_HABIT = frozenset(
    {"idle", "well under the link", "just under the link", "well over the link", "small hot set"}
)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Shares of the forecasts of all runs that were right."""

    #: Shares of the forecasts whose interval held the truth: right after the first round, of all samples, and of each
    #: run's samples on the average over runs.
    first_coverage: float
    sample_coverage: float
    run_coverage: float
    #: Of guests that keep their habit: the median error of the whole time after the first round.
    median_error: float
    #: Times that ``converges`` or ``cannot`` was said anew, and how many of them were right.
    verdicts: int
    right: int
    #: Runs in which no verdict was given within two rounds, and those of them in which it was not said why.
    late_verdicts: int
    silent: int


def calibrate(judged: Sequence[Judged]) -> Calibration:
    """Sum all runs up."""
    forecast = [one for one in judged if one.from_first_round]
    given = [right for one in judged for _, right in one.verdicts()]
    rounds = [one.rounds_to_verdict() for one in judged]
    return Calibration(
        first_coverage=statistics.fmean(one.covers(one.from_first_round[0]) for one in forecast),
        sample_coverage=statistics.fmean(
            one.covers(each) for one in forecast for each in one.from_first_round
        ),
        run_coverage=statistics.fmean(_coverage(one) for one in forecast),
        median_error=statistics.median(
            error for one in judged if one.guest in KEEP_THEIR_HABIT and (error := one.error()) is not None
        ),
        verdicts=len(given),
        right=sum(given),
        late_verdicts=sum(each is None or each > WITHIN_ROUNDS for each in rounds),
        silent=sum(bool(one.silent()) for one in judged),
    )


def _coverage(one: Judged) -> float:
    return statistics.fmean(one.covers(each) for each in one.from_first_round)


def report(judged: Sequence[Judged]) -> str:
    """Format as Markdown: what all runs say, held against the aims, and each guest by itself."""
    found = calibrate(judged)
    low, high = COVERAGE_AIM
    within = f"{low:.0%} to {high:.0%}"
    aims = [
        [
            f"interval holds the truth, right after the first round: {within}",
            *_judge(found.first_coverage, low, high),
        ],
        [f"..., at every sample from then on: {within}", *_judge(found.sample_coverage, low, high)],
        [f"..., each run counted once: {within}", *_judge(found.run_coverage, low, high)],
        [
            f"whole time after the first round, where the habit is kept: off by at most {ERROR_AIM:.0%} (median)",
            *_judge(found.median_error, 0.0, ERROR_AIM),
        ],
        [
            f"`converges` and `cannot`, once said, are right in at least {RIGHT_AIM:.0%}",
            f"{found.right} of {found.verdicts} ({found.right / max(1, found.verdicts):.1%})",
            _met(found.right >= RIGHT_AIM * found.verdicts),
        ],
        [
            "no verdict within two rounds, without saying what is waited for: 0 runs",
            f"{found.silent} of {found.late_verdicts} runs without one",
            _met(found.silent == 0),
        ],
    ]
    header = [
        "guest",
        "after the first round",
        "every sample",
        "too low",
        "too high",
        "median error",
        "verdicts right",
    ]
    return paragraphs(table(["aim", "found", ""], aims), table(header, _rows(judged)))


def _judge(share: float, low: float, high: float) -> tuple[str, str]:
    return f"{share:.1%}", _met(low <= share <= high)


def _met(met: bool) -> str:
    return "met" if met else "**not met**"


def _rows(judged: Sequence[Judged]) -> list[list[str]]:
    by_guest: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_guest[one.guest].append(one)
    rows = []
    for guest, runs in by_guest.items():
        told = [one for one in runs if one.from_first_round]
        errors = [error for one in runs if (error := one.error()) is not None]
        given = [right for one in runs for _, right in one.verdicts()]
        cells = ["–"] * 4
        if told:
            every = [(one, each) for one in told for each in one.from_first_round]
            left = [(one.whole_seconds - each.at_seconds, each.forecast) for one, each in every]
            shares = [
                statistics.fmean(one.covers(one.from_first_round[0]) for one in told),
                statistics.fmean(one.covers(each) for one, each in every),
                statistics.fmean(truth > forecast.seconds_p90 for truth, forecast in left),
                statistics.fmean(truth < forecast.seconds_p10 for truth, forecast in left),
            ]
            cells = [f"{share:.0%}" for share in shares]
        middle = statistics.median(errors) if errors else math.inf
        shown = f"{middle:.0%}" if math.isfinite(middle) else "–"
        rows.append([guest, *cells, shown, f"{sum(given)} of {len(given)}"])
    return rows


def main(arguments: list[str]) -> int:
    """Measure; aims that are not met are a result."""
    parser = argparse.ArgumentParser(prog="python -m bench.forecasts", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many runs of each case")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds count from here")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    given = parser.parse_args(arguments)
    seeds = range(given.first_seed, given.first_seed + given.runs)
    judged = run_all(seeds)
    text = paragraphs(
        describe(),
        f"{len(judged)} simulated migrations: every guest and policy of `bench.policies`, {given.runs} times each, "
        "with guest and link in another mood. The interval is the one from p10 to p90 of the time left, so four of "
        "five should lie in it. A migration that is given up has an end later than any time. *Too low* are forecasts "
        "whose p90 was earlier than the end, *too high* those whose p10 was later.",
        report(judged),
        "Before the first round has ended, of guests that have moved twice before and of the same without that (as "
        "many runs; the median over runs of how far the middle of each forecast was off, and the share of the "
        "intervals that held the truth):",
        before_first_round(judged, with_experience(seeds)),
    )
    print(text)
    if given.write:
        document.write("forecasts", _TITLE, text, order=[])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
