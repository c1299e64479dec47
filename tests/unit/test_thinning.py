"""What is kept of a migration's figures: bounded, spread over all of it, and where something changed."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from migrator.core.migration.downsampling import FIRST_SECONDS, MOST, Point, Series
from migrator.core.model import Sample, State


def _point(at: float, *, state: State = State.PRECOPY, limit: float | None = 0.1, **figures: Any) -> Point:
    return Point(sample=Sample(at_seconds=at, **figures), state=state, limit_seconds=limit)


def _times(series: Series) -> list[float]:
    return [point.sample.at_seconds for point in series.points]


def test_a_short_run_is_kept_several_times_a_second() -> None:
    series = Series(_point(number / 10, remaining_bytes=100 - number) for number in range(61))
    assert _times(series) == pytest.approx([number * FIRST_SECONDS for number in range(31)])


@pytest.mark.parametrize("hours", [0.05, 1, 24])
def test_a_long_one_is_thinned_evenly_and_never_more_than_the_limit(hours: float) -> None:
    end = hours * 3600
    series, at, most = Series(), 0.0, 0
    while at < end:
        series.add(_point(at, round=1 + int(at / 40)))
        most = max(most, len(series.points))
        at += 0.5 if hours > 1 else 0.1
    times = _times(series)
    assert most <= MOST
    assert len(times) >= MOST / 4
    assert times[0] == 0
    assert times[-1] >= end * 0.99
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < end / len(times) * 4, "no part of it is left out"
    # The first half is as dense as the second.
    assert 0.3 < sum(at < end / 2 for at in times) / len(times) < 0.7


@pytest.mark.parametrize("change", ["state", "round", "limit", "throttle"])
def test_where_something_changed_less_time_must_have_passed(change: str) -> None:
    new = {
        "state": _point(10.06, state=State.SWITCHOVER),
        "round": _point(10.06, round=1),
        "limit": _point(10.06, limit=0.2),
        "throttle": _point(10.06, throttle_ratio=0.3),
    }[change]
    assert Series([_point(10.0), _point(10.06)]).points == [_point(10.0)]
    assert Series([_point(10.0), new]).points == [_point(10.0), new]


def test_however_often_something_changes_it_stays_bounded() -> None:
    states = [State.POSTCOPY, State.RECOVERING]
    series = Series(
        _point(number / 20, state=states[number % 2], round=number, limit=number) for number in range(50_000)
    )
    assert MOST / 4 <= len(series.points) <= MOST


def test_states_outlive_what_lies_between() -> None:
    points = [_point(number / 10) for number in range(10_000)]
    points[5000] = _point(500.0, state=State.POSTCOPY)
    points[5001:] = [_point(500 + number / 10, state=State.POSTCOPY) for number in range(1, 5000)]
    kept = Series(points).points
    first = next(point for point in kept if point.state is State.POSTCOPY)
    assert first.sample.at_seconds <= 502


def test_what_does_not_come_later_is_left_out() -> None:
    series = Series([_point(1.0)])
    assert not series.add(_point(1.0, state=State.SWITCHOVER))
    assert not series.add(_point(0.5, state=State.SWITCHOVER))
    assert not series.add(_point(1.0 + 4e-7, state=State.SWITCHOVER)), "microseconds are all that is stored"
    assert _times(series) == [1.0]


def test_what_was_kept_is_kept_when_it_is_read_again() -> None:
    chance = random.Random(7)
    at, points = 0.0, []
    for number in range(5000):
        at += chance.uniform(0.0, 1.0)
        points.append(_point(at, round=number // 7))
    kept = Series(points).points
    again = Series(kept)
    assert again.points == kept
    # It goes on from there, and what is new does not drive out what is old.
    for number in range(20_000):
        again.add(_point(at + number / 2))
    assert len(again.points) <= MOST
    assert 0.1 < sum(point.sample.at_seconds < at for point in again.points) / len(again.points) < 0.6
