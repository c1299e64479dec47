"""Forecast from the rounds seen so far: time left, downtime, and whether precopy will end at all. Pure.

A round of precopy sends what was dirty at its start while the guest dirties anew. Let the stream carry `B` bytes a
second and the guest dirty ``D(t) = min(rate × t, working set)`` distinct bytes in `t` seconds, the least function that
grows with the write rate and saturates; it is fitted to the rounds, and to a dirty-rate probe, which counts as a round
of its own. QEMU looks at what is dirty again as soon as no more than ``B × downtime limit`` is left, and switches if
that still holds after the look (migration_iteration_run); it checks between turns of sending of 50 ms at most. So a
round that begins with `P` bytes ends after ``(P - B × limit) / B`` and half a turn, and the next begins with what was
left over and ``D`` of that time. The forecast follows these rounds; its quantiles follow them with write rate and
bandwidth off by the spread of what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from migrator.core.model import Sample

#: The part of downtime that is not memory over the network, until it was learned: device state, the look at the
#: destination, the hand-over. Idle guests show 10 to 50 ms of it on one machine.
DEFAULT_OVERHEAD_SECONDS = 0.04
#: Rounds further back than this say little about what the guest does now.
_ROUNDS_KEPT = 24
#: A recursion that has not ended after so many rounds is one that does not end.
_ROUNDS_AHEAD = 200
#: Two rounds that leave more than this share have gained nothing.
_NO_GAIN_RATIO = 0.95
#: QEMU looks whether little enough is left at most this often (MAX_WAIT in its migration/ram.c).
_TURN_SECONDS = 0.05
#: QEMU samples 512 pages a GiB: of a 512 MiB guest that dirties half of them, one standard deviation is 6 % of it.
_PROBE_TRUST_RATIO = 0.85
#: A working set is taken to be larger than it showed by this factor at the most.
_LARGEST_GROWTH = 1.15
#: Least relative spread assumed of write rate and bandwidth: what two rounds of a steady guest differ by.
_LEAST_SPREAD = 0.08


@dataclass(frozen=True, kw_only=True)
class Round:
    """One finished pass over dirty memory, or a probe of the same meaning."""

    #: When it ended, seconds since the migration began.
    at_seconds: float
    duration_seconds: float
    #: Distinct bytes that the guest dirtied meanwhile.
    dirtied_bytes: int
    throttle_ratio: float = 0.0
    #: Bytes that the next round began with: dirtied ones, and those left over; 0 for a probe.
    pending_bytes: int = 0

    @property
    def guest_seconds(self) -> float:
        """Seconds that the guest had to write: what throttling took is left out."""
        return max(1e-3, self.duration_seconds * (1 - self.throttle_ratio))

    @property
    def rate(self) -> float:
        """Distinct bytes a second of the guest's time; never above its true write rate."""
        return self.dirtied_bytes / self.guest_seconds


@dataclass(frozen=True, kw_only=True)
class Model:
    """Measurements of guest and stream that a forecast rests on; frozen, see :func:`observe`."""

    rounds: tuple[Round, ...] = ()
    #: The stream while it had work, bytes per second: moving average and relative spread.
    bandwidth_bytes_per_second: float = 0.0
    bandwidth_spread: float = 0.2
    #: The downtime limit that QEMU has now.
    limit_seconds: float = 0.0
    #: The part of downtime that is not memory over the network, seconds.
    overhead_seconds: float = DEFAULT_OVERHEAD_SECONDS
    last: Sample | None = None
    #: Where the present round began.
    round_began: Sample | None = None

    @property
    def known(self) -> bool:
        """True once there is anything to forecast from."""
        return bool(self.rounds) and self.bandwidth_bytes_per_second > 0

    def write_rate(self) -> float:
        """Return the bytes per second that the guest dirties now, unthrottled: the highest of its recent rounds."""
        return max((entry.rate for entry in self._recent()), default=0.0)

    def working_set_bytes(self) -> float:
        """Return the most that was dirty at once in the recent rounds: beyond it the write rate stops to matter."""
        return max((max(entry.pending_bytes, entry.dirtied_bytes) for entry in self._recent()), default=0)

    def spread(self) -> float:
        """Return the relative spread of the write rate over the recent rounds that were not saturated."""
        rates = [entry.rate for entry in self._recent()]
        if len(rates) < 2 or max(rates) <= 0:
            return 0.25
        return min(1.0, max(_LEAST_SPREAD, (max(rates) - min(rates)) / (2 * max(rates))))

    def stalled(self) -> bool:
        """Tell whether the last rounds gained nothing, so that each began with about what the ones before did.

        A guest that saturates its working set in less than a round always shows just the rate of the stream.
        """
        began_with = [entry.pending_bytes for entry in self.rounds if entry.pending_bytes][-3:]
        return len(began_with) == 3 and began_with[2] >= _NO_GAIN_RATIO * began_with[0]

    def _recent(self) -> tuple[Round, ...]:
        """The last rounds: at least two, and all of the last five seconds."""
        if not self.rounds:
            return ()
        since = self.rounds[-1].at_seconds - 5.0
        return tuple(
            entry
            for place, entry in enumerate(reversed(self.rounds))
            if place < 2 or entry.at_seconds > since
        )


def observe(model: Model, sample: Sample) -> Model:
    """Return the model after one more sample. A sample that goes back in time, or is absurd, changes nothing."""
    last = model.last
    if last is not None and (sample.at_seconds < last.at_seconds or sample.round < last.round):
        return model
    if not (math.isfinite(sample.bandwidth_bytes_per_second) and sample.remaining_bytes >= 0):
        return model
    model = replace(model, last=sample)
    if sample.bandwidth_bytes_per_second > 0 and (
        last is None or sample.transferred_bytes > last.transferred_bytes
    ):
        model = _with_bandwidth(model, sample)
    began = model.round_began
    if began is None or last is None:
        return replace(model, round_began=sample)
    if sample.round == last.round:
        return model
    # What is left now is what was dirtied during the last round and what was left over of it.
    took = max(1e-3, sample.at_seconds - began.at_seconds) / (sample.round - last.round)
    bandwidth = model.bandwidth_bytes_per_second
    left_over = min(last.remaining_bytes, bandwidth * max(0.0, model.limit_seconds - _TURN_SECONDS / 2))
    ended = Round(
        at_seconds=sample.at_seconds,
        duration_seconds=took,
        dirtied_bytes=max(0, round(sample.remaining_bytes - left_over)),
        throttle_ratio=min(0.99, last.throttle_ratio),
        pending_bytes=sample.remaining_bytes,
    )
    return replace(model, rounds=(*model.rounds, ended)[-_ROUNDS_KEPT:], round_began=sample)


def probe(model: Model, *, at_seconds: float, period_seconds: float, dirty_rate: float) -> Model:
    """Return the model after a probe that saw `dirty_rate` bytes of distinct pages dirtied a second.

    A probe looks at a sample of the pages, so it is believed only in part.

    :param period_seconds: for how long it looked.
    """
    measured = Round(
        at_seconds=at_seconds,
        duration_seconds=period_seconds,
        dirtied_bytes=round(dirty_rate * period_seconds * _PROBE_TRUST_RATIO),
    )
    return replace(model, rounds=(*model.rounds, measured)[-_ROUNDS_KEPT:])


def _with_bandwidth(model: Model, sample: Sample) -> Model:
    measured = sample.bandwidth_bytes_per_second
    before = model.bandwidth_bytes_per_second
    if before <= 0:
        return replace(model, bandwidth_bytes_per_second=measured)
    off = abs(measured - before) / before
    return replace(
        model,
        bandwidth_bytes_per_second=before + 0.3 * (measured - before),
        bandwidth_spread=model.bandwidth_spread + 0.1 * (min(1.0, off) - model.bandwidth_spread),
    )


class Verdict(StrEnum):
    """Verdict on whether precopy will end inside the policy."""

    #: Too early to say, or waiting for a quiet moment of the guest.
    UNKNOWN = "unknown"
    #: As it goes.
    CONVERGES = "converges"
    #: If a rung of the ladder is taken; :attr:`Forecast.rung` says which.
    CONVERGES_IF = "converges-if"
    #: Nothing that the policy allows will do, and no quiet moment came while it was waited for.
    CANNOT = "cannot"


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Outcome of the copy on one rung."""

    ends: bool
    #: Until the guest runs at the destination.
    seconds: float
    downtime_seconds: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted time left and downtime, and a verdict."""

    verdict: Verdict
    #: With ``converges-if``: the rung.
    rung: str = ""
    seconds_p10: float = 0.0
    seconds_p50: float = 0.0
    seconds_p90: float = 0.0
    downtime_seconds_p10: float = 0.0
    downtime_seconds_p50: float = 0.0
    downtime_seconds_p90: float = 0.0


def outlook(
    model: Model,
    *,
    limit_seconds: float,
    throttle_ratio: float = 0.0,
    rate_factor: float = 1.0,
    link_factor: float = 1.0,
) -> Outlook:
    """Follow the rounds from where the last sample was.

    :param limit_seconds: the downtime limit that QEMU has.
    :param throttle_ratio: share of CPU time taken from the guest from now on.
    :param rate_factor: how much more than measured the guest dirties.
    :param link_factor: how much more than measured the stream carries.
    """
    if not model.known or model.last is None:
        return Outlook(ends=False, seconds=math.inf, downtime_seconds=math.inf)
    bandwidth = model.bandwidth_bytes_per_second * link_factor
    rate = model.write_rate() * rate_factor * (1 - throttle_ratio)
    working_set = max(model.working_set_bytes() * min(_LARGEST_GROWTH, rate_factor), 1.0)
    threshold = bandwidth * limit_seconds
    seconds = 0.0
    pending: float = model.last.remaining_bytes
    since_look = (
        model.last.at_seconds - model.round_began.at_seconds if model.round_began is not None else 0.0
    )
    for _ in range(_ROUNDS_AHEAD):
        took = max(0.0, pending - threshold) / bandwidth + _TURN_SECONDS / 2
        left_over = max(0.0, pending - took * bandwidth)
        dirtied = min(rate * (took + since_look), working_set)
        following = min(left_over + dirtied, max(working_set, left_over))
        seconds += min(took, pending / bandwidth)
        since_look = 0.0
        if following <= threshold:
            downtime = (following + (model.last.queued_bytes or 0)) / bandwidth + model.overhead_seconds
            return Outlook(ends=True, seconds=seconds + downtime, downtime_seconds=downtime)
        if following >= pending * 0.998 and following >= working_set * 0.9:
            break
        pending = following
    return Outlook(
        ends=False, seconds=math.inf, downtime_seconds=working_set / bandwidth + model.overhead_seconds
    )


def spread_of(
    model: Model, *, limit_seconds: float, throttle_ratio: float = 0.0
) -> tuple[Outlook, Outlook, Outlook]:
    """Return the outlook at the 10th, 50th and 90th percentile of what was measured."""
    # 1.28 standard deviations lie between the median and either; the spreads are about one each.
    rate, link = 1.28 * model.spread(), 1.28 * min(0.5, model.bandwidth_spread / 2)
    low, middle, high = (
        outlook(
            model,
            limit_seconds=limit_seconds,
            throttle_ratio=throttle_ratio,
            rate_factor=max(0.05, 1 + sign * rate),
            link_factor=max(0.2, 1 - sign * link),
        )
        for sign in (-1, 0, 1)
    )
    return low, middle, high
