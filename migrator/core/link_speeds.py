"""Speeds of hosts' links and of the paths between hosts, as they were learned and are planned with. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import nsmallest

#: Share of what a path carries that streams take at the most: the rest keeps the queue on the path empty.
MOST_OF_PATH_RATIO = 0.95


@dataclass(frozen=True, kw_only=True)
class StreamCounters:
    """Counters of the sockets of one stream, as the kernel had them at one moment."""

    #: On the clock of the host that counts, seconds.
    at: float
    acknowledged_bytes: int
    #: In which something was on its way, and in which the reader's window was full; of its busiest socket.
    busy_seconds: float
    reader_seconds: float


@dataclass(frozen=True, kw_only=True)
class LinkSpeed:
    """Speed of one link, or of the path between two hosts, in bytes per second, as it was learned."""

    #: At which it held streams back, all of them summed; ``None``: it was never seen to.
    bytes_per_second: float | None = None
    #: How far that may be off (one standard deviation, a share of it).
    spread_ratio: float = 0.0
    #: The most that it was seen to carry without holding anybody back.
    at_least: float = 0.0
    #: When it was last measured, seconds since the epoch; ``None``: never.
    measured_at: float | None = None

    @property
    def measured(self) -> bool:
        """Return whether anything is known of it."""
        return self.measured_at is not None


@dataclass(frozen=True, kw_only=True)
class LearnedSpeeds:
    """Speeds of the link of one host, and of the paths from it, as they were learned."""

    #: Its link, each way, as far as streams from (or to) several hosts filled it together.
    out: LinkSpeed = LinkSpeed()
    into: LinkSpeed = LinkSpeed()
    #: The path to another host, by its name.
    to: Mapping[str, LinkSpeed] = field(default_factory=dict)

    def slowest(self, count: int) -> dict[str, float]:
        """Return the slowest of the paths that hold streams back, so many at the most: bytes per second by target."""
        known = {target: each.bytes_per_second for target, each in self.to.items() if each.bytes_per_second}
        return dict(nsmallest(count, known.items(), key=lambda one: (one[1], one[0])))


NOTHING_LEARNED = LearnedSpeeds()
