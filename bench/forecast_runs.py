"""Simulated migrations with every forecast that was made of them kept, and held against what came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from bench.policies import simulated
from bench.policies.cases import GUESTS, SETTINGS, Guest, Setting
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.strategy import Action, Do
from migrator.core.guest_experience import GuestExperience
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.model import Sample
from migrator.core.policy import Policy

#: Rounds until a verdict is given, or it is said what is waited for.
WITHIN_ROUNDS = 2
_GIVEN = (Verdict.CONVERGES, Verdict.CANNOT)


@dataclass(frozen=True, kw_only=True)
class ForecastAt:
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
    seen: tuple[ForecastAt, ...]
    #: When something was done to the guest (throttle, postcopy, pause), seconds since the migration began.
    acted_at: tuple[float, ...]
    #: Where ``cannot`` was said: left alone, the guest would have arrived inside its policy.
    would_have_arrived: bool

    @property
    def whole_seconds(self) -> float:
        """Time after which the migration had ended; infinite where the guest did not arrive."""
        return self.outcome.seconds if self.outcome.end == "completed" else math.inf

    @property
    def before_first_round(self) -> list[ForecastAt]:
        """The forecasts until the end of the first round."""
        return [each for each in self.seen if each.rounds < 1 and each.forecast.seconds_p90 > 0]

    @property
    def from_first_round(self) -> list[ForecastAt]:
        """The forecasts from the end of the first round on."""
        return [each for each in self.seen if each.rounds >= 1]

    def covers(self, seen: ForecastAt) -> bool:
        """Tell whether the interval of that forecast holds what came."""
        left = self.whole_seconds - seen.at_seconds
        return seen.forecast.seconds_p10 <= left <= seen.forecast.seconds_p90

    def error(self) -> float | None:
        """Return how far the forecast after the first round was off, as a share of the whole time; ``None`` without
        one.
        """
        first = next(iter(self.from_first_round), None)
        return None if first is None else self.error_of(first)

    def error_of(self, seen: ForecastAt) -> float | None:
        """Return how far a forecast was off, as a share of the whole time; ``None`` where that had no end."""
        if not math.isfinite(self.whole_seconds):
            return None
        return abs(seen.at_seconds + seen.forecast.seconds_p50 - self.whole_seconds) / self.whole_seconds

    def verdicts(self) -> list[tuple[ForecastAt, bool]]:
        """Return each time that ``converges`` or ``cannot`` was said anew, and whether it was right."""
        given, before = [], None
        for each in self.seen:
            verdict = each.forecast.verdict
            if verdict is not before and verdict in _GIVEN:
                given.append((each, self._right(each)))
            before = verdict
        return given

    def _right(self, seen: ForecastAt) -> bool:
        if seen.forecast.verdict is Verdict.CANNOT:
            return not self.would_have_arrived
        later = [at for at in self.acted_at if at > seen.at_seconds]
        return self.outcome.inside(self.setting.policy) and not later

    def rounds_to_verdict(self) -> int | None:
        """Return after how many rounds ``converges``, ``converges-if`` or ``cannot`` was said first."""
        return next((each.rounds for each in self.seen if each.forecast.verdict is not Verdict.UNKNOWN), None)

    def silent(self) -> list[ForecastAt]:
        """Return the forecasts after two rounds that give no verdict and do not say what is waited for either."""
        return [
            each
            for each in self.seen
            if each.rounds >= WITHIN_ROUNDS
            and each.forecast.verdict is Verdict.UNKNOWN
            and not each.forecast.waiting_for
        ]


class Recorded(Migrator):
    """The controller, with every forecast kept."""

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        super().__init__(policy, memory_bytes)
        self.seen: list[ForecastAt] = []
        self.acted_at: list[float] = []

    def on_sample(self, sample: Sample) -> list[Action]:
        decided = self.settled
        actions = super().on_sample(sample)
        if decided:
            return actions  # nothing is forecast any more
        seen = ForecastAt(at_seconds=sample.at_seconds, rounds=sample.round - 1, forecast=self.forecast)
        self.seen.append(seen)
        if any(
            action.do in (Do.POSTCOPY, Do.PAUSE) or (action.do is Do.THROTTLE and action.value > 0)
            for action in actions
        ):
            self.acted_at.append(sample.at_seconds)
        return actions


class _Patient(Recorded):
    """The controller, but it never gives up."""

    def on_sample(self, sample: Sample) -> list[Action]:
        return [action for action in super().on_sample(sample) if action.do is not Do.ABORT]


def run(guest: Guest, setting: Setting, seed: int, experience: GuestExperience | None = None) -> Judged:
    """Run one migration and judge all that was forecast of it; the same arguments, the same result.

    :param experience: what is known of the guest from before.
    """

    class Experienced(Recorded):
        prior = experience.prior(0.0) if experience is not None else None

    outcome, steering = simulated.steered(Experienced, guest, setting, seed)
    assert isinstance(steering, Recorded)
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
