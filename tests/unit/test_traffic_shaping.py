"""What may wait in a stream's sockets, how fast they send, and how the end of one is paced that cannot be reached."""

from __future__ import annotations

import itertools

import pytest

from migrator.core.migration.traffic_shaping import (
    LEAST_UNSENT_BYTES,
    EndPace,
    pace_end,
    pacing,
    pacing_of_each,
    unsent_limit,
)
from migrator.core.model import Sample

MIB = 1 << 20
#: Some 60 Mbit/s.
PATH = 7.0e6


@pytest.mark.parametrize(
    ("speed", "least", "most"),
    [(0.0, 128 << 10, 128 << 10), (7.5e6, 128 << 10, 128 << 10), (1.25e9, 4 * MIB, 8 * MIB)],
    ids=["unknown", "60 Mbit/s", "10 Gbit/s"],
)
def test_some_milliseconds_of_the_speed_may_wait_unsent(speed: float, least: int, most: int) -> None:
    assert least <= unsent_limit(speed) <= most


def test_more_may_wait_far_from_the_end_than_near_it() -> None:
    assert unsent_limit(60e6, near=False) > unsent_limit(60e6, near=True)


def test_stream_is_paced_at_its_share_and_below_what_the_path_carries() -> None:
    assert pacing(share=None, path=None) == 0
    assert pacing(share=5e6, path=None) == 5_000_000
    assert pacing(share=1.25e9, path=7.5e6) == int(0.95 * 7.5e6)
    assert pacing(share=2e6, path=7.5e6) == 2_000_000


def test_share_is_divided_over_the_channels_of_multifd_alone() -> None:
    assert [pacing_of_each(8_000_000, sockets) for sockets in (0, 1, 2)] == [8_000_000] * 3
    assert pacing_of_each(8_000_000, 5) == 2_000_000
    assert pacing_of_each(0, 5) == 0


def samples(*, remaining: list[int], queued: int, speed: float = PATH) -> list[Sample]:
    return [
        Sample(
            at_seconds=10 + 0.1 * number,
            total_bytes=256 * MIB,
            remaining_bytes=left,
            bandwidth_bytes_per_second=speed,
            queued_bytes=queued,
        )
        for number, left in enumerate(remaining)
    ]


def paced(pace: EndPace, seen: list[Sample]) -> EndPace:
    for sample in seen:
        pace = pace_end(pace, sample)
    return pace


def test_far_from_its_end_nothing_is_paced() -> None:
    assert paced(EndPace(), samples(remaining=[100 * MIB, 99 * MIB], queued=2 * MIB)).limit is None


def test_near_its_end_the_queue_is_drained_and_then_kept_short() -> None:
    far = paced(EndPace(), samples(remaining=[100 * MIB] * 3, queued=2 * MIB))
    draining = pace_end(far, samples(remaining=[2 * MIB], queued=2 * MIB)[0])
    assert draining.limit is not None
    assert draining.limit < 0.7 * PATH
    keeping = pace_end(draining, samples(remaining=[1 * MIB], queued=LEAST_UNSENT_BYTES)[0])
    assert keeping.limit is not None
    assert draining.limit < keeping.limit < PATH
    # What is measured while it is paced is the pace, not the path.
    later = pace_end(keeping, samples(remaining=[1 * MIB], queued=0, speed=0.6 * PATH)[0])
    assert later.limit == keeping.limit


def test_end_that_does_not_come_is_not_paced_for_ever() -> None:
    pace, limited = EndPace(), []
    for number in itertools.count():
        sample = Sample(
            at_seconds=10 + 0.1 * number,
            remaining_bytes=MIB,
            bandwidth_bytes_per_second=PATH,
            queued_bytes=2 * MIB,
        )
        pace = pace_end(pace, sample)
        limited.append(pace.limit is not None)
        if number > 20 and not any(limited[-20:]):
            break
        assert number < 100
    assert sum(limited) <= 30


def test_queue_that_nobody_can_measure_changes_nothing() -> None:
    sample = Sample(remaining_bytes=MIB, bandwidth_bytes_per_second=PATH)
    assert pace_end(EndPace(), sample) == EndPace()
