"""How long it takes until a migration may begin to send, by earlier ones: hosts, and ways to them, differ a lot."""

from __future__ import annotations

from collections import deque
from statistics import median

#: So many of the last ones of a target count.
_REMEMBERED = 8
#: Where nothing is known: a QEMU is started and set up in about so long, and a host that is slow to be looked at is so
#: many times slower to be prepared at.
_LEAST_SECONDS, _LOOKS = 1.0, 2.0
#: One that takes longer than was expected takes at least this part of what it took already.
_MORE_RATIO = 0.25


class Preparations:
    """Remembers them, by target."""

    def __init__(self) -> None:
        self._took: dict[str, deque[float]] = {}
        #: The medians of each target, and of all, as far as they were asked for since one was noted.
        self._medians: dict[str, float] = {}
        self._median_of_all: float | None = None

    def note(self, target: str, seconds: float) -> None:
        """Note how long a preparation took at a target."""
        self._took.setdefault(target, deque(maxlen=_REMEMBERED)).append(seconds)
        self._medians.pop(target, None)
        self._median_of_all = None

    def expected(self, target: str, *, look_seconds: float = 0.0) -> float:
        """Return the seconds that the next preparation there is expected to take.

        :param look_seconds: what the last look at both hosts took; counts while nothing was prepared anywhere.
        """
        if not self._took:
            return max(_LEAST_SECONDS, _LOOKS * look_seconds)
        if target in self._took:
            if target not in self._medians:
                self._medians[target] = median(self._took[target])
            return self._medians[target]
        if self._median_of_all is None:
            # Copies: a plan of many is made in a thread, and others are noted meanwhile.
            self._median_of_all = median(each for known in list(self._took.values()) for each in tuple(known))
        return self._median_of_all

    def left(self, expected: float, spent: float) -> float:
        """Return the seconds that a preparation still takes which was begun `spent` seconds ago."""
        return max(expected - spent, _MORE_RATIO * spent)
