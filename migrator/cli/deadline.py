"""When: what a person types as a TIME, as a moment."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from migrator import units
from migrator.errors import UsageError


def parse(text: str, *, now: datetime) -> datetime:
    """RFC 3339 with an offset, ``+90m``, or ``22:30``: the next one on this machine's clock.

    :param now: with its zone.
    :raise UsageError: when it is none of these, or has passed.
    """
    text = text.strip()
    if text.startswith("+"):
        try:
            float(text[1:])
        except ValueError:
            pass
        else:
            raise UsageError(f"{text!r} does not say its unit: write {text}m or {text}h")
        try:
            return now + timedelta(seconds=units.seconds(text[1:]))
        except (UsageError, OverflowError):
            raise UsageError(f"{text!r} is no time from now: write it like +90m or +2h") from None
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if clock is not None:
        return _next(int(clock[1]), int(clock[2]), now, text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time: write +90m, 22:30 or 2026-11-30T22:30:00+01:00") from None
    if found.tzinfo is None:
        raise UsageError(f"{text!r} does not say its zone: add Z or an offset like +01:00, or write 22:30")
    if found <= now:
        raise UsageError(f"{text!r} has passed: it is {show(now)}")
    return found


def show(when: datetime) -> str:
    """For people, with the zone: ``Tue 2026-11-24 22:30:00 CET``."""
    local = when.astimezone()
    return f"{local:%a %Y-%m-%d %H:%M:%S} {local.tzname()}"


def brief(when: datetime) -> str:
    """For a table, on this machine's clock: ``22:30:00`` where that is today, else ``Tue 24 Nov 22:30``."""
    local = when.astimezone()
    today = datetime.now(local.tzinfo).date() == local.date()
    return f"{local:%H:%M:%S}" if today else f"{local:%a %d %b %H:%M}"


def _next(hour: int, minute: int, now: datetime, text: str) -> datetime:
    try:
        # Without a zone, so that the clock on the wall is meant also where it was put forward tonight.
        wall = now.astimezone().replace(hour=hour, minute=minute, second=0, microsecond=0, tzinfo=None)
    except ValueError:
        raise UsageError(f"{text!r} is no time of day") from None
    found = wall.astimezone()
    return found if found > now else (wall + timedelta(days=1)).astimezone()
