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
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from bench import document
from bench.figures import paragraphs, table
from bench.machine import describe
from bench.policies import simulated
from bench.policies.cases import GUESTS, SETTINGS, Guest, Setting
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.strategy import Action, Do
from migrator.core.guest_experience import GuestExperience, LastMove
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.model import Sample
from migrator.core.policy import Policy

_TITLE = "Forecasts, held against what came"
#: The interval from p10 to p90 should hold the truth in so many of the cases.
COVERAGE_AIM = (0.75, 0.90)
#: Median error of the whole time as forecast after the first round, of guests that keep their habit.
ERROR_AIM = 0.10
#: Verdicts that are right.
RIGHT_AIM = 0.95
#: Rounds until a verdict is given, or it is said what is waited for.
WITHIN_ROUNDS = 2
#: Guests that go on as they were when their migration began.
KEEP_THEIR_HABIT = frozenset(
    {"idle", "well under the link", "just under the link", "well over the link", "small hot set"}
)
_GIVEN = (Verdict.CONVERGES, Verdict.CANNOT)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One forecast of a run."""

    at_seconds: float
    #: Finished rounds.
    rounds: int
    forecast: Forecast


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One run with all that was forecast of it, and what came."""

    guest: str
    setting: Setting
    outcome: Outcome
    seen: tuple[Seen, ...]
    #: When something was done to the guest (throttle, postcopy, pause), seconds since the migration began.
    acted_at: tuple[float, ...]
    #: Where ``cannot`` was said: left alone, the guest would have arrived inside its policy.
    would_have_arrived: bool

    @property
    def whole_seconds(self) -> float:
        """Time after which the migration had ended; infinite where the guest did not arrive."""
        return self.outcome.seconds if self.outcome.end == "completed" else math.inf

    @property
    def before_first_round(self) -> list[Seen]:
        """The forecasts until the end of the first round."""
        return [each for each in self.seen if each.rounds < 1 and each.forecast.seconds_p90 > 0]

    @property
    def from_first_round(self) -> list[Seen]:
        """The forecasts from the end of the first round on."""
        return [each for each in self.seen if each.rounds >= 1]

    def covers(self, seen: Seen) -> bool:
        """Tell whether the interval of that forecast holds what came."""
        left = self.whole_seconds - seen.at_seconds
        return seen.forecast.seconds_p10 <= left <= seen.forecast.seconds_p90

    def error(self) -> float | None:
        """Return how far the forecast after the first round was off, as a share of the whole time; ``None`` without
        one.
        """
        first = next(iter(self.from_first_round), None)
        return None if first is None else self.error_of(first)

    def error_of(self, seen: Seen) -> float | None:
        """Return how far a forecast was off, as a share of the whole time; ``None`` where that had no end."""
        if not math.isfinite(self.whole_seconds):
            return None
        return abs(seen.at_seconds + seen.forecast.seconds_p50 - self.whole_seconds) / self.whole_seconds

    def verdicts(self) -> list[tuple[Seen, bool]]:
        """Return each time that ``converges`` or ``cannot`` was said anew, and whether it was right."""
        given, before = [], None
        for each in self.seen:
            verdict = each.forecast.verdict
            if verdict is not before and verdict in _GIVEN:
                given.append((each, self._right(each)))
            before = verdict
        return given

    def _right(self, seen: Seen) -> bool:
        if seen.forecast.verdict is Verdict.CANNOT:
            return not self.would_have_arrived
        later = [at for at in self.acted_at if at > seen.at_seconds]
        return self.outcome.inside(self.setting.policy) and not later

    def rounds_to_verdict(self) -> int | None:
        """Return after how many rounds ``converges``, ``converges-if`` or ``cannot`` was said first."""
        return next((each.rounds for each in self.seen if each.forecast.verdict is not Verdict.UNKNOWN), None)

    def silent(self) -> list[Seen]:
        """Return the forecasts after two rounds that give no verdict and do not say what is waited for either."""
        return [
            each
            for each in self.seen
            if each.rounds >= WITHIN_ROUNDS
            and each.forecast.verdict is Verdict.UNKNOWN
            and not each.forecast.waiting_for
        ]


class _Recorded(Migrator):
    """The controller, with every forecast kept."""

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        super().__init__(policy, memory_bytes)
        self.seen: list[Seen] = []
        self.acted_at: list[float] = []

    def on_sample(self, sample: Sample) -> list[Action]:
        decided = self.settled
        actions = super().on_sample(sample)
        if decided:
            return actions  # nothing is forecast any more
        seen = Seen(at_seconds=sample.at_seconds, rounds=sample.round - 1, forecast=self.forecast)
        self.seen.append(seen)
        if any(
            action.do in (Do.POSTCOPY, Do.PAUSE) or (action.do is Do.THROTTLE and action.value > 0)
            for action in actions
        ):
            self.acted_at.append(sample.at_seconds)
        return actions


class _Patient(_Recorded):
    """The controller, but it never gives up."""

    def on_sample(self, sample: Sample) -> list[Action]:
        return [action for action in super().on_sample(sample) if action.do is not Do.ABORT]


def learned(guest: Guest, setting: Setting, seeds: Iterable[int]) -> GuestExperience:
    """Return what is kept of a guest after these migrations, an hour apart."""
    known = GuestExperience()
    for number, seed in enumerate(seeds):
        outcome, steering = simulated.steered(_Recorded, guest, setting, seed)
        assert isinstance(steering, _Recorded)
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


def run(guest: Guest, setting: Setting, seed: int, experience: GuestExperience | None = None) -> Judged:
    """Run one migration and judge all that was forecast of it; the same arguments, the same result.

    :param experience: what is known of the guest from before.
    """

    class Experienced(_Recorded):
        prior = experience.prior(0.0) if experience is not None else None

    outcome, steering = simulated.steered(Experienced, guest, setting, seed)
    assert isinstance(steering, _Recorded)
    arrived = False
    if any(each.forecast.verdict is Verdict.CANNOT for each in steering.seen):
        left_alone, _ = simulated.steered(_Patient, guest, setting, seed)
        arrived = left_alone.inside(setting.policy)
    return Judged(
        guest=guest.name,
        setting=setting,
        outcome=outcome,
        seen=tuple(steering.seen),
        acted_at=tuple(steering.acted_at),
        would_have_arrived=arrived,
    )


def run_all(
    seeds: Iterable[int], *, guests: Sequence[Guest] = GUESTS, settings: Sequence[Setting] = SETTINGS
) -> list[Judged]:
    """Run every guest under every policy with each of these seeds, on all processors."""
    jobs = [(guest.name, setting.name, seed) for seed in seeds for guest in guests for setting in settings]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_run, jobs, chunksize=8))


def _run(job: tuple[str, str, int]) -> Judged:
    guest, setting, seed = job
    return run(
        next(each for each in GUESTS if each.name == guest),
        next(each for each in SETTINGS if each.name == setting),
        seed,
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
    judged = run_all(range(given.first_seed, given.first_seed + given.runs))
    text = paragraphs(
        describe(),
        f"{len(judged)} simulated migrations: every guest and policy of `bench.policies`, {given.runs} times each, "
        "with guest and link in another mood. The interval is the one from p10 to p90 of the time left, so four of "
        "five should lie in it. A migration that is given up has an end later than any time. *Too low* are forecasts "
        "whose p90 was earlier than the end, *too high* those whose p10 was later.",
        report(judged),
    )
    print(text)
    if given.write:
        document.write("forecasts", _TITLE, text, order=[])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
