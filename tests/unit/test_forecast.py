"""The forecast: rounds in, time left and downtime out."""

from __future__ import annotations

import math

import pytest

from migrator.core.migration.forecast import Model, Round, observe, outlook, probe
from migrator.core.model import Sample

MIB = 1 << 20


def sample(seconds: float, number: int, left: float, sent: float, *, stream: float = 100.0) -> Sample:
    return Sample(
        at_seconds=seconds,
        round=number,
        total_bytes=512 * MIB,
        remaining_bytes=int(left * MIB),
        transferred_bytes=int(sent * MIB),
        bandwidth_bytes_per_second=stream * MIB,
    )


def after(*samples: Sample, limit_seconds: float = 0.03) -> Model:
    model = Model(limit_seconds=limit_seconds)
    for each in samples:
        model = observe(model, each)
    return model


#: A whole copy of 500 MiB in 5 s, during which the guest dirtied 150 MiB.
FIRST_ROUND = (
    sample(0, 1, 500, 0),
    sample(2.5, 1, 250, 250),
    sample(4.9, 1, 10, 490),
    sample(5.0, 2, 150, 500),
)


def test_nothing_is_known_before_a_round_has_ended() -> None:
    model = after(*FIRST_ROUND[:-1])
    assert not model.known
    assert outlook(model, limit_seconds=0.3).seconds == math.inf


def test_a_round_tells_write_rate_and_stream() -> None:
    model = after(*FIRST_ROUND)
    assert model.write_rate() == pytest.approx(30 * MIB, rel=0.02)
    assert model.bandwidth_bytes_per_second == pytest.approx(100 * MIB)


def test_time_left_follows_the_rounds_to_come() -> None:
    # 150 MiB leave 45, those 13.5, those 4: what a guest of 30 MiB/s costs a stream of 100 MiB/s is 150/70 s in all.
    ahead = outlook(after(*FIRST_ROUND), limit_seconds=0.03)
    assert ahead.ends
    assert ahead.seconds == pytest.approx(150 / 70, rel=0.08)


def test_a_higher_limit_ends_sooner_with_more_downtime() -> None:
    model = after(*FIRST_ROUND)
    low, high = outlook(model, limit_seconds=0.05), outlook(model, limit_seconds=0.3)
    assert high.seconds < low.seconds
    assert high.downtime_seconds > low.downtime_seconds
    assert high.downtime_seconds <= 0.3 + model.overhead_seconds


def test_throttling_lets_a_guest_end_that_would_not() -> None:
    model = after(sample(0, 1, 500, 0), sample(4.9, 1, 10, 490), sample(5.0, 2, 500, 500))
    model = probe(model, at_seconds=5.0, period_seconds=1.0, dirty_rate=150 * MIB)
    assert not outlook(model, limit_seconds=0.1).ends
    assert outlook(model, limit_seconds=0.1, throttle_ratio=0.5).ends


def test_a_working_set_that_fits_the_limit_ends_at_any_rate() -> None:
    hot = Round(at_seconds=5.0, duration_seconds=0.1, dirtied_bytes=16 * MIB, pending_bytes=16 * MIB)
    model = after(*FIRST_ROUND[:-1], sample(5.0, 2, 16, 500))
    model = Model(
        rounds=(hot,), bandwidth_bytes_per_second=100.0 * MIB, last=model.last, round_began=model.round_began
    )
    assert hot.rate > model.bandwidth_bytes_per_second
    assert outlook(model, limit_seconds=0.3).ends
    assert not outlook(model, limit_seconds=0.1).ends


def test_rounds_that_gain_nothing_are_seen_whatever_the_rates_say() -> None:
    flat = [sample(5.0 + number, number + 2, 100, 500 + 100 * number) for number in range(1, 4)]
    assert after(*FIRST_ROUND, *flat).stalled()
    falling = [sample(6.5, 3, 75, 650), sample(7.25, 4, 37.5, 725), sample(7.625, 5, 18.75, 762.5)]
    assert not after(*FIRST_ROUND, *falling).stalled()


def test_samples_from_the_past_and_absurd_ones_change_nothing() -> None:
    model = after(*FIRST_ROUND)
    assert observe(model, sample(1.0, 2, 1, 1)) is model
    assert observe(model, sample(9.0, 1, 1, 1)) is model
    assert observe(model, sample(9.0, 3, 1, 1, stream=math.nan)) is model
