"""Points in time as a person types them: TIME on the command line, and of a window by every interface."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from migrator import units
from migrator.errors import UsageError

#: A wall clock shows every time of day again within a day but where it is put forward; no zone skips one for a week.
_DAYS = 8


def parse(text: str, *, now: datetime, zone: tzinfo | None = None, dated: bool = False) -> datetime:
    """Parse RFC 3339 with an offset, ``+90m``, or ``22:30``: the next one that the clock on the wall will show.

    :param now: with its zone.
    :param zone: of the wall; ``None``: this machine's.
    :param dated: a date and time without an offset is one of the clock on the wall, too.
    :raise UsageError: when it is none of these, has passed, or never comes; a dated one that the clock on the wall does
        not show, or shows twice.
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
        return _next(int(clock[1]), int(clock[2]), now, zone, text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time: write +90m, 22:30 or 2026-11-30T22:30:00+01:00") from None
    if found.tzinfo is None and dated:
        found = _dated(found, zone, text)
    if found.tzinfo is None:
        raise UsageError(f"{text!r} does not say its zone: add Z or an offset like +01:00, or write 22:30")
    if found <= now:
        raise UsageError(f"{text!r} has passed: it is {show(now)}")
    return found


def _dated(wall: datetime, zone: tzinfo | None, text: str) -> datetime:
    moments = _moments(wall, zone)
    if not moments:
        raise UsageError(
            f"{text!r} never comes: on {wall:%a %Y-%m-%d} the clock is put forward over {wall:%H:%M}; "
            "give a time before or after that"
        )
    if len(moments) > 1:
        first, second = (_in(each, zone).isoformat(timespec="minutes") for each in moments)
        raise UsageError(f"{text!r} comes twice, as the clock is put back: write {first} or {second}")
    return moments[0]


def clock_change(begin: datetime, end: datetime, zone: tzinfo | None = None) -> str:
    """Say how long it is from one moment to another where the clock on the wall is changed between; else empty."""
    real = end - begin
    wall = _in(end, zone).replace(tzinfo=None) - _in(begin, zone).replace(tzinfo=None)
    if wall == real:
        return ""
    direction = "forward" if wall > real else "back"
    return f"the clock is put {direction} in it: it lasts {units.show_seconds(real.total_seconds())}"


def show(when: datetime, zone: tzinfo | None = None) -> str:
    """Format for people, with the zone: ``Tue 2026-11-24 22:30:00 CET``.

    Where the wall shows that time twice, it also says which of the two.
    """
    local = _in(when, zone)
    said = f"{local:%a %Y-%m-%d %H:%M:%S} {local.tzname()}"
    moments = _moments(local.replace(tzinfo=None), zone)
    if len(moments) < 2:
        return said
    offset = f"{local:%z}"
    which = "first" if when.astimezone(UTC) <= moments[0] else "second"
    return f"{said} ({offset[:3]}:{offset[3:5]}, the {which} of two)"


def remark(text: str, when: datetime, *, now: datetime, zone: tzinfo | None = None) -> str:
    """Remark on a time of day that a clock change moves to a later day; mostly empty.

    :param text: as it was typed.
    :param when: what :func:`parse` made of it.
    """
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})", text.strip())
    if clock is None:
        return ""
    wall = _in(now, zone).replace(
        hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0, tzinfo=None
    )
    until = _in(when, zone).replace(tzinfo=None)
    while wall < until:
        if not _moments(wall, zone):
            return f"on {wall:%a %Y-%m-%d} the clock does not show {wall:%H:%M}: it is put forward then"
        wall += timedelta(days=1)
    return ""


def brief(when: datetime) -> str:
    """Format for a table, on this machine's clock: ``22:30:00`` where that is today, else ``Tue 24 Nov 22:30``."""
    local = when.astimezone()
    today = datetime.now(local.tzinfo).date() == local.date()
    return f"{local:%H:%M:%S}" if today else f"{local:%a %d %b %H:%M}"


def _next(hour: int, minute: int, now: datetime, zone: tzinfo | None, text: str) -> datetime:
    today = _in(now, zone)
    try:
        wall = today.replace(hour=hour, minute=minute, second=0, microsecond=0, tzinfo=None)
    except ValueError:
        raise UsageError(f"{text!r} is no time of day: they go from 0:00 to 23:59") from None
    # From yesterday on: where the clock is put back over midnight, yesterday comes again.
    for day in range(-1, _DAYS):
        for moment in _moments(wall + timedelta(days=day), zone):
            if moment > now.astimezone(UTC):
                return moment
    raise UsageError(f"{text!r} never comes: no clock here shows it within a week")


def _in(when: datetime, zone: tzinfo | None) -> datetime:
    # By way of UTC: within one zone nothing would be converted.
    return when.astimezone(UTC).astimezone(zone)


def _moments(wall: datetime, zone: tzinfo | None) -> list[datetime]:
    """Return when the clock on the wall shows that: once, twice where it is put back, never where it is put forward."""
    found = set()
    for fold in (0, 1):
        moment = wall.replace(fold=fold, tzinfo=zone).astimezone(UTC)
        if moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall.replace(fold=0):
            found.add(moment)
    return sorted(found)
