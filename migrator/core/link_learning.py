"""Speed of a link, learned from all streams that share it. Pure.

A stream tells what its path carries only in moments in which the path is what holds it back: not its own pace, QEMU's
limit, QEMU itself, or a slow reader. The kernel knows: it counts the time in which a connection had something on its
way (``busy``), and that in which the reader's window was full. Bytes acknowledged in such a window, of all streams on
the link summed, are what the link carries. Everything else is a lower bound, as in BBR, whose filter this is: the
highest of the last windows, which a window that was held back by anything else may only raise. So what we pace
ourselves to, and then measure, never lowers the estimate.

What is kept is the estimate of each ten seconds in which there was one, for the last few of them: its median is planned
with, and how far they differ is the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from migrator.core.link_speeds import LinkSpeed, StreamCounters

#: A window is no shorter than this, seconds: what the path's queues swallow at first would be seen as speed.
LEAST_WINDOW_SECONDS = 0.4
#: A stream that had something on its way for less of the window was not held back by the path.
_BUSY_RATIO = 0.95
#: ...nor one whose reader was full for more of it.
_READER_RATIO = 0.05
#: One that sends more than this share of its pace, or of QEMU's own limit, is held back by that.
_PACED_RATIO = 0.85
#: The estimate is the highest of the windows of so many seconds: a stream that is paced shows its path once in ten, for
#: one second, and one of those may fall together with its beginning or another's switch.
_FILTER_SECONDS = 25.0
#: So much more than the estimate is more than the noise of two windows.
_NOISE_RATIO = 0.02
#: Estimates that are kept, each so many seconds after the one before.
_KEPT, _KEEP_EVERY_SECONDS = 12, 10.0
#: How far an estimate may be off, at least; and so much more for each day that it is old, up to a bound.
_LEAST_SPREAD_RATIO, _SPREAD_A_DAY_RATIO, _MOST_SPREAD_RATIO = 0.03, 0.02, 0.4
_DAY_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """Bytes that a stream, or all streams of a link, carried over a short time, for each second of it."""

    bytes_per_second: float
    #: The path held it back, and nothing else did.
    limited: bool


def window(before: StreamCounters, now: StreamCounters, *, most: float) -> Window | None:
    """Return what a stream carried between two looks; ``None`` where that is too short, or another stream.

    :param most: bytes per second that its pace and QEMU's limit allowed meanwhile; 0: neither was set.
    """
    seconds, carried = now.at - before.at, now.acknowledged_bytes - before.acknowledged_bytes
    if seconds < LEAST_WINDOW_SECONDS or carried < 0:
        return None
    rate = carried / seconds
    limited = (
        (now.busy_seconds - before.busy_seconds) >= _BUSY_RATIO * seconds
        and (now.reader_seconds - before.reader_seconds) <= _READER_RATIO * seconds
        and (not most or rate < _PACED_RATIO * most)
    )
    return Window(bytes_per_second=rate, limited=limited)


@dataclass(frozen=True, kw_only=True)
class LinkLearning:
    """Knowledge of one link; a value, see :meth:`after`."""

    #: Windows in which it held streams back: when (seconds since the epoch) and how much, the last ones.
    recent: tuple[tuple[float, float], ...] = ()
    #: Estimates: when, and how much.
    kept: tuple[tuple[float, float], ...] = ()
    at_least: float = 0.0
    measured_at: float | None = None

    def after(self, seen: Window, *, at: float) -> LinkLearning:
        """Return it after one more window, of all streams of the link together.

        :param at: seconds since the epoch.
        """
        rate, now = seen.bytes_per_second, self.now(at)
        learned = replace(self, measured_at=at, at_least=max(self.at_least, rate))
        if not seen.limited:
            if now is None or rate <= now * (1 + _NOISE_RATIO):
                return learned
            # It carries more than was believed: what it did before says nothing any more.
            return replace(learned, recent=(), kept=())
        recent = (*((then, each) for then, each in self.recent if then > at - _FILTER_SECONDS), (at, rate))
        estimate, kept = max(each for _, each in recent), list(self.kept)
        if kept and at - kept[-1][0] < _KEEP_EVERY_SECONDS:
            kept[-1] = (kept[-1][0], estimate)
        else:
            kept.append((at, estimate))
        return replace(
            learned, recent=recent, kept=tuple(kept[-_KEPT:]), at_least=min(learned.at_least, estimate)
        )

    def now(self, at: float) -> float | None:
        """Return what it carries, bytes per second; ``None`` where it was never seen to hold anybody back."""
        fresh = [each for then, each in self.recent if then > at - _FILTER_SECONDS]
        if fresh:
            return max(fresh)
        return _median([each for _, each in self.kept]) if self.kept else None

    def speed(self, at: float) -> LinkSpeed:
        """Return what is planned with at that moment, seconds since the epoch."""
        carries = self.now(at)
        if not carries or self.measured_at is None:  # 0: a network that swallows everything has no speed
            return LinkSpeed(at_least=self.at_least, measured_at=self.measured_at)
        found = [each for _, each in self.kept]
        differ = _deviation(found) / carries if len(found) > 1 else 0.0
        age = max(0.0, at - self.measured_at) / _DAY_SECONDS
        spread = max(_LEAST_SPREAD_RATIO, differ) + _SPREAD_A_DAY_RATIO * age
        return LinkSpeed(
            bytes_per_second=carries,
            spread_ratio=min(_MOST_SPREAD_RATIO, spread),
            at_least=min(self.at_least, carries),
            measured_at=self.measured_at,
        )

    def fields(self) -> dict[str, Any]:
        """Return what is kept of it, as plain JSON."""
        return {
            "kept": [[round(at), round(rate)] for at, rate in self.kept],
            "at_least": round(self.at_least),
            "measured_at": self.measured_at,
        }

    @classmethod
    def from_fields(cls, saved: Mapping[str, Any]) -> LinkLearning:
        """Return the one that these are the :meth:`fields` of.

        :raise ValueError: they are not; likewise KeyError and TypeError.
        """
        measured = saved["measured_at"]
        return cls(
            kept=tuple((float(at), float(rate)) for at, rate in saved["kept"] if float(rate) > 0)[-_KEPT:],
            at_least=float(saved["at_least"]),
            measured_at=None if measured is None else float(measured),
        )


# ``statistics`` is slow to load.
def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((each - mean) ** 2 for each in values) / len(values))
