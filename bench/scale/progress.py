"""Tells on the error output how far a long measurement is."""

from __future__ import annotations

import sys
import time

_EVERY_SECONDS = 10.0


def say(text: str) -> None:
    """Tell it at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


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
