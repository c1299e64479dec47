"""Forecast while disks are copied: the disks as fast as they went of late, then memory at the same speed. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from migrator.core.migration.disk_copies import Mirrors
from migrator.core.migration.forecast import Forecast, Verdict

#: The speed is that of so many of the last seconds, and of so many at the least.
_WINDOW_SECONDS, _LEAST_SECONDS = 10.0, 0.5
#: Disks may go so many times faster or slower from now on.
_SPREAD = 1.3
#: Memory is sent so often at the most: nothing is known of what the guest dirties.
_MOST_TIMES_SENT = 2.0
_UNKNOWN = Forecast(
    verdict=Verdict.UNKNOWN,
    waiting_for="its disks to be copied",
    downtime_seconds_p10=math.inf,
    downtime_seconds_p50=math.inf,
    downtime_seconds_p90=math.inf,
)


class MirrorForecast:
    """Follows the mirrors of one migration.

    :param disk_bytes: what is allocated of the disks: holes are copied in no time.
    :param memory_bytes: sent afterwards.
    """

    def __init__(self, *, disk_bytes: int, memory_bytes: int) -> None:
        self._disk_bytes, self._memory_bytes = disk_bytes, memory_bytes
        #: When so many bytes were left.
        self._seen: deque[tuple[float, float]] = deque()

    def left_bytes(self, mirrors: Mirrors) -> float:
        """Return what is expected to be sent of the disks: of what is left as large a share as of the whole."""
        if mirrors.total_bytes <= 0:
            return float(self._disk_bytes)
        return mirrors.remaining_bytes * min(1.0, self._disk_bytes / mirrors.total_bytes)

    def forecast(self, mirrors: Mirrors, *, at_seconds: float) -> Forecast:
        """Return the forecast of the whole migration after one more look at its mirrors.

        Without a time where nothing is known of the speed yet.
        """
        left = self.left_bytes(mirrors)
        self._seen.append((at_seconds, left))
        while len(self._seen) > 2 and self._seen[1][0] <= at_seconds - _WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        sent, seconds = before - left, at_seconds - since
        if seconds < _LEAST_SECONDS or sent <= 0:
            return _UNKNOWN
        disks, memory = left * seconds / sent, self._memory_bytes * seconds / sent
        return replace(
            _UNKNOWN,
            seconds_p10=disks / _SPREAD,
            seconds_p50=disks + memory,
            seconds_p90=_SPREAD * (disks + _MOST_TIMES_SENT * memory),
        )
