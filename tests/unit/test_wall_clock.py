"""TIME, as a person types it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator import wall_clock
from migrator.errors import UsageError


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


NOW = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)  # 21:00 in Berlin


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("+90m", NOW + timedelta(minutes=90)),
        ("+2h", NOW + timedelta(hours=2)),
        ("+30s", NOW + timedelta(seconds=30)),
        ("22:30", datetime(2026, 11, 24, 21, 30, tzinfo=UTC)),
        ("20:59", datetime(2026, 11, 25, 19, 59, tzinfo=UTC)),
        ("21:00", datetime(2026, 11, 25, 20, 0, tzinfo=UTC)),
        ("0:15", datetime(2026, 11, 24, 23, 15, tzinfo=UTC)),
        ("2026-11-24T22:30:00+01:00", datetime(2026, 11, 24, 21, 30, tzinfo=UTC)),
        ("2026-11-24T21:30:00Z", datetime(2026, 11, 24, 21, 30, tzinfo=UTC)),
    ],
)
def test_times(text: str, when: datetime):
    assert wall_clock.parse(text, now=NOW) == when


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "+",
        "+soon",
        "90m",
        "24:00",
        "12:60",
        "2026-11-24T22:30:00",
        "2026-11-24T20:59:00+01:00",
        "+" + "9" * 30,
    ],
)
def test_what_is_no_time(text: str):
    with pytest.raises(UsageError):
        wall_clock.parse(text, now=NOW)


def test_a_number_without_a_unit_is_not_taken_for_seconds_where_minutes_were_meant():
    with pytest.raises(UsageError, match=r"'\+90' does not say its unit: write \+90m or \+90h"):
        wall_clock.parse("+90", now=NOW)


def test_the_night_the_clock_is_put_forward():
    evening = datetime(2026, 3, 28, 22, 0, tzinfo=UTC)  # 23:00 in Berlin; at 2:00 it will be 3:00
    assert wall_clock.parse("6:00", now=evening) == datetime(2026, 3, 29, 4, 0, tzinfo=UTC)


def test_it_is_shown_with_its_zone():
    assert wall_clock.show(datetime(2026, 11, 24, 21, 30, tzinfo=UTC)) == "Tue 2026-11-24 22:30:00 CET"


BERLIN, LORD_HOWE, APIA = (
    ZoneInfo(name) for name in ("Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia")
)


class TestClockChanges:
    """In Berlin on 2026-03-29 at 2:00 it is 3:00; on 2026-10-25 at 3:00 it is 2:00 again."""

    @pytest.mark.parametrize(
        ("now", "text", "shown"),
        [
            # The evening before, and in the night itself: the clock shows no 2:30, so it is the next day's.
            ("2026-03-28T22:00Z", "2:30", "Mon 2026-03-30 02:30:00 CEST"),
            ("2026-03-29T00:59Z", "2:30", "Mon 2026-03-30 02:30:00 CEST"),
            ("2026-03-28T22:00Z", "3:00", "Sun 2026-03-29 03:00:00 CEST"),
            ("2026-03-28T22:00Z", "1:59", "Sun 2026-03-29 01:59:00 CET"),
            ("2026-03-29T01:01Z", "2:30", "Mon 2026-03-30 02:30:00 CEST"),
            # It comes twice: the next one counts, and which one that is, is said.
            ("2026-10-24T20:00Z", "2:30", "Sun 2026-10-25 02:30:00 CEST (+02:00, the first of two)"),
            ("2026-10-25T00:31Z", "2:30", "Sun 2026-10-25 02:30:00 CET (+01:00, the second of two)"),
            ("2026-10-25T00:45Z", "2:15", "Sun 2026-10-25 02:15:00 CET (+01:00, the second of two)"),
            ("2026-10-25T01:31Z", "2:30", "Mon 2026-10-26 02:30:00 CET"),
            ("2026-10-24T20:00Z", "3:00", "Sun 2026-10-25 03:00:00 CET"),
        ],
    )
    def test_next_one_that_the_wall_will_show(self, now: str, text: str, shown: str) -> None:
        moment = datetime.fromisoformat(now)
        assert wall_clock.show(wall_clock.parse(text, now=moment)) == shown  # by this machine's clock
        assert wall_clock.show(wall_clock.parse(text, now=moment, zone=BERLIN), BERLIN) == shown

    def test_the_day_without_it_is_told(self) -> None:
        evening = datetime(2026, 3, 28, 22, 0, tzinfo=UTC)
        when = wall_clock.parse("2:30", now=evening)
        said = "on Sun 2026-03-29 the clock does not show 02:30: it is put forward then"
        assert wall_clock.remark("2:30", when, now=evening) == said
        for text in ("3:00", "23:30", "+2h", "2026-03-29T02:30:00+01:00"):
            assert wall_clock.remark(text, wall_clock.parse(text, now=evening), now=evening) == ""

    def test_zone_that_left_out_a_whole_day(self) -> None:
        evening = datetime(2011, 12, 30, 9, 0, tzinfo=UTC)  # Thursday 23:00 in Apia; the next day is Saturday
        assert wall_clock.parse("22:00", now=evening, zone=APIA) == datetime(2011, 12, 31, 8, 0, tzinfo=UTC)

    def test_zone_that_goes_back_half_an_hour(self) -> None:
        now = datetime(2026, 4, 4, 14, 50, tzinfo=UTC)  # 1:50 for the first time
        assert wall_clock.parse("1:45", now=now, zone=LORD_HOWE) == datetime(2026, 4, 4, 15, 15, tzinfo=UTC)

    @pytest.mark.parametrize("text", ["24:00", "23:60", "99:99"])
    def test_time_that_never_is(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"is no time of day: they go from 0:00 to 23:59"):
            wall_clock.parse(text, now=NOW)

    @settings(max_examples=300, deadline=None)
    @given(
        st.sampled_from(sorted(available_timezones() - {"localtime"})),
        st.integers(min_value=1_000_000_000, max_value=2_100_000_000),
        st.integers(min_value=0, max_value=1439),
    )
    def test_in_every_zone_the_wall_shows_it_and_did_not_since_now(
        self, name: str, seconds: int, minute: int
    ) -> None:
        zone, now = ZoneInfo(name), datetime.fromtimestamp(seconds, UTC)
        found = wall_clock.parse(f"{minute // 60}:{minute % 60:02}", now=now, zone=zone)
        local = found.astimezone(UTC).astimezone(zone)
        assert (local.hour * 60 + local.minute, local.second) == (minute, 0)
        assert found > now
        # No whole minute before it showed that.
        at = now.replace(second=0, microsecond=0)
        while (at := at + timedelta(minutes=1)) < found:
            before = at.astimezone(zone)
            if before.second:  # zones whose offset is no whole minute are long gone
                return
            assert before.hour * 60 + before.minute != minute
