"""The bytes that wait in an SSH tunnel, which its client does not tell: reckoned from what its sockets count. Pure.

The client takes what it is sent for as long as the other side has not closed its window, 2 MiB, and keeps it while the
network does not take it. It has nothing left of its own where its socket to the network runs low.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Of what is sent over the network, so much is what went in; the rest is SSH's own.
_CONTENT_RATIO = 0.9975
#: The network's speed is measured over so many seconds at the least.
_WINDOW_SECONDS = 0.2
#: How much one measured window changes what the network is taken to carry.
_WEIGHT = 0.5
#: It may carry more than it did: so much more is tried each second in which it takes all that comes.
_GROWTH_PER_SECOND = 0.04


@dataclass(frozen=True, kw_only=True)
class TunnelCounters:
    """Counts of the sockets of a tunnel's client since they were opened."""

    #: Seconds, of the clock of its host.
    at: float
    #: Bytes that came in, and bytes that the other side has acknowledged.
    entered_bytes: int
    left_bytes: int
    #: Bytes that the network has not taken yet, and all that wait in the sockets.
    unsent_bytes: int
    waiting_bytes: int
    #: Bytes that may wait unsent.
    unsent_limit_bytes: int

    @property
    def runs_low(self) -> bool:
        """The client has nothing left to send, or it would have been sent."""
        return self.unsent_bytes < self.unsent_limit_bytes // 4

    @property
    def is_full(self) -> bool:
        """The client has more than the network takes."""
        return self.unsent_bytes >= self.unsent_limit_bytes // 2


class TunnelQueue:
    """Bytes that wait in a tunnel, and the speed of the network below it.

    :ivar queued_bytes: of the last counters; 0 before there are any.
    :ivar carried_bytes_per_second: 0 until the tunnel was full for a while.
    """

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.carried_bytes_per_second = 0.0
        #: What is to be added to the difference of what came in and what left.
        self._offset: float | None = None
        self._full_since: TunnelCounters | None = None
        self._noted_at: float | None = None

    def note(self, counters: TunnelCounters) -> None:
        """Take in one more look at it."""
        inside = counters.entered_bytes - _CONTENT_RATIO * counters.left_bytes
        if self._offset is None or counters.runs_low:
            self._offset = counters.waiting_bytes - inside
        self.queued_bytes = max(counters.waiting_bytes, round(inside + self._offset))
        self._measure(counters)

    def _measure(self, counters: TunnelCounters) -> None:
        since, noted_at = self._full_since, self._noted_at
        self._noted_at = counters.at
        if not counters.is_full:
            self._full_since = None
            if counters.runs_low and noted_at is not None:
                passed = max(0.0, counters.at - noted_at)
                self.carried_bytes_per_second *= (1 + _GROWTH_PER_SECOND) ** passed
        elif since is None:
            self._full_since = counters
        elif (passed := counters.at - since.at) >= _WINDOW_SECONDS:
            self._full_since = counters
            speed = (counters.left_bytes - since.left_bytes) / passed
            before = self.carried_bytes_per_second or speed
            self.carried_bytes_per_second = before + _WEIGHT * (speed - before)
