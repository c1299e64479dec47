"""Traffic shaping of a migration's stream: what may wait unsent in its sockets, and how fast they send. Pure.

What the source's kernel still holds when the guest is stopped drains inside the downtime. So little may wait there:
a few milliseconds of the path's speed. And QEMU sends what its ``max-bandwidth`` allows in a tenth of a second as one
burst, in which everybody else on the link waits: so the kernel paces the stream at its share. Where the sockets cannot
be reached, the stream is paced by ``max-bandwidth`` near its end, until the queue is short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from migrator.core.link_speeds import MOST_OF_PATH_RATIO
from migrator.core.model import Sample

#: Bytes that may wait unsent at the least: with less a stream on a fast link would run dry between two wake-ups.
LEAST_UNSENT_BYTES = 128 << 10
#: Seconds of the path's speed that may wait unsent: near the end, and before, where a QEMU that is woken late on a busy
#: host would let a paced stream run dry.
_UNSENT_SECONDS, _UNSENT_BEFORE_SECONDS = 0.004, 0.012
#: QEMU's own limit beside pacing: so much above it, so that it holds where pacing does not, and nowhere else.
LIMIT_ABOVE_PACING = 1.05
#: What a stream has sent before its sockets were found stands in the queue of its path, and hardly drains beside a
#: share that fills the link: so it has this part of its share at first, for so many seconds.
FIRST_RATIO, FIRST_SECONDS = 0.8, 0.1
#: A stream is near its end when it needs no longer than this, seconds.
_NEAR_SECONDS = 0.7
#: Near the end: the pace while the queue is long, and that which keeps it short.
_DRAINING_RATIO, _KEEPING_RATIO = 0.6, 0.85
#: A queue that takes no longer than this to arrive is short, seconds; nor is one of fewer bytes long.
_SHORT_SECONDS = 0.02
#: OpenSSH's client keeps so much of what goes through it: the window of a channel. A stream that is a little slower
#: than the network leaves nothing there; it is not worth that where all of it has left after so many seconds.
_TUNNEL_WINDOW_BYTES, _TUNNEL_RATIO, _TUNNEL_SHORT_SECONDS = 2 << 20, 0.95, 0.03
#: Pacing the end may take so long in all, seconds, or this share of the whole time: a small working set that is
#: written faster than the pace would be copied for ever.
_PACED_SECONDS, _PACED_RATIO = 2.0, 0.1


def unsent_limit(bytes_per_second: float, *, near: bool = True) -> int:
    """Return the bytes that may wait unsent in a socket of a stream of that speed: a power of two.

    :param near: the end of the stream may be near.
    """
    seconds = _UNSENT_SECONDS if near else _UNSENT_BEFORE_SECONDS
    wanted = max(LEAST_UNSENT_BYTES, bytes_per_second * seconds)
    return int(2 ** math.ceil(math.log2(wanted)))


def pacing(*, share: float | None, path: float | None) -> int:
    """Return the rate at which a stream shall send, bytes per second; 0 where nothing is known.

    :param share: the share that it was given; ``None``: none.
    :param path: what the path between both hosts was learned to carry; ``None``: not measured.
    """
    known = [rate for rate in (share, path and path * MOST_OF_PATH_RATIO) if rate]
    return int(min(known)) if known else 0


def pacing_of_each(rate: int, sockets: int) -> int:
    """Return the rate of each socket, where the stream has so many; 0 stays 0.

    One carries the stream, with a second for requested pages; of more, the first carries next to nothing.
    """
    return max(1, rate // (sockets - 1)) if rate and sockets > 2 else rate


def is_narrow(bytes_per_second: float) -> bool:
    """Tell whether what the path itself holds takes so long to arrive that the end of a stream is to be paced."""
    return 0 < bytes_per_second * _SHORT_SECONDS < 2 * LEAST_UNSENT_BYTES


@dataclass(frozen=True, kw_only=True)
class EndPace:
    """The pace of the end of a stream whose sockets cannot be reached, or whose path is narrow."""

    #: What shall be sent at the most, bytes per second; ``None``: whatever it may otherwise.
    limit: int | None = None
    #: What the path carried before anything was paced.
    path: float = 0.0
    #: Seconds that it was paced, and since when it is (of the migration); ``None`` while it is not.
    spent_seconds: float = 0.0
    since: float | None = None


def pace_end(pace: EndPace, sample: Sample) -> EndPace:
    """Return the pace after one more sample; one that does not know what is queued changes nothing."""
    if sample.queued_bytes is None or sample.bandwidth_bytes_per_second <= 0:
        return pace
    if pace.limit is None:
        pace = replace(pace, path=_averaged(pace.path, sample.bandwidth_bytes_per_second))
    spent = _spent(pace, sample)
    far = sample.remaining_bytes / pace.path > _NEAR_SECONDS
    if far or spent > max(_PACED_SECONDS, _PACED_RATIO * sample.at_seconds):
        return replace(pace, limit=None, spent_seconds=spent, since=None)
    short = max(2 * LEAST_UNSENT_BYTES, pace.path * _SHORT_SECONDS)
    ratio = _DRAINING_RATIO if sample.queued_bytes > short else _KEEPING_RATIO
    since = sample.at_seconds if pace.since is None else pace.since
    return replace(pace, limit=int(pace.path * ratio), since=since)


def pace_tunnel(pace: EndPace, sample: Sample, carried_bytes_per_second: float) -> EndPace:
    """Return the pace of a stream through a tunnel, which holds too much of one that is faster than its network.

    :param carried_bytes_per_second: what the network below it carries; 0: not known.
    """
    if carried_bytes_per_second <= 0 or sample.queued_bytes is None:
        return pace
    if _TUNNEL_WINDOW_BYTES / carried_bytes_per_second < _TUNNEL_SHORT_SECONDS:
        return replace(pace, limit=None)
    near = sample.remaining_bytes < _NEAR_SECONDS * carried_bytes_per_second
    short = max(2 * LEAST_UNSENT_BYTES, carried_bytes_per_second * _SHORT_SECONDS)
    ratio = _KEEPING_RATIO if near else _TUNNEL_RATIO
    if sample.queued_bytes > short:
        ratio = _DRAINING_RATIO
    return replace(pace, limit=int(carried_bytes_per_second * ratio))


def lift_end_pace(pace: EndPace, sample: Sample) -> EndPace:
    """Return a pace that limits nothing: the path that seemed narrow was slow for a moment only."""
    return replace(pace, limit=None, spent_seconds=_spent(pace, sample), since=None)


def _spent(pace: EndPace, sample: Sample) -> float:
    return pace.spent_seconds + (sample.at_seconds - pace.since if pace.since is not None else 0.0)


def _averaged(before: float, measured: float) -> float:
    return measured if before <= 0 else before + 0.3 * (measured - before)
