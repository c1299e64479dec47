"""The link between two simulated hosts, and the end of it that one stream writes into."""

from __future__ import annotations

import math
import random

from migrator.testing.memory import Memory
from migrator.testing.settings import Costs
from migrator.testing.workload import MIB


class Link:
    """A link that the streams of several migrations share; change :attr:`bytes_per_second` as you like.

    :param bytes_per_second: of payload: TCP takes some 5 % of what the line carries. 0 is a black hole.
    :param jitter_ratio: every turn of sending finds a speed that differs by about so much (standard deviation).
    :param seed: of the jitter; the same seed, the same run.
    """

    def __init__(
        self, bytes_per_second: float = 100.0 * MIB, *, jitter_ratio: float = 0.0, seed: int = 0
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._jitter_ratio = jitter_ratio
        self._random = random.Random(seed)
        #: Streams that send now, with what each wants at most.
        self._wanted: dict[object, float] = {}

    def join(self, stream: object, most_bytes_per_second: float) -> None:
        """Let `stream` send from now on, at that speed at most."""
        self._wanted[stream] = most_bytes_per_second

    def leave(self, stream: object) -> None:
        """Let `stream` send no more."""
        self._wanted.pop(stream, None)

    def share(self, stream: object) -> float:
        """Return the bytes per second of `stream`: equal shares, and what one does not want is left to the others."""
        left, streams = self.bytes_per_second, max(1, len(self._wanted))
        mine = self._wanted.get(stream, math.inf)
        for wanted in sorted(self._wanted.values()):
            if wanted >= mine or wanted > left / streams:
                break
            left, streams = left - wanted, streams - 1
        left /= streams
        if self._jitter_ratio and left:
            left *= max(0.05, self._random.gauss(1.0, self._jitter_ratio))
        return left


class StreamSocket:
    """One stream's socket: it takes a few megabytes at once, and empties at the link's speed."""

    def __init__(self, link: Link, costs: Costs) -> None:
        self._link = link
        self._costs = costs
        #: Written, and not yet at the other end.
        self.buffered_bytes = 0.0

    def speed(self, most_bytes_per_second: float) -> float:
        """Return the share of the link that this stream has now; 0: no limit of its own."""
        most = most_bytes_per_second if most_bytes_per_second > 0 else math.inf
        self._link.join(self, most)
        return self._link.share(self)

    def close(self) -> None:
        """Leave the link to others."""
        self._link.leave(self)
        self.buffered_bytes = 0.0

    @property
    def full(self) -> bool:
        """True where it takes nothing more until something has left."""
        return self.buffered_bytes >= self._costs.buffer_bytes - 1

    def send(self, memory: Memory, seconds: float, budget: float, speed: float) -> tuple[float, float]:
        """Send queued memory, within these seconds and this budget; return bytes on the wire and seconds."""
        wire, spent = memory.take_zero(seconds, self._costs.zero_bytes_per_second)
        if spent < seconds:
            left = seconds - spent
            most = min(self.room_in(left, speed), budget)
            sent = memory.take(most)
            if sent < most or most == budget:  # nothing (but zeros) is left, or no more is allowed
                left = min(left, self.seconds_for(sent, speed))
            wire, spent = wire + sent, spent + left
        self.pass_time(spent, speed, wire)
        return wire, spent

    def room_in(self, seconds: float, speed: float) -> float:
        """Return how much it takes within that time."""
        room = max(0.0, self._costs.buffer_bytes - self.buffered_bytes)
        return min(self._costs.memory_bytes_per_second * seconds, speed * seconds + room)

    def seconds_for(self, size: float, speed: float) -> float:
        """Return how long it takes until it has taken so much."""
        beyond = size - max(0.0, self._costs.buffer_bytes - self.buffered_bytes)
        slow = 0.0 if beyond <= 0 else beyond / speed if speed > 0 else math.inf
        return max(slow, size / self._costs.memory_bytes_per_second)

    def pass_time(self, seconds: float, speed: float, written: float = 0.0) -> None:
        """Note that so much was written within that time, and that the link went on emptying it."""
        self.buffered_bytes = max(0.0, self.buffered_bytes + written - speed * seconds)

    def flush_seconds(self, size: float, speed: float) -> float:
        """Return how long it takes until all of this has arrived, and what is in the buffer before it."""
        if speed <= 0:
            return math.inf
        return max((size + self.buffered_bytes) / speed, size / self._costs.memory_bytes_per_second)
