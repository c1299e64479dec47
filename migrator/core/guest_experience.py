"""Experience with a guest: how fast it writes at which hour, and how its last migration went. Pure.

Each measurement goes into the hour of the week in which it was taken, as a moving average whose weight grows to
:data:`_MOST_WEIGHT`, so that what is older counts less and less. An hour of the week is measured rarely: what is
expected of it leans on the same hour of all days by :data:`_DAY_WEIGHT` measurements (shrinkage towards their mean).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from migrator.units import show_seconds

_HOUR_SECONDS = 3600
_HOURS_A_WEEK = 168
#: The epoch began on a Thursday, at midnight UTC: hours are counted from there.
_MOST_WEIGHT = 8.0
_DAY_WEIGHT = 2.0
#: Rates below this, bytes per second, are no writing worth the name, and are alike.
_LEAST_RATE = 2**20
#: Spread of the write rate that is assumed before anything is known, and for how many measurements that counts.
_SPREAD_PRIOR, _SPREAD_PRIOR_WEIGHT = 0.3, 1.0
#: A working set that is not seen again shrinks by so much with each migration; what was seen of its habits likewise.
_FADES = 0.3
#: An hour that has at most this share of the write rate of the busiest is a quiet one.
_QUIET_RATIO = 0.25


@dataclass(frozen=True, kw_only=True)
class LastMove:
    """The last migration of a guest that brought it to another host."""

    #: Seconds since the epoch.
    at: float
    source: str
    destination: str
    seconds: float
    downtime_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class GuestPrior:
    """Expectation of a guest that a forecast begins with."""

    #: Distinct pages dirtied, and the standard deviation of the logarithm of that from one measurement to the next.
    bytes_per_second: float
    rate_spread: float
    working_set_bytes: float
    #: Of all its memory so much went over the stream in the first pass: pages of zeros cost nothing.
    first_pass_ratio: float = 1.0
    #: In earlier migrations it was watched for so long, and changed its habit so often; what is older counts less.
    watched_seconds: float = 0.0
    changes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GuestExperience:
    """Everything that is kept of one guest: at most 168 hours, and a few figures."""

    #: By hour of the week: bytes of distinct pages dirtied a second, and the weight of that.
    hours: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    working_set_bytes: float = 0.0
    last_move: LastMove | None = None
    #: Of all its memory so much went over the stream in the first pass of its last migration: zeros cost nothing.
    first_pass_ratio: float = 1.0
    #: While it was moved it was watched for so long, and changed its habit so often; what is older counts less.
    watched_seconds: float = 0.0
    changes: float = 0.0
    #: Variance of the logarithm of the write rate beside what was expected of that hour, and the weight of that.
    rate_variance: tuple[float, float] = (0.0, 0.0)
    #: When anything was learned last, seconds since the epoch.
    learned_at: float = 0.0

    def after_rate(self, bytes_per_second: float, *, at: float) -> GuestExperience:
        """Return the experience after one more measurement of the write rate.

        :param at: when, seconds since the epoch.
        """
        hour = _hour(at)
        rate, weight = self.hours.get(hour, (0.0, 0.0))
        weight = min(_MOST_WEIGHT, weight + 1.0)
        learned = (rate + (bytes_per_second - rate) / weight, weight)
        return replace(
            self,
            hours={**self.hours, hour: learned},
            rate_variance=self._variance_after(bytes_per_second, self.expected_rate(at)),
            learned_at=at,
        )

    def _variance_after(self, rate: float, expected: float | None) -> tuple[float, float]:
        variance, weight = self.rate_variance
        if expected is None:
            return self.rate_variance
        off = math.log(max(_LEAST_RATE, rate) / max(_LEAST_RATE, expected))
        weight = min(_MOST_WEIGHT, weight + 1.0)
        return variance + (off * off - variance) / weight, weight

    def after_move(
        self,
        move: LastMove,
        *,
        working_set_bytes: float,
        first_pass_ratio: float | None = None,
        watched_seconds: float = 0.0,
        changes: int = 0,
    ) -> GuestExperience:
        """Return the experience after a migration that arrived.

        :param first_pass_ratio: of its memory so much went over the stream in the first pass; ``None``: not seen.
        :param watched_seconds: for so long it was seen how fast the guest writes.
        :param changes: so often it changed its habit meanwhile.
        """
        faded = self.working_set_bytes + _FADES * (working_set_bytes - self.working_set_bytes)
        return replace(
            self,
            last_move=move,
            working_set_bytes=max(working_set_bytes, faded),
            first_pass_ratio=self.first_pass_ratio if first_pass_ratio is None else first_pass_ratio,
            watched_seconds=(1 - _FADES) * self.watched_seconds + watched_seconds,
            changes=(1 - _FADES) * self.changes + changes,
            learned_at=move.at,
        )

    def prior(self, at: float) -> GuestPrior | None:
        """Return what a forecast begins with then; ``None`` where the guest was never moved, or nothing tells of that
        hour.
        """
        rate = self.expected_rate(at)
        if rate is None or not self.watched_seconds:
            return None
        variance, weight = self.rate_variance
        weighed = variance * weight + _SPREAD_PRIOR**2 * _SPREAD_PRIOR_WEIGHT
        return GuestPrior(
            bytes_per_second=rate,
            rate_spread=math.sqrt(weighed / (weight + _SPREAD_PRIOR_WEIGHT)),
            working_set_bytes=self.working_set_bytes,
            first_pass_ratio=self.first_pass_ratio,
            watched_seconds=self.watched_seconds,
            changes=self.changes,
        )

    def expected_rate(self, at: float) -> float | None:
        """Return the write rate to be expected then, bytes per second; ``None`` where nothing tells of that hour."""
        hour = _hour(at)
        of_day = [self.hours[each] for each in range(hour % 24, _HOURS_A_WEEK, 24) if each in self.hours]
        weight = sum(each[1] for each in of_day)
        if weight <= 0:
            return None
        day = sum(each[0] * each[1] for each in of_day) / weight
        rate, own = self.hours.get(hour, (0.0, 0.0))
        return (rate * own + day * _DAY_WEIGHT) / (own + _DAY_WEIGHT)

    def hours_of_day(self) -> dict[int, tuple[float, float]]:
        """Return by hour of the day (UTC) the mean write rate of all days, and the weight of that."""
        found: dict[int, tuple[float, float]] = {}
        for hour, (rate, weight) in sorted(self.hours.items()):
            mean, before = found.get(hour % 24, (0.0, 0.0))
            if (both := before + weight) > 0:
                found[hour % 24] = ((mean * before + rate * weight) / both, both)
        return dict(sorted(found.items()))

    def quietest_hour(self, since: float, until: float) -> tuple[float, float] | None:
        """Return when the hour begins in which the guest writes least, and its expected rate; the first of equals.

        :param since: no earlier than this: where it is that very hour, this is when it begins.
        :param until: it has to begin before this.
        """
        best: tuple[float, float] | None = None
        at = since
        while at < until and at < since + _HOURS_A_WEEK * _HOUR_SECONDS:
            rate = self.expected_rate(at)
            if rate is not None and (best is None or rate < best[1]):
                best = (at, rate)
            at = (math.floor(at / _HOUR_SECONDS) + 1) * _HOUR_SECONDS
        return best

    def quiet_hours(self) -> tuple[int, int] | None:
        """Return the longest row of quiet hours of the day (UTC), as first hour and the one after the last.

        ``None`` where too little is known, or where the guest has no hours that are much quieter than others.
        """
        rates = [self.expected_rate(hour * _HOUR_SECONDS) for hour in range(24)]
        known = [rate for rate in rates if rate is not None]
        if len(known) < 2:
            return None
        most = max(known)
        quiet = [rate is not None and rate <= _QUIET_RATIO * most for rate in rates]
        best: tuple[int, int] | None = None
        for first in range(24):
            length = 0
            while length < 24 and quiet[(first + length) % 24]:
                length += 1
            if length and not quiet[(first - 1) % 24] and (best is None or length > best[1]):
                best = (first, length)
        return None if best is None else (best[0], (best[0] + best[1]) % 24)

    def note(self, now: float) -> str:
        """Return for people when the guest was moved last and when it writes least; empty where neither is known."""
        known = []
        if (move := self.last_move) is not None:
            known.append(f"last moved {_ago(now - move.at)} in {show_seconds(move.seconds)}")
        if (quiet := self.quiet_hours()) is not None:
            known.append(f"writes least {quiet[0]:02}:00-{quiet[1]:02}:00 UTC")
        return "; ".join(known)

    def fields(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        move = self.last_move
        return {
            "hours": {str(hour): [round(rate), weight] for hour, (rate, weight) in self.hours.items()},
            "working_set_bytes": round(self.working_set_bytes),
            "first_pass_ratio": round(self.first_pass_ratio, 3),
            "watched_seconds": round(self.watched_seconds, 1),
            "changes": round(self.changes, 2),
            "rate_variance": list(self.rate_variance),
            "last_move": None if move is None else dict(vars(move)),
            "learned_at": self.learned_at,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> GuestExperience:
        """Return what :meth:`fields` gave.

        :raise ValueError: it is something else; likewise KeyError, TypeError and AttributeError.
        """
        move = fields["last_move"]
        variance, weight = fields.get("rate_variance", (0.0, 0.0))
        return cls(
            hours={
                int(hour) % _HOURS_A_WEEK: (float(rate), float(weight))
                for hour, (rate, weight) in fields["hours"].items()
            },
            working_set_bytes=float(fields["working_set_bytes"]),
            # Older documents do not have these.
            first_pass_ratio=float(fields.get("first_pass_ratio", 1.0)),
            watched_seconds=float(fields.get("watched_seconds", 0.0)),
            changes=float(fields.get("changes", 0.0)),
            rate_variance=(float(variance), float(weight)),
            last_move=None if move is None else LastMove(**move),
            learned_at=float(fields["learned_at"]),
        )


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if (count := math.floor(seconds / unit)) >= 1:
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def _hour(at: float) -> int:
    return math.floor(at / _HOUR_SECONDS) % _HOURS_A_WEEK
