"""Judges the clock of a guest that stood still: whether it is set, and by how much it was off. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.units import show_seconds

#: A guest that stood still for longer than this is asked for its clock: network time corrects less by itself.
LONG_STANDSTILL_SECONDS = 5.0
#: A clock that is off by less is left alone.
_WORTH_SECONDS = 1.0
#: A lag that is longer than the standstill by so much has another reason.
_MARGIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class ClockChange:
    """Change of a guest's clock, or none, and why."""

    #: It is set to the time here.
    sets: bool
    #: In one line, for a person.
    reason: str


def clock_change(*, guest: float, here: float, stood_seconds: float, uncertainty: float) -> ClockChange:
    """Decide whether a guest's clock is set; one that is off for another reason than its standstill is its owner's.

    :param guest: its time, seconds since the epoch.
    :param here: the time of the controller's machine at the same moment, give or take `uncertainty`.
    :param stood_seconds: for how long the guest stood still.
    """
    lag = here - guest
    stood = show_seconds(stood_seconds)
    if abs(lag) <= max(_WORTH_SECONDS, uncertainty):
        return ClockChange(
            sets=False, reason=f"the guest's clock is right, though it stood still for {stood}"
        )
    if 0 < lag <= stood_seconds + _MARGIN_SECONDS + uncertainty:
        return ClockChange(
            sets=True,
            reason=f"the guest's clock was {show_seconds(lag)} behind after {stood} of standstill: set",
        )
    how = "behind" if lag > 0 else "ahead"
    return ClockChange(
        sets=False,
        reason=f"the guest's clock is {show_seconds(abs(lag))} {how}, and its standstill of {stood} does not explain "
        "that: left as it is",
    )
