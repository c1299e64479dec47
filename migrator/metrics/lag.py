"""How late the event loop is."""

from __future__ import annotations

import asyncio
from collections import deque

#: Often enough that a loop blocked for a tenth of a second shows, and cheap: ten wake-ups a second.
_EVERY_SECONDS = 0.1
#: Longer than the shipped scrape interval, so that no lag falls between two scrapes.
_WINDOW_SECONDS = 15.0


class Lag:
    """Sleeps again and again, and remembers by how much it was woken too late."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()
        self._due: float | None = None

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._due = loop.time() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            now = loop.time()
            self._late.append((now, max(0.0, now - self._due)))
            while self._late[0][0] < now - _WINDOW_SECONDS:
                self._late.popleft()

    def largest_seconds(self) -> float:
        """The largest of the last 15 s, one that is still going on among them; to be called on the loop."""
        past = max((late for _, late in self._late), default=0.0)
        now = 0.0 if self._due is None else asyncio.get_running_loop().time() - self._due
        return max(past, now, 0.0)
