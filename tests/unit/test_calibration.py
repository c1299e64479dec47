"""Forecasts hold what they promise, over every workload; `python -m bench.forecasts` measures many more runs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bench.forecast_experience import coverage_before_first_round, error_before_first_round, learned
from bench.forecast_runs import Judged, run
from bench.forecasts import RIGHT_AIM, Calibration, calibrate
from bench.policies.cases import GUESTS, SETTINGS

#: Of a share of 0.85, the standard deviation over so few runs is about 0.06.
MARGIN = 0.06
_SEED = 1000


@dataclass(frozen=True)
class WithAndWithout:
    """The same migrations, without and with what two earlier ones of the same guest taught."""

    without: list[Judged]
    experienced: list[Judged]


@pytest.fixture(scope="module")
def twice() -> WithAndWithout:
    setting = next(each for each in SETTINGS if each.name == "throttle to 80 %")
    taught = {each.name: learned(each, setting, (_SEED + 1, _SEED + 2)) for each in GUESTS}
    return WithAndWithout(
        [run(each, setting, _SEED) for each in GUESTS],
        [run(each, setting, _SEED, taught[each.name]) for each in GUESTS],
    )


@pytest.fixture(scope="module")
def found() -> Calibration:
    """Every guest under every policy, once, on a seed that no constant was chosen by."""
    return calibrate([run(guest, each, _SEED) for guest in GUESTS for each in SETTINGS])


def test_four_of_five_intervals_hold_the_truth_from_the_first_round_on(found: Calibration) -> None:
    for share in (found.first_coverage, found.sample_coverage, found.run_coverage):
        assert 0.75 - MARGIN <= share <= 0.90 + MARGIN


def test_the_whole_time_is_known_after_the_first_round_where_the_habit_is_kept(found: Calibration) -> None:
    assert found.median_error <= 0.10


def test_a_verdict_once_given_is_right(found: Calibration) -> None:
    assert found.verdicts >= 20
    assert found.right >= RIGHT_AIM * found.verdicts


def test_where_there_is_no_verdict_after_two_rounds_it_is_said_what_is_waited_for(found: Calibration) -> None:
    assert found.silent == 0


def test_before_the_first_round_has_ended_experience_makes_the_forecast_much_better(
    twice: WithAndWithout,
) -> None:
    assert error_before_first_round(twice.experienced) < 0.5 * error_before_first_round(twice.without)
    for before, after in zip(twice.without, twice.experienced, strict=True):
        if (
            before.before_first_round
        ):  # where the first round is over before a probe there is nothing to forecast
            assert after.before_first_round[0].at_seconds < 0.5 < before.before_first_round[0].at_seconds


def test_with_experience_the_interval_holds_the_truth_before_the_first_round_and_after_it(
    twice: WithAndWithout,
) -> None:
    assert coverage_before_first_round(twice.experienced) >= 0.75 - MARGIN
    assert coverage_before_first_round(twice.experienced) > coverage_before_first_round(twice.without)
    assert calibrate(twice.experienced).run_coverage >= 0.75 - MARGIN


def test_experience_changes_nothing_of_what_is_done_to_the_guest(twice: WithAndWithout) -> None:
    for before, after in zip(twice.without, twice.experienced, strict=True):
        assert after.outcome.seconds == before.outcome.seconds
        assert after.outcome.downtime_seconds == before.outcome.downtime_seconds
        assert after.acted_at == before.acted_at
