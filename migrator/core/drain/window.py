"""Maintenance windows: when an evacuation begins by itself, and after which nothing more of it is begun. Pure.

A window has a begin, an end, or both. At its end what has begun to copy goes on to its end, or is cancelled where its
evacuation says ``on_deadline: stop``; nothing else is begun, and whoever is left is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum

from migrator import wall_clock
from migrator.errors import UsageError
from migrator.units import show_seconds

#: A window may begin so far ahead.
_FARTHEST = timedelta(days=400)
#: One without an end that could not begin for so long is not begun any more: nobody wants last night's by then.
_LATEST = timedelta(hours=6)
#: Everyone is told once more so long before it begins.
NOTICE_SECONDS = 600.0


class WindowFit(StrEnum):
    """How well a window is expected to do for what is planned in it."""

    #: It was not forecast yet, or could not be.
    UNKNOWN = "unknown"
    #: In nine of ten cases.
    FITS = "fits"
    #: Most likely.
    MAY_NOT_FIT = "may-not-fit"
    #: It is too short, or there are guests that cannot move.
    DOES_NOT_FIT = "does-not-fit"

    @property
    def endangers(self) -> bool:
        """True where guests may be left when the window ends."""
        return self in (WindowFit.MAY_NOT_FIT, WindowFit.DOES_NOT_FIT)


@dataclass(frozen=True, kw_only=True)
class MaintenanceWindow:
    """When an evacuation may run."""

    #: ``None``: from now on.
    starts_at: datetime | None = None
    #: ``None``: for as long as it takes.
    ends_at: datetime | None = None
    #: What is remarkable about local times that were understood; mostly empty.
    note: str = ""

    def overlaps(self, other: MaintenanceWindow) -> bool:
        """Tell whether both may be open at some moment; one without an end is open at any later one."""
        return _before(self.starts_at, other.ends_at) and _before(other.starts_at, self.ends_at)


@dataclass(frozen=True, kw_only=True)
class WindowForecast:
    """The forecast of a window."""

    fit: WindowFit = WindowFit.UNKNOWN
    #: In one sentence for a person.
    text: str = ""


def _before(starts: datetime | None, ends: datetime | None) -> bool:
    return starts is None or ends is None or starts < ends


def understand(
    at: str | None, until: str | None, *, now: datetime, zone: tzinfo | None, zone_name: str = ""
) -> MaintenanceWindow:
    """Return the window that these words mean.

    :param at: RFC 3339 with an offset, ``+90m``, or with `zone` a local time: ``02:30``, the next one, or
        ``2026-12-01T02:30``.
    :param until: the same; ``05:00`` is the next one after `at`.
    :param zone: ``None``: local times are refused.
    :raise UsageError: they are no times, have passed, never come, or come twice; or no time is left between them.
    """
    starts = _moment(at, "at", now, zone) if at is not None else None
    ends = _moment(until, "until", starts or now, zone) if until is not None else None
    if ends is not None and ends <= (starts or now):
        raise UsageError(f"until: {until!r} leaves no time: the window ends as it begins, or before")
    notes = []
    if zone is not None:
        notes += [wall_clock.remark(at, starts, now=now, zone=zone)] if at and starts else []
        notes += [wall_clock.remark(until, ends, now=starts or now, zone=zone)] if until and ends else []
        notes += [wall_clock.clock_change(starts or now, ends, zone)] if ends else []
        notes += [
            f"{word} is {wall_clock.show(when, zone)}"
            for word, when in (("its begin", starts), ("its end", ends))
            if when is not None and "of two" in wall_clock.show(when, zone)
        ]
    said = "; ".join(each for each in notes if each)
    return MaintenanceWindow(
        starts_at=starts, ends_at=ends, note=f"{zone_name}: {said}" if said and zone_name else said
    )


def _moment(text: str, name: str, now: datetime, zone: tzinfo | None) -> datetime:
    try:
        if zone is None and _is_local(text):
            raise UsageError(f"{text!r} is a local time: give time_zone with it, or an offset like +01:00")
        found = wall_clock.parse(text, now=now, zone=zone, dated=True)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    if found > now + _FARTHEST:
        raise UsageError(f"{name}: {text!r} is more than {_FARTHEST.days} days ahead")
    return found


def _is_local(text: str) -> bool:
    text = text.strip()
    if text.startswith("+"):
        return False
    try:
        return datetime.fromisoformat(text).tzinfo is None
    except ValueError:
        return True


class Due(StrEnum):
    """The step that is due for a window."""

    WAIT = "wait"
    #: Everyone is told that it begins soon.
    NOTICE = "notice"
    BEGIN = "begin"
    #: It has ended, and nothing was begun.
    MISSED = "missed"


def due(window: MaintenanceWindow, now: datetime, *, noticed: bool) -> Due:
    """Say what is to be done about one that has not begun."""
    starts = window.starts_at or now
    if now >= (window.ends_at or starts + _LATEST):
        return Due.MISSED
    if now >= starts:
        return Due.BEGIN
    if not noticed and (starts - now).total_seconds() <= NOTICE_SECONDS:
        return Due.NOTICE
    return Due.WAIT


def judge(
    window: MaintenanceWindow,
    *,
    guests: int,
    cannot_move: int,
    p50_seconds: float | None,
    p90_seconds: float | None,
) -> WindowForecast:
    """Say whether a window is expected to do, by the plan that was made just now.

    :param guests: on the host.
    :param cannot_move: of them.
    :param p50_seconds: that those who can move take, all together; ``None``: it is not known.
    """
    if not guests:
        return WindowForecast(fit=WindowFit.FITS, text="the host is empty")
    stay = f"{cannot_move} of {guests} guests cannot move: its plan says why" if cannot_move else ""
    if cannot_move == guests or p50_seconds is None:
        fit = WindowFit.DOES_NOT_FIT if cannot_move else WindowFit.UNKNOWN
        return WindowForecast(fit=fit, text=stay or "nobody can say how long it takes")
    takes = f"it takes {show_seconds(p50_seconds)}"
    late = p90_seconds if p90_seconds is not None else p50_seconds
    if late > p50_seconds:
        takes += f" (in one of ten cases {show_seconds(late)} or longer)"
    if window.ends_at is None or window.starts_at is None:
        fit = WindowFit.DOES_NOT_FIT if cannot_move else WindowFit.FITS
        return WindowForecast(fit=fit, text="; ".join(filter(None, (takes, stay))))
    seconds = (window.ends_at - window.starts_at).total_seconds()
    if p50_seconds > seconds:
        fit, how = WindowFit.DOES_NOT_FIT, f"the window is {show_seconds(p50_seconds - seconds)} too short"
    elif late > seconds:
        fit, how = WindowFit.MAY_NOT_FIT, "the window may be too short"
    else:
        fit, how = WindowFit.FITS, f"the window leaves {show_seconds(seconds - p50_seconds)} to spare"
    if cannot_move:
        fit = WindowFit.DOES_NOT_FIT
    return WindowForecast(fit=fit, text="; ".join(filter(None, (f"{takes}; {how}", stay))))
