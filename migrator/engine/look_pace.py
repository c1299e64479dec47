"""Has migrations that are far from their switch looked at more rarely while the event loop is busy."""

from __future__ import annotations

import time

from migrator.machine import thread_worked_seconds

#: The loop's load is measured over so long at the least.
_EVERY_SECONDS = 1.0
#: Above this share of its time that the loop works, looks become rarer, and below the other more frequent again.
_BUSY_RATIO, _CALM_RATIO = 0.6, 0.45
#: From one measurement to the next they become at most so many times as rare, or as frequent again.
_RARER, _MORE_FREQUENT = 1.5, 0.8
#: So many times as rare as usual at the most.
_MOST = 4.0


class LookPace:
    """The pace of the looks of one event loop at migrations for which there is nothing to decide for a while.

    To be used on the thread of that loop. Its load is what that thread has computed, and waited for a processor.

    :ivar stretch: so many times as long as usual a look waits for the next one; 1 where the loop is not busy.
    """

    def __init__(self) -> None:
        self.stretch = 1.0
        self._at, self._worked = time.monotonic(), thread_worked_seconds()

    def __call__(self) -> float:
        """Return :attr:`stretch` as of now."""
        now = time.monotonic()
        if now - self._at >= _EVERY_SECONDS:
            worked = thread_worked_seconds()
            self.stretch = stretched(self.stretch, (worked - self._worked) / (now - self._at))
            self._at, self._worked = now, worked
        return self.stretch


def stretched(stretch: float, load: float) -> float:
    """Return the next stretch.

    :param load: the share of its time that the loop worked with the last one.
    """
    if load > _BUSY_RATIO:
        return min(_MOST, stretch * min(_RARER, load / _BUSY_RATIO))
    return max(1.0, stretch * _MORE_FREQUENT) if load < _CALM_RATIO else stretch
