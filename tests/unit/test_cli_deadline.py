"""TIME, as a person types it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from migrator.cli import deadline
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
    assert deadline.parse(text, now=NOW) == when


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
        deadline.parse(text, now=NOW)


def test_a_number_without_a_unit_is_not_taken_for_seconds_where_minutes_were_meant():
    with pytest.raises(UsageError, match=r"'\+90' does not say its unit: write \+90m or \+90h"):
        deadline.parse("+90", now=NOW)


def test_the_night_the_clock_is_put_forward():
    evening = datetime(2026, 3, 28, 22, 0, tzinfo=UTC)  # 23:00 in Berlin; at 2:00 it will be 3:00
    assert deadline.parse("6:00", now=evening) == datetime(2026, 3, 29, 4, 0, tzinfo=UTC)


def test_it_is_shown_with_its_zone():
    assert deadline.show(datetime(2026, 11, 24, 21, 30, tzinfo=UTC)) == "Tue 2026-11-24 22:30:00 CET"
