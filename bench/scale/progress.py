"""Tells on the error output how far a long measurement is."""

from __future__ import annotations

import sys
import time

_EVERY_SECONDS = 10.0


def say(text: str) -> None:
    """Tell it at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Budget:
    """Time for counts that grow: says which there is no time left for.

    :param seconds: for all of them.
    :param fixed_seconds: part of the time of each that does not grow with the count.
    """

    def __init__(self, seconds: float, *, fixed_seconds: float = 0.0) -> None:
        self._until, self._fixed = time.monotonic() + seconds, fixed_seconds
        self._last: tuple[int, float] | None = None
        self.skipped: list[int] = []

    def allows(self, count: int) -> bool:
        """Return whether so many can be measured in the time left, going by the last that were."""
        took = 0.0
        if self._last is not None:
            took = self._fixed + max(0.0, self._last[1] - self._fixed) * count / self._last[0]
        if time.monotonic() + took <= self._until:
            return True
        self.skipped.append(count)
        say(f"{count} would take {took:.0f} s, for which there is no time left")
        return False

    def took(self, count: int, seconds: float) -> None:
        """Note what so many took."""
        self._last = (count, seconds)

    def text(self) -> str:
        """Return what was left out, as a sentence; empty: nothing."""
        return (
            f" Left out, as the time was over: {', '.join(map(str, self.skipped))}." if self.skipped else ""
        )


class Progress:
    """Tells every ten seconds how many there are.

    :param what: follows the number.
    """

    def __init__(self, what: str) -> None:
        self._what, self._count, self._said_at = what, 0, time.monotonic()

    def step(self) -> None:
        """Count one more."""
        self._count += 1
        if time.monotonic() - self._said_at >= _EVERY_SECONDS:
            self._said_at = time.monotonic()
            say(f"{self._count} {self._what}")
