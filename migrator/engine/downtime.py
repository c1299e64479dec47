"""Downtime as it was: from STOP at the source to RESUME at the destination."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.ports import Event

#: The stamps of one host's events: written in microseconds.
_STAMP_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Downtime:
    """How long the guest stood still."""

    seconds: float
    #: The true value lies within this much of it.
    uncertainty_seconds: float


def between(stop: Event, resume: Event, *, one_clock: bool, round_trip_seconds: float) -> Downtime:
    """The time from `stop` to `resume`.

    :param one_clock: both were stamped by the same machine's clock; else their arrivals at the controller count,
        whose error is the round trip of either way.
    """
    if one_clock:
        return Downtime(
            seconds=max(0.0, resume.stamped - stop.stamped), uncertainty_seconds=2 * _STAMP_SECONDS
        )
    return Downtime(seconds=max(0.0, resume.arrived - stop.arrived), uncertainty_seconds=round_trip_seconds)
