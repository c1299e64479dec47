"""Forecasts hold what they promise, over every workload; `python -m bench.forecasts` measures many more runs."""

from __future__ import annotations

import pytest

from bench.forecasts import RIGHT_AIM, Calibration, calibrate, run
from bench.policies.cases import GUESTS, SETTINGS

#: Of a share of 0.85, the standard deviation over so few runs is about 0.06.
MARGIN = 0.06
_SEED = 1000


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
