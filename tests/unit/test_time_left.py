"""The interval of a forecast: how little is known of the time left."""

from __future__ import annotations

import math

import pytest

from migrator.core.migration.forecast import Model, Round
from migrator.core.migration.time_left import NextStep, TimeLeft, rises, time_left
from migrator.core.model import Sample

MIB = 1 << 20
AS_IT_GOES = NextStep(needed=False)


def entry(at: float, seconds: float, mib: float, *, probe: bool = False) -> Round:
    return Round(
        at_seconds=at,
        duration_seconds=seconds,
        dirtied_bytes=int(mib * MIB),
        pending_bytes=0 if probe else int(mib * MIB),
    )


def model(*rounds: Round, stream: float = 100.0) -> Model:
    """A guest after its last round, over a stream that was seen to be steady."""
    last = rounds[-1]
    return Model(
        rounds=rounds,
        bandwidth_bytes_per_second=stream * MIB,
        bandwidth_spread=0.03,
        bandwidth_at=last.at_seconds,
        last=Sample(
            at_seconds=last.at_seconds,
            round=len(rounds) + 1,
            total_bytes=512 * MIB,
            remaining_bytes=last.pending_bytes,
            bandwidth_bytes_per_second=stream * MIB,
        ),
    )


def ahead(seen: Model, step: NextStep = AS_IT_GOES) -> TimeLeft:
    return time_left(seen, limit_seconds=0.1, throttle_ratio=0.0, step=step)


STEADY = model(entry(5.0, 5.0, 150), entry(6.5, 1.5, 45))


def test_the_quantiles_are_in_order() -> None:
    for found in (ahead(STEADY).seconds, ahead(STEADY).downtime_seconds):
        assert 0 < found[0] < found[1] < found[2] < math.inf


def test_rounds_that_differ_widen_the_interval() -> None:
    restless = model(entry(5.0, 5.0, 120), entry(6.5, 1.5, 45))
    low, _, high = ahead(STEADY).seconds
    restless_low, _, restless_high = ahead(restless).seconds
    assert restless_high - restless_low > high - low


def test_a_guest_that_was_watched_for_seconds_is_not_taken_to_go_on_for_a_minute() -> None:
    def just_under_the_link(watched: float) -> Model:
        return model(entry(watched - 2.0, 2.0, 188), entry(watched, 2.0, 188))

    assert ahead(just_under_the_link(4.0)).seconds[2] == math.inf
    assert ahead(just_under_the_link(900.0)).seconds[2] < math.inf


def test_one_that_may_go_to_postcopy_has_an_end_whatever_the_guest_does() -> None:
    seen = model(entry(2.0, 2.0, 188), entry(4.0, 2.0, 188))
    late = ahead(seen, NextStep(needed=False, ends_anyway=True)).seconds[2]
    assert ahead(seen).seconds[1] < late < math.inf


def test_postcopy_at_once_ends_when_what_is_left_has_arrived() -> None:
    hopeless = model(entry(3.0, 3.0, 300), entry(6.0, 3.0, 300))
    low, middle, high = ahead(hopeless, NextStep(rung="start-postcopy")).seconds
    assert low <= middle <= high
    assert middle == pytest.approx(3.1, abs=0.1)


def test_one_that_would_be_given_up_may_still_become_quiet() -> None:
    hopeless = model(entry(3.0, 3.0, 300), entry(6.0, 3.0, 300))
    low, _, high = ahead(hopeless, NextStep(in_seconds=8.0)).seconds
    assert low < 8.0
    assert high == math.inf
    assert ahead(hopeless, NextStep(in_seconds=0.0)).seconds == (math.inf,) * 3


def test_a_guest_that_has_just_begun_to_write_rises_and_a_steady_one_does_not() -> None:
    assert rises(model(entry(1.0, 1.0, 5, probe=True), entry(3.0, 3.0, 90)))
    assert not rises(STEADY)
