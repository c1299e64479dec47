"""Rates and streams of callers, without a socket."""

from __future__ import annotations

import pytest

from migrator.http.limits import Limits, Rates, Streams
from migrator.http.problems import ProblemError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(rates: Rates, who: str, *, cost: float = 1.0) -> int:
    """Seconds until it may ask again; 0: it may now, and has."""
    try:
        rates.take(who, cost=cost)
    except ProblemError as error:
        return int(error.headers["Retry-After"])
    return 0


def test_a_burst_and_then_the_rate():
    clock = Clock()
    rates = Rates(per_second=2, burst=5, clock=clock)
    assert [refused(rates, "a") for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    assert refused(rates, "b") == 0
    clock.now += 0.5
    assert [refused(rates, "a") for _ in range(2)] == [0, 1]
    clock.now += 1000
    assert [refused(rates, "a") for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_what_was_refused_costs_nothing_and_the_wait_that_is_named_is_long_enough():
    clock = Clock()
    rates = Rates(per_second=0.5, burst=10, clock=clock)
    assert refused(rates, "a", cost=10) == 0
    waits = [refused(rates, "a", cost=10) for _ in range(100)]
    assert len(set(waits)) == 1
    clock.now += waits[0]
    assert refused(rates, "a", cost=10) == 0


def test_many_callers_do_not_take_memory_for_ever():
    rates = Rates(per_second=1, burst=1)
    for n in range(10_000):
        assert refused(rates, f"caller {n}") == 0
    assert len(rates._buckets) <= 4096


def test_streams():
    streams = Streams(Limits(streams=3, streams_per_caller=2))
    with streams.one("a"), streams.one("a"):
        with pytest.raises(ProblemError) as error, streams.one("a"):
            pass
        assert error.value.status == 429
        with streams.one("b"):
            with pytest.raises(ProblemError) as error, streams.one("c"):
                pass
            assert error.value.status == 503
        with streams.one("c"):
            pass
    assert streams._open.total() == 0
