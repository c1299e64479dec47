"""Impact of a migration on its guest, held against the ceiling of its policy. Pure."""

from __future__ import annotations

from migrator.core.model import STOPPED_MODES


def standstill_at_least(
    *, downtime: float | None, standstill: float | None, uncertainty: float | None = None
) -> float | None:
    """Return the seconds for which the guest stood still at least; ``None`` where that is not known.

    :param downtime: the time of the switch, as measured.
    :param standstill: all the time that it stood still, give or take `uncertainty`.
    """
    return downtime if standstill is None else max(0.0, standstill - (uncertainty or 0.0))


def above_ceiling(seconds: float | None, ceiling: float, mode: str) -> bool:
    """Tell whether the guest certainly stood still for longer than was allowed; ``offline`` allows any time."""
    return mode not in STOPPED_MODES and seconds is not None and seconds > ceiling > 0
