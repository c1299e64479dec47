"""Downsampling of a migration's figures: enough for a curve, bounded however long the migration takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from migrator.core.model import Sample, State

#: Never more of one migration; whenever some are dropped, between a quarter of it and all of it are left.
MOST = 400
#: Between two samples at the beginning; doubled whenever there are too many.
FIRST_SECONDS = 0.2
#: What is different is worth a shorter pause: so many times shorter.
_NEW_STATE, _NEW_ROUND = 16, 4


@dataclass(frozen=True, kw_only=True)
class Point:
    """A sample, and what QEMU does not tell with it."""

    #: ``at_seconds`` is on the axis of decisions: since the first command that changed anything.
    sample: Sample
    state: State
    #: The downtime limit that QEMU had; ``None`` where nothing was asked of it any more.
    limit_seconds: float | None = None


class Series:
    """Points of one migration in the order of their times, downsampled evenly over all of it.

    :param points: what was kept so far.
    :ivar dropped: those that were kept and are not any more; whoever wants to know empties it.
    """

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._points: list[Point] = []
        self._pause = FIRST_SECONDS
        self.dropped: list[Point] = []
        for point in points:
            self.add(point)

    @property
    def points(self) -> list[Point]:
        """The points that are kept, in order; the first and the last that were worth it are always among them."""
        return list(self._points)

    def add(self, point: Point) -> bool:
        """Keep the point if it tells enough, and return whether it was kept; one older than the last never is."""
        if self._points and not _worth(self._points[-1], point, self._pause):
            return False
        self._points.append(point)
        while len(self._points) > MOST:
            self._pause *= 2
            kept = _downsampled(self._points, self._pause)
            still = {id(each) for each in kept}
            self.dropped += [each for each in self._points if id(each) not in still]
            self._points = kept
        return True


def _downsampled(points: list[Point], pause: float) -> list[Point]:
    kept = points[:1]
    for point in points[1:]:
        if _worth(kept[-1], point, pause):
            kept.append(point)
    if kept[-1] is not points[-1]:
        kept.append(points[-1])
    return kept


def _worth(last: Point, point: Point, pause: float) -> bool:
    # In microseconds, as they are stored: two never have the same time.
    gap = round((point.sample.at_seconds - last.sample.at_seconds) * 1e6)
    if point.state is not last.state:
        pause /= _NEW_STATE
    elif _set(point) != _set(last):
        pause /= _NEW_ROUND
    return gap > 0 and gap >= round(pause * 1e6)


def _set(point: Point) -> tuple[object, ...]:
    """Return the values that change in steps."""
    return point.sample.round, point.sample.throttle_ratio, point.limit_seconds
