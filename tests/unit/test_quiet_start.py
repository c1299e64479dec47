"""A guest whose policy says so is moved when it writes little, and never so late that its deadline is endangered."""

from __future__ import annotations

import json

from migrator.core.guest_experience import GuestExperience, LastMove
from migrator.core.migration.quiet_start import QuietDecision, decide, last_safe_start

MIB = 1 << 20
HOUR = 3600.0
#: A Monday at noon, UTC.
NOON = 1_700_481_600.0


def known(rates: dict[int, float], *, days: int = 3) -> GuestExperience:
    """A guest of which these hours of the day were measured, in MiB/s, on some days."""
    found = GuestExperience()
    midnight = NOON - 12 * HOUR
    for day in range(days):
        for hour, rate in rates.items():
            found = found.after_rate(rate * MIB, at=midnight - (day + 1) * 24 * HOUR + hour * HOUR + 60)
    return found


DAILY = known({hour: 2.0 if 3 <= hour < 5 else 200.0 for hour in range(24)})


def decided(
    rate: float | None,
    *,
    experience: GuestExperience | None = None,
    now: float = NOON,
    last: float = NOON + 24 * HOUR,
    usual: float = 0.0,
    since: float = NOON,
) -> QuietDecision:
    return decide(
        now=now,
        since=since,
        last_start=last,
        rate_bytes_per_second=None if rate is None else rate * MIB,
        usual_bytes_per_second=max(usual, rate or 0.0) * MIB,
        experience=experience,
    )


def test_a_guest_that_writes_little_begins_at_once() -> None:
    assert decided(0.5).begin
    assert decided(20.0, usual=200.0).begin


def test_a_busy_one_waits_for_its_quiet_hour_and_says_till_when_at_most() -> None:
    found = decided(200.0, experience=DAILY)
    assert not found.begin
    assert "from 03:00:00 UTC" in found.text
    assert "12:00:00 UTC at the latest" in found.text


def test_one_whose_quiet_hour_comes_too_late_does_not_wait_for_it() -> None:
    found = decided(200.0, experience=DAILY, last=NOON + 4 * HOUR)
    assert not found.begin, "a quiet moment may come"
    assert "03:00" not in found.text
    assert decided(200.0, experience=DAILY, last=NOON + 4 * HOUR, now=NOON + 700).begin


def test_at_its_last_safe_start_it_begins_whatever_it_does() -> None:
    assert decided(200.0, experience=DAILY, last=NOON).begin
    assert decided(200.0, last=NOON - 1).begin


def test_one_that_is_always_busy_is_waited_for_ten_minutes() -> None:
    assert not decided(200.0, now=NOON + 599).begin
    assert decided(200.0, now=NOON + 600).begin


def test_one_that_cannot_be_measured_goes_by_what_is_known_of_it() -> None:
    assert decided(None).begin
    assert not decided(None, experience=DAILY).begin


def test_the_last_safe_start_leaves_time_for_the_worst_that_is_known() -> None:
    sure = last_safe_start(NOON, memory_bytes=10e9, bytes_per_second=100e6, experience=None)
    assert sure <= NOON - 4 * 100.0
    slow = DAILY.after_move(
        LastMove(at=0.0, source="a", destination="b", seconds=900.0), working_set_bytes=300 * MIB
    )
    assert last_safe_start(NOON, memory_bytes=10e9, bytes_per_second=100e6, experience=slow) <= NOON - 1800.0


def test_quiet_hours_are_found_and_a_steady_guest_has_none() -> None:
    assert DAILY.quiet_hours() == (3, 5)
    assert known(dict.fromkeys(range(24), 100.0)).quiet_hours() is None
    assert known({22: 1.0, 23: 1.0, 0: 1.0, 12: 100.0}).quiet_hours() == (22, 1)


def test_it_is_said_in_a_line_when_the_guest_was_moved_last_and_when_it_writes_least() -> None:
    move = LastMove(at=NOON, source="a", destination="b", seconds=4.2)
    moved = DAILY.after_move(move, working_set_bytes=MIB)
    told = "last moved 3 days ago in 4.2 s; writes least 03:00-05:00 UTC"
    assert moved.note(NOON + 3.5 * 24 * HOUR) == told
    assert moved.note(NOON + HOUR).startswith("last moved 1 hour ago")
    assert moved.note(NOON - 1).startswith("last moved just now"), "clocks are set back at times"
    assert DAILY.note(NOON) == "writes least 03:00-05:00 UTC"
    assert GuestExperience().note(NOON) == ""


def test_what_is_older_counts_less() -> None:
    found = known({12: 100.0}, days=7)
    for week in range(8):
        found = found.after_rate(10.0 * MIB, at=NOON + week * 7 * 24 * HOUR)
    assert (found.expected_rate(NOON) or 0) < 60 * MIB


def test_it_goes_through_json_and_stays_small() -> None:
    whole = known(dict.fromkeys(range(24), 100.0), days=7).after_move(
        LastMove(at=NOON, source="a", destination="b", seconds=12.5, downtime_seconds=0.03),
        working_set_bytes=300 * MIB,
        first_pass_ratio=0.5,
        watched_seconds=9.5,
        changes=2,
    )
    text = json.dumps(whole.fields())
    assert GuestExperience.from_fields(json.loads(text)).fields() == whole.fields()
    assert len(text) < 6000


def test_a_document_of_before_is_read() -> None:
    old = {"hours": {"12": [1000, 2.0]}, "working_set_bytes": 5, "last_move": None, "learned_at": 1.0}
    found = GuestExperience.from_fields(old)
    assert found.expected_rate(12 * HOUR) == 1000
    assert found.prior(12 * HOUR) is None, "it was never seen moving"


def test_the_prior_knows_less_of_a_guest_that_is_each_time_another() -> None:
    move = LastMove(at=NOON, source="a", destination="b", seconds=9.5)
    steady, wild = GuestExperience(), GuestExperience()
    for number in range(6):
        steady = steady.after_rate(50.0 * MIB, at=NOON)
        wild = wild.after_rate((10.0, 200.0)[number % 2] * MIB, at=NOON)
    known = steady.after_move(move, working_set_bytes=MIB, watched_seconds=9.0).prior(NOON)
    less = wild.after_move(move, working_set_bytes=MIB, watched_seconds=9.0).prior(NOON)
    assert known is not None
    assert less is not None
    assert known.rate_spread < 0.2 < 0.8 < less.rate_spread
