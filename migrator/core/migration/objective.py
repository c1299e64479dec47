"""Objective of the switch: which of the ways to end is the best for the guest. Pure, and the only place that says it.

Downtime first, then time. A guest that stands still is noticed by everybody who uses it; a copy that takes longer is
noticed by nobody but the link. So a longer copy is worth it while it buys downtime at a stated rate: a millisecond of
downtime is worth :data:`DOWNTIME_WORTH` milliseconds of copying. Ten, because that is where a copy begins to crawl: one
more millisecond less costs ``1 / (1 - write rate / bandwidth)`` milliseconds of copying, which is ten for a guest that
writes nine tenths of what the stream carries. Two bounds keep that from becoming long: no more than
:data:`MOST_EXTRA_RATIO` of the whole time is spent on it, and no more than the policy's time limit leaves.

The ceiling stays a ceiling: what is above it is not chosen, however soon it would be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from migrator.core.policy import Preference

#: Seconds of copying that a second of downtime is worth.
DOWNTIME_WORTH = 10.0
#: Of the whole time of the soonest way to end, so much more may be spent on a shorter downtime.
MOST_EXTRA_RATIO = 0.1


@dataclass(frozen=True, kw_only=True)
class Ending:
    """One way in which the copy can end."""

    #: The downtime limit that brings it about, in seconds.
    limit_seconds: float
    #: From now until the guest runs at the destination.
    seconds: float
    downtime_seconds: float

    @property
    def stop_in_seconds(self) -> float:
        """Return how long the guest goes on running at the source."""
        return max(0.0, self.seconds - self.downtime_seconds)


def best_ending(
    endings: Iterable[Ending],
    *,
    ceiling_seconds: float,
    elapsed_seconds: float,
    soonest_seconds: float | None = None,
    left_seconds: float,
    prefer: Preference = Preference.DOWNTIME,
) -> Ending | None:
    """Return the best of these ways to end; ``None`` where none keeps the ceiling.

    :param ceiling_seconds: no downtime may be longer.
    :param elapsed_seconds: since the migration began.
    :param soonest_seconds: whole time after which it could have ended, where that was in reach before; ``None``: by the
        soonest of these. It keeps a guest that always promises less from being waited for again and again.
    :param left_seconds: until the policy's time limit; where nothing ends within it, the soonest is chosen.
    """
    allowed = [ending for ending in endings if ending.downtime_seconds <= ceiling_seconds]
    if not allowed:
        return None
    soonest = min(allowed, key=lambda ending: (ending.seconds, ending.downtime_seconds))
    if prefer is Preference.TIME:
        return soonest
    whole = elapsed_seconds + soonest.seconds
    if soonest_seconds is not None:
        whole = min(whole, soonest_seconds)
    latest = max(soonest.seconds, min(whole * (1 + MOST_EXTRA_RATIO) - elapsed_seconds, left_seconds))
    return min(
        (ending for ending in allowed if ending.seconds <= latest),
        key=lambda ending: (
            ending.seconds + DOWNTIME_WORTH * ending.downtime_seconds,
            ending.downtime_seconds,
        ),
    )
