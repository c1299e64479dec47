"""What waits in an SSH tunnel, reckoned from what its sockets count."""

from __future__ import annotations

import pytest

from migrator.core.migration.traffic_shaping import EndPace, pace_tunnel
from migrator.core.migration.tunnel_queue import TunnelCounters, TunnelQueue
from migrator.core.model import Sample

KIB, MIB = 1 << 10, 1 << 20
LIMIT = 128 * KIB


def counters(at: float, entered: int, left: int, *, unsent: int = LIMIT, waiting: int = 0) -> TunnelCounters:
    return TunnelCounters(
        at=at,
        entered_bytes=entered,
        left_bytes=left,
        unsent_bytes=unsent,
        waiting_bytes=waiting,
        unsent_limit_bytes=LIMIT,
    )


def test_what_its_client_keeps_is_what_came_in_and_has_not_left() -> None:
    queue = TunnelQueue()
    queue.note(counters(0.0, 0, 4 * KIB))  # what it said to log in
    queue.note(counters(1.0, 10 * MIB, 8 * MIB + 4 * KIB, waiting=300 * KIB))
    assert queue.queued_bytes == pytest.approx(2 * MIB, abs=32 * KIB)


def test_nothing_is_kept_where_the_network_takes_more_than_comes_in() -> None:
    queue = TunnelQueue()
    queue.note(counters(0.0, 0, 0))
    # After ten GiB SSH's own share may be another than it is taken to be.
    queue.note(counters(1.0, 10_000 * MIB, 10_100 * MIB, unsent=0, waiting=50 * KIB))
    assert queue.queued_bytes == 50 * KIB
    queue.note(counters(2.0, 10_003 * MIB, 10_101 * MIB, waiting=200 * KIB))
    assert queue.queued_bytes == pytest.approx(2 * MIB, abs=64 * KIB)


def test_its_network_is_as_fast_as_it_was_while_the_tunnel_was_full() -> None:
    queue = TunnelQueue()
    for at, left, unsent in ((0.0, 0, 0), (1.0, 1, LIMIT), (1.1, 2, LIMIT), (1.5, 1 + 4 * MIB, LIMIT)):
        queue.note(counters(at, left, left * MIB if left < 3 else left, unsent=unsent))
    assert queue.carried_bytes_per_second == pytest.approx(6 * MIB, rel=0.01)


def test_a_network_that_takes_all_that_comes_is_tried_with_ever_more() -> None:
    queue = TunnelQueue()
    for at in (0.0, 1.0):
        queue.note(counters(at, 0, round(at * MIB)))
    for at in range(2, 20):
        queue.note(counters(float(at), 0, MIB * (2 * at - 1), unsent=0))
    assert queue.carried_bytes_per_second == pytest.approx(2 * MIB, rel=0.05)
    for at in (20.0, 21.0, 22.0, 23.0, 24.0):  # and that was too much
        queue.note(counters(at, 0, round(37 * MIB + (at - 19) * 1.5 * MIB)))
    assert queue.carried_bytes_per_second == pytest.approx(1.5 * MIB, rel=0.05)


@pytest.mark.parametrize(
    ("carried", "queued", "remaining", "limit"),
    [
        pytest.param(0.0, 9 * MIB, 100 * MIB, None, id="not known"),
        pytest.param(8.0 * MIB, None, 100 * MIB, None, id="not seen"),
        pytest.param(8.0 * MIB, 2 * MIB, 100 * MIB, 0.6, id="much waits"),
        pytest.param(8.0 * MIB, 100 * KIB, 100 * MIB, 0.95, id="little waits"),
        pytest.param(8.0 * MIB, 100 * KIB, MIB, 0.85, id="near"),
        pytest.param(100.0 * MIB, 2 * MIB, 100 * MIB, None, id="fast"),
    ],
)
def test_a_stream_is_slower_than_the_network_below_its_tunnel(
    carried: float, queued: int | None, remaining: int, limit: float | None
) -> None:
    sample = Sample(queued_bytes=queued, remaining_bytes=remaining, bandwidth_bytes_per_second=carried)
    found = pace_tunnel(EndPace(), sample, carried).limit
    assert found == (None if limit is None else int(limit * carried))
