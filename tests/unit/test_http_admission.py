"""How many connections and requests one address has, by a clock of our own."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import logs
from migrator.http.admission import Admission, Gate, Pace, address_of, network_of, within_descriptors
from tests.metered import Clock


def gate(clock: Clock, **bounds: float) -> Gate:
    return Gate("tcp", Admission(**bounds), clock=clock)  # type: ignore[arg-type] # all are numbers


def test_one_address_cannot_take_the_connections_of_others() -> None:
    one = gate(Clock(), connections=10, connections_per_address=4)
    assert [one.enter("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert [one.enter("b") for _ in range(6)] == [True] * 4 + [False] * 2
    assert [one.enter("c") for _ in range(3)] == [True, True, False]
    assert one.connections == 10
    one.leave("a")
    assert not one.enter("b")
    assert one.enter("c")


def test_an_address_that_comes_and_goes_is_let_in_no_faster_than_it_may() -> None:
    clock = Clock()
    one = gate(clock, connects_per_second=10, connects_burst=5)
    came = 0
    for _ in range(1000):
        clock.seconds += 0.01
        if one.enter("a"):
            came += 1
            one.leave("a")
    assert 100 <= came <= 106


def test_requests_of_one_address_are_spread_and_those_of_another_are_not() -> None:
    clock = Clock()
    one = gate(clock, address_requests_per_second=100, requests_per_second=1e6, burst=20)
    waits = [one.request("a") for _ in range(120)]
    assert waits[:20] == [0.0] * 20
    assert waits[-1] == pytest.approx(1.0, abs=0.02)
    assert one.request("b") == 0.0


def test_who_waits_at_one_address_is_not_before_others_yet() -> None:
    one = gate(Clock(), requests_per_second=100, burst=10)
    for _ in range(1000):
        one.request("a")
    assert one.turn() == 0.0
    assert max(one.turn() for _ in range(100)) == pytest.approx(0.8, abs=0.05)


def test_what_is_refused_is_said_once_a_minute_with_how_often(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(verbose=True, json=True)
    clock = Clock()
    one = gate(clock, connections_per_address=1)
    try:
        for _ in range(5000):
            one.enter("a")
            clock.seconds += 0.025
    finally:
        logs.configure()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 3
    assert [line["refused"] > 2000 for line in lines] == [False, True, True]


def test_few_descriptors_leave_most_of_them_to_what_steers() -> None:
    few = within_descriptors(Admission(), share=0.25, descriptors=128)
    assert (few.connections, few.connections_per_address) == (32, 16)
    assert within_descriptors(Admission(), share=0.25, descriptors=65536) == Admission()


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fd00:1:2:3:4:5:6:7", "fd00:1:2:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:0", "unix:0"),
        ("", ""),
    ],
)
def test_what_one_customer_has_is_counted_together(address: str, counted: str) -> None:
    assert network_of(address) == counted


def test_peer_of_a_unix_socket_is_its_user() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert address_of(here).startswith("unix:")


@given(steps=st.lists(st.floats(0, 0.5), max_size=200), rate=st.floats(1, 1000), burst=st.integers(1, 50))
def test_no_more_than_rate_and_burst_begin_in_any_time(steps: list[float], rate: float, burst: int) -> None:
    pace, now, begun = Pace(per_second=rate, burst=burst), 0.0, []
    for step in steps:
        now += step
        begun.append(now + (pace.wait(now) or 0.0))
    for first in range(len(begun)):
        for last in range(first, len(begun)):
            assert last - first + 1 <= burst + 1 + (begun[last] - begun[first]) * rate + 1e-6
