"""Interval of a forecast: the time left and the downtime, and how little is known of them. Pure.

The time left is a mixture of what may come, and its 10th, 50th and 90th percentile are those of the mixture:

1. *The guest goes on like that.* The rounds are followed (:func:`~migrator.core.migration.forecast.outlook`) with the
   write rate and the bandwidth each off by one standard deviation to either side; deviations of independent causes add
   up as squares (propagation of uncertainty to the first order). The spread of the write rate is what each round
   differed from the one before, with :data:`_RATE_PRIOR_ROUNDS` rounds' worth of :data:`_RATE_PRIOR_SPREAD`, which is
   assumed before anything is known (the posterior mean of a variance under a scaled inverse-chi-squared prior). The
   bandwidth varies from window to window; over `t` seconds of windows of a tenth of a second that averages out with the
   square root of their number. What QEMU's own turns add at the end is :data:`_END_SPREAD_SECONDS`.
2. *It changes its habit.* Changes come as a Poisson process of unknown rate; with a gamma prior of shape `a` and rate
   `b` and `n` changes seen in `t` seconds, the chance that none comes within `x` seconds is ``((b + t) / (b + t +
   x))^(a + n)`` (the Lomax distribution, also known as Pareto II). So a guest that was watched for three seconds is not
   taken to go on for a minute, and one that was watched for an hour is. A change is for the better with a chance of
   :data:`_BETTER_RATIO`; for a guest that writes more than the stream carries there is hardly anything worse.
   What was seen in earlier migrations counts, as long as the guest writes about as it did then.
3. *Its policy lets something be done* where the copy does not end as it goes: throttling, postcopy, a pause, or giving
   up, which is an end that does not come.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from migrator.core.migration import prior
from migrator.core.migration.forecast import DEFAULT_OVERHEAD_SECONDS, Model, Outlook, Round, outlook

#: Standard deviations between the median and the 90th percentile.
_Z = 1.2815515655446008
#: The share of what may come that lies outside the interval at either side.
_TAIL = 0.1
#: An interval is not made wider than one that leaves out so little.
_LEAST_TAIL = 0.001
#: The spread that is assumed of the write rate from one round to the next, and for how many rounds that counts.
_RATE_PRIOR_SPREAD, _RATE_PRIOR_ROUNDS = 0.02, 2.0
#: A round says no more than this of the spread: what is more is a change of habit.
_MOST_DEVIATION = 0.7
#: Rates that differ by this factor are two habits; what is below the least share of the stream is none.
_CHANGE_FACTOR, _LEAST_RATE_RATIO = 1.6, 0.05
#: A rise of the write rate shows in rounds of at least so long: shorter ones show the ticks of a clock.
_TELLING_SECONDS = 0.5
#: Two rounds whose throttle differs by less were throttled alike.
_SAME_THROTTLE = 0.01
#: Gamma prior of the rate of changes: shape, and seconds.
_CHANGE_SHAPE, _CHANGE_SECONDS = 0.5, 1.0
#: A change is one for the better with this chance; and so where the guest writes more than the stream carries.
_BETTER_RATIO, _BETTER_THAN_WORST_RATIO = 0.5, 0.8
#: What QEMU's turns of sending, and its looks at its limit, add or take at the end, one standard deviation.
_END_SPREAD_SECONDS = 0.01
#: The part of downtime that is not memory, while it is guessed: idle guests show 10 to 50 ms.
_OVERHEAD_SPREAD_SECONDS = 0.02
#: Of the stream's bandwidth: of the moving average, as a share of the spread of its windows; and at least.
_AVERAGE_RATIO, _LEAST_LINK_SPREAD = 0.42, 0.01
#: The spread that is kept of the windows starts with an assumption, and falls slowly to what it really is.
_WINDOW_RATIO = 0.35
#: Before that the buffers on the way swallow what is sent, and more seems to be carried than is, by so much.
_SETTLED_SECONDS, _UNSETTLED_SPREAD = 1.0, 0.05
#: The least share of it that may really arrive.
_LEAST_SETTLED = 0.7
_WINDOW_SECONDS = 0.1
#: QEMU throttles at the second look that finds much dirtied.
_THROTTLE_LAG_ROUNDS = 2.0
#: A guest that saturates its working set may write faster than it shows: by so much, and by much more.
_SATURATED_FACTOR, _MUCH_SATURATED_FACTOR = 1.4, 3.0
#: A share of CPU time that does not do is followed by another, larger by so much or more.
_LATER_SHARES = 0.2
#: What a switch to postcopy, or a stop, takes besides.
_SWITCH_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """The rung that is taken where the copy does not end as it goes."""

    #: It ends as it goes, by all that was seen; the rest is for where it does not.
    needed: bool = True
    #: ``throttle``, ``start-postcopy``, ``pause``; empty: it is given up.
    rung: str = ""
    #: Until it is taken, if nothing changes.
    in_seconds: float = 0.0
    #: The share of CPU time that is taken then; of ``throttle``.
    throttle_ratio: float = 0.0
    #: The most that may be taken.
    max_throttle_ratio: float = 0.0
    #: What was taken last has yet to show what it does.
    unproven: bool = False
    #: The copy ends at last, by postcopy or a pause, whatever the guest does.
    ends_anyway: bool = False


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """The 10th, 50th and 90th percentile of the seconds until the end (infinite: none), and of the downtime."""

    seconds: tuple[float, float, float]
    downtime_seconds: tuple[float, float, float]

    def figures(self) -> dict[str, Any]:
        """Return them by the names that they have in a :class:`~migrator.core.migration.forecast.Forecast`."""
        marks = ("p10", "p50", "p90")
        seconds = {f"seconds_{mark}": value for mark, value in zip(marks, self.seconds, strict=True)}
        downtime = zip(marks, self.downtime_seconds, strict=True)
        return seconds | {f"downtime_seconds_{mark}": value for mark, value in downtime}


def rate_spread(model: Model) -> float:
    """Return the standard deviation of the logarithm of the write rate from one round to the next."""
    total, count = _RATE_PRIOR_ROUNDS * _RATE_PRIOR_SPREAD**2, _RATE_PRIOR_ROUNDS
    least = _LEAST_RATE_RATIO * model.bandwidth_bytes_per_second
    for before, entry in _pairs(model):
        if min(before.rate, entry.rate) <= least:
            continue
        deviation = max(-_MOST_DEVIATION, min(_MOST_DEVIATION, math.log(entry.rate / before.rate)))
        total, count = total + deviation**2, count + 1
    spread = math.sqrt(total / count)
    return max(spread, model.expected_rate_spread)


def changes(model: Model) -> int:
    """Return how often the guest was seen to change its habit."""
    return sum(_changed(model, before, entry) for before, entry in _pairs(model))


def just_changed(model: Model) -> bool:
    """Tell whether the guest changed its habit with the last round."""
    pair = next(reversed(list(_pairs(model))), None)
    return pair is not None and pair[1] is model.rounds[-1] and _changed(model, *pair)


def _changed(model: Model, before: Round, entry: Round) -> bool:
    least = max(1.0, _LEAST_RATE_RATIO * model.bandwidth_bytes_per_second)
    return max(least, before.rate, entry.rate) > _CHANGE_FACTOR * max(least, min(before.rate, entry.rate))


def rises(model: Model) -> bool:
    """Tell whether the guest was just seen to write much faster than before, so that it may do so even more."""
    last = next(reversed(list(_pairs(model))), None)
    if last is None or last[1] is not model.rounds[-1]:
        return False
    before, entry = last
    least = _LEAST_RATE_RATIO * model.bandwidth_bytes_per_second
    long_enough = min(before.duration_seconds, entry.duration_seconds) >= _TELLING_SECONDS
    return long_enough and entry.rate > _CHANGE_FACTOR * max(least, before.rate)


def _pairs(model: Model) -> Iterator[tuple[Round, Round]]:
    """Give each round with the one before it, where both were throttled alike: else they tell of the throttle."""
    return (
        (before, entry)
        for before, entry in pairwise(model.rounds)
        if abs(before.throttle_ratio - entry.throttle_ratio) < _SAME_THROTTLE
    )


@dataclass(frozen=True)
class _Habit:
    """How long the guest goes on as it is: a Lomax distribution."""

    shape: float
    scale_seconds: float

    def changes_within(self, seconds: float) -> float:
        """Return the chance that it changes within so long."""
        if math.isinf(seconds):
            return 1.0
        return 1.0 - math.pow(self.scale_seconds / (self.scale_seconds + seconds), self.shape)

    def quantile(self, chance: float) -> float:
        """Return the seconds within which it changes with that chance."""
        if chance >= 1.0:
            return math.inf
        return self.scale_seconds * (math.pow(1.0 - chance, -1.0 / self.shape) - 1.0)


def habit(model: Model) -> _Habit:
    """Return how long the guest may go on as it is, after what was seen of it, in earlier migrations too."""
    watched, changed = model.last.at_seconds if model.last is not None else 0.0, float(changes(model))
    if (before := prior.habit_before(model)) is not None:
        watched, changed = watched + before.watched_seconds, changed + before.changes
    return _Habit(_CHANGE_SHAPE + changed, _CHANGE_SECONDS + watched)


def time_left(model: Model, *, limit_seconds: float, throttle_ratio: float, step: NextStep) -> TimeLeft:
    """Return what is to be expected after the last sample.

    :param limit_seconds: the downtime limit that QEMU will be given.
    :param throttle_ratio: the share of CPU time that is taken now.
    """
    if not model.known or model.last is None:
        never = (math.inf, math.inf, math.inf)
        return TimeLeft(seconds=never, downtime_seconds=never)

    @functools.cache  # both the time and the downtime are asked for with each factor
    def follow(rate_factor: float = 1.0, link_factor: float = 1.0, ratio: float = throttle_ratio) -> Outlook:
        return outlook(
            model,
            limit_seconds=limit_seconds,
            throttle_ratio=ratio,
            rate_factor=rate_factor,
            link_factor=link_factor,
        )

    return _Mixture(model, follow, step).quantiles()


def _settled(model: Model) -> float:
    """Return the share of the measured bandwidth that arrives: at first the sockets take more than they give."""
    at = model.bandwidth_at
    if model.last is None or not 0 < at < _SETTLED_SECONDS:
        return 1.0
    swallowed = model.last.queued_bytes or 0
    return max(_LEAST_SETTLED, 1.0 - swallowed / (model.bandwidth_bytes_per_second * at))


def _deviations_for(tail: float) -> float:
    """Return how many standard deviations leave that share outside, at one side."""
    from statistics import NormalDist  # noqa: PLC0415 - slow, and not of a short move

    return NormalDist().inv_cdf(1 - max(_LEAST_TAIL, tail))


class _Mixture:
    """Mixture of the ways in which one migration may go on."""

    def __init__(self, model: Model, follow: Callable[..., Outlook], step: NextStep) -> None:
        self._model = model
        self._follow = follow
        self._step = step
        self._habit = habit(model)
        self._middle = follow()
        remaining = model.last.remaining_bytes if model.last is not None else 0
        bandwidth = model.bandwidth_bytes_per_second
        #: What is left of this round, and a round of the whole working set, in seconds of sending.
        self._rest = remaining / bandwidth
        self._round = model.working_set_bytes() / bandwidth
        self._rate_spread = rate_spread(model)

    def quantiles(self) -> TimeLeft:
        """Return the quantiles of the mixture."""
        ends = self._middle.ends and not self._step.needed and not self._step.unproven
        seconds = self._as_it_goes() if ends else self._otherwise()
        low, high = self._deviations(lambda found: found.downtime_seconds)
        middle = self._middle.downtime_seconds
        longer = 1.0 / _settled(self._model)
        return TimeLeft(
            seconds=(seconds[0], seconds[1] * longer, seconds[2] * longer),
            downtime_seconds=(
                max(0.0, middle - _Z * low),
                middle * longer,
                (middle + _Z * high) * longer,
            ),
        )

    @property
    def _soonest(self) -> float:
        """Return the least time left: the rest of this round has to be sent, whatever the guest does."""
        return self._rest + self._model.overhead_seconds / 2

    def _as_it_goes(self) -> tuple[float, float, float]:
        """Return the quantiles where the copy ends if the guest goes on like that."""
        middle = self._middle.seconds
        low, high = self._deviations(lambda found: found.seconds)
        changes = self._habit.changes_within(middle)
        worse, better = changes * (1 - _BETTER_RATIO), changes * _BETTER_RATIO
        # What a change brings lies outside of all else: the rest of the tail is left for the guest that goes on so.
        if worse >= _TAIL:
            late = max(middle + _Z * high, self._after_the_worst())
        else:
            late = middle + high * _deviations_for((_TAIL - worse) / (1 - worse))
        if better >= _TAIL:
            quiet_in = self._habit.quantile(_TAIL / _BETTER_RATIO)
            early = min(middle - _Z * low, quiet_in + min(self._round, self._rest))
        else:
            early = middle - low * _deviations_for((_TAIL - better) / (1 - better))
        return max(min(self._soonest, middle), early), middle, late

    def _after_the_worst(self) -> float:
        """Return the seconds left where the guest begins to write as much as it can."""
        if not self._step.ends_anyway:
            return math.inf
        total = self._model.last.total_bytes if self._model.last is not None else 0
        return self._middle.seconds + total / self._model.bandwidth_bytes_per_second

    def _otherwise(self) -> tuple[float, float, float]:
        """Return the quantiles where the copy does not end as it goes: a quiet guest may come first."""
        step = self._step
        acted = self._after_the_step()
        throttled = step.rung == "throttle" or step.unproven
        waited = acted[1] if throttled else step.in_seconds
        quiet_before = _BETTER_THAN_WORST_RATIO * self._habit.changes_within(waited)

        def at(chance: float, of_step: float) -> float:
            if chance >= quiet_before:
                return of_step
            quiet_in = self._habit.quantile(chance / _BETTER_THAN_WORST_RATIO)
            return min(of_step, quiet_in + self._round * chance)

        # What is done to the guest meanwhile is most likely what ends it.
        middle = acted[1] if throttled else at(0.5, acted[1])
        return max(min(self._soonest, acted[0]), at(_TAIL, acted[0])), middle, at(1 - _TAIL, acted[2])

    def _after_the_step(self) -> tuple[float, float, float]:
        """Return the quantiles of the end that the next rung brings."""
        step = self._step
        if step.rung == "start-postcopy" or step.rung == "pause":
            begins = step.in_seconds
            # What was dirtied since the last look has to be sent as well.
            rest = self._rest if begins <= 0 else max(self._rest - begins, self._round / 2)
            left = begins + rest + _SWITCH_SECONDS
            spread = _Z * max(self._link_spread(left) * left, _SWITCH_SECONDS)
            return (
                max(self._soonest, left - spread),
                left,
                left + spread + (self._round / 2 if begins > 0 else 0.0),
            )
        if step.rung == "throttle" or step.unproven:
            lag = _THROTTLE_LAG_ROUNDS * self._round + step.in_seconds
            first = self._follow(ratio=step.throttle_ratio)
            doubted = self._follow(_SATURATED_FACTOR, ratio=step.throttle_ratio)
            most = self._follow(_MUCH_SATURATED_FACTOR, ratio=step.max_throttle_ratio)
            # Where the share does not do, others follow, each judged after two rounds.
            more = math.ceil((step.max_throttle_ratio - step.throttle_ratio) / _LATER_SHARES - 1e-9)
            late = most.seconds + lag + more * _THROTTLE_LAG_ROUNDS * self._round
            if not doubted.ends:
                at_most = self._follow(_SATURATED_FACTOR, ratio=step.max_throttle_ratio)
                middle = at_most.seconds + lag + more * _THROTTLE_LAG_ROUNDS * self._round
            else:
                middle = doubted.seconds + lag
            middle = min(middle, late)
            early = min(first.seconds, middle)
            return early, middle, max(late, middle)
        return math.inf, math.inf, math.inf

    def _deviations(self, what: Callable[[Outlook], float]) -> tuple[float, float]:
        """Return how far one standard deviation of each cause moves it down and up."""
        middle = what(self._middle)
        rate, link = self._rate_spread, self._link_spread(self._middle.seconds)
        guessed = self._model.overhead_seconds == DEFAULT_OVERHEAD_SECONDS
        sides = []
        for sign in (-1.0, 1.0):
            causes = [
                abs(what(self._follow(math.exp(sign * rate))) - middle),
                abs(what(self._follow(link_factor=math.exp(-sign * link))) - middle),
                _END_SPREAD_SECONDS,
                _OVERHEAD_SPREAD_SECONDS if guessed else 0.0,
            ]
            sides.append(math.sqrt(sum(each * each for each in causes)))
        return sides[0], sides[1]

    def _link_spread(self, seconds: float) -> float:
        """Return the relative spread of the bandwidth on average over the next seconds."""
        model = self._model
        windows = max(1.0, seconds / _WINDOW_SECONDS) if math.isfinite(seconds) else math.inf
        spread = min(0.5, model.bandwidth_spread * _WINDOW_RATIO) * math.sqrt(_AVERAGE_RATIO**2 + 1 / windows)
        least = _UNSETTLED_SPREAD if model.bandwidth_at < _SETTLED_SECONDS else _LEAST_LINK_SPREAD
        return max(spread, least)
