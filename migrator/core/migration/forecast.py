"""Forecast from the rounds seen so far: time left, downtime, and whether precopy will end at all. Pure.

A round of precopy sends what was dirty at its start while the guest dirties anew. Let the stream carry `B` bytes a
second and the guest dirty ``D(t) = min(rate × t, working set)`` distinct bytes in `t` seconds, the least function that
grows with the write rate and saturates; it is fitted to the rounds, and to a dirty-rate probe, which counts as a round
of its own. QEMU looks at what is dirty again as soon as no more than ``B × downtime limit`` is left, and switches if
that still holds after the look (migration_iteration_run); it checks between turns of sending of 50 ms at most. So a
round that begins with `P` bytes ends after ``(P - B × limit) / B`` and half a turn, and the next begins with what was
left over and ``D`` of that time. The forecast follows these rounds; :mod:`~migrator.core.migration.time_left` says how
little is known of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from migrator.core.model import Sample

if TYPE_CHECKING:
    from migrator.core.guest_experience import GuestPrior

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
PROBE_TRUST_RATIO = 0.85
#: A working set is taken to be larger than it showed by this factor at the most.
_LARGEST_GROWTH = 1.15
#: A sync of the dirty bitmap takes about so long for a small guest: what a round lasts at the least, ...
_SYNC_SECONDS = 0.002
#: ...and how long it takes for this one is seen in rounds that are no longer than this.
_SYNC_SEEN_SECONDS = 0.5
#: Rounds shorter than this are taken together: what one of them shows is a tick of the guest's clock, or none.
_SHORTEST_ROUND_SECONDS = 0.1
#: QEMU measures the bandwidth in windows of a tenth of a second; one in which there was nothing to send tells nothing.
_WINDOW_SECONDS = 0.1
#: A round that began with less than this share of what a window carries left the stream without work.
_ENOUGH_RATIO = 0.5
#: Before that the buffers on the way swallow what is sent, and more seems to be carried than is.
_SETTLED_SECONDS = 1.0
#: A bandwidth that is lower than it was so many seconds ago may be so for a moment.
_MOMENT_SECONDS = 10.0


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
    #: Passes that it is made of: very short ones are taken together.
    passes: int = 1

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
    #: Rounds and probes so far, those taken together counted once.
    entries: int = 0
    #: What the first pass over all memory took; ``None`` until it is over, and where somebody else watched it.
    first_pass_seconds: float | None = None
    #: What had gone over the stream by then, or until now while it is not over; 0 where somebody else watched it.
    first_pass_bytes: int = 0
    #: The most that any round began with after the first.
    most_dirty_bytes: int = 0
    #: When the bandwidth was last taken in, and the highest of the last seconds, latest last.
    bandwidth_at: float = -math.inf
    peaks: tuple[tuple[float, float], ...] = ()
    #: What is known of the guest from before; see :mod:`~migrator.core.migration.prior`.
    prior: GuestPrior | None = None
    least_working_set_bytes: float = 0.0
    expected_rate_spread: float = 0.0

    @property
    def known(self) -> bool:
        """True once there is anything to forecast from."""
        return bool(self.rounds) and self.bandwidth_bytes_per_second > 0

    @property
    def copied_once(self) -> bool:
        """True once the first round has ended; before that there are probes at the most."""
        return any(entry.pending_bytes for entry in self.rounds)

    def write_rate(self) -> float:
        """Return the bytes per second that the guest dirties now, unthrottled: the highest of its recent rounds."""
        return max((entry.rate for entry in self._recent), default=0.0)

    def latest_rate(self) -> float:
        """Return the bytes per second that the guest dirtied in the last round, unthrottled: what it does now."""
        return self.rounds[-1].rate if self.rounds else 0.0

    def measured_rate(self) -> float:
        """Return the bytes per second that the guest dirtied in the longest round, unthrottled: that tells most."""
        longest = max(self.rounds, key=lambda entry: entry.duration_seconds, default=None)
        return longest.rate if longest is not None else 0.0

    def working_set_bytes(self) -> float:
        """Return the most that was dirty at once in the recent rounds: beyond it the write rate stops to matter."""
        seen = max((entry.pending_bytes or entry.dirtied_bytes for entry in self._recent), default=0)
        return max(self.least_working_set_bytes, seen)

    @property
    def first_pass_ratio(self) -> float | None:
        """Return the share of all memory that went over the stream in the first pass; ``None`` where nobody saw it."""
        total = self.last.total_bytes if self.last is not None else 0
        return min(1.0, self.first_pass_bytes / total) if total and self.first_pass_bytes else None

    @property
    def queued_seconds(self) -> float:
        """Return how long what the socket holds takes to arrive; it is part of the downtime."""
        queued = self.last.queued_bytes if self.last is not None else None
        return (
            queued / self.bandwidth_bytes_per_second
            if queued and self.bandwidth_bytes_per_second > 0
            else 0.0
        )

    @property
    def disk_backlog_seconds(self) -> float:
        """Return how long it takes to send what mirrors of the guest's disks lag behind; it is part of the downtime."""
        backlog = self.last.disk_backlog_bytes if self.last is not None else 0
        return backlog / self.bandwidth_bytes_per_second if self.bandwidth_bytes_per_second > 0 else 0.0

    @property
    def before_memory_seconds(self) -> float:
        """Return how long the guest stands still before the first of its last pages is sent."""
        return self.queued_seconds + self.disk_backlog_seconds

    @cached_property
    def sync_seconds(self) -> float:
        """Return how long a pass takes besides sending: a look at the dirty bitmap, which for a large guest is long."""
        seen = []
        for before, entry in pairwise(self.rounds[-6:]):
            sent = before.pending_bytes if entry.passes == 1 else entry.dirtied_bytes / entry.passes
            took = entry.duration_seconds / entry.passes
            if entry.pending_bytes and sent and took <= _SYNC_SEEN_SECONDS:
                seen.append(took - sent / self.bandwidth_bytes_per_second)
        return max(_SYNC_SECONDS, min(seen, default=0.0))

    def at_its_best(self) -> Model:
        """Return the same model with the highest bandwidth of the last seconds: what is low now may be so for a moment,
        or because others share the link.
        """
        best = max((peak for _, peak in self.peaks), default=0.0)
        if self.last is not None:
            best = max(best, self.last.attainable_bytes_per_second)
        if best <= self.bandwidth_bytes_per_second:
            return self
        return replace(self, bandwidth_bytes_per_second=best)

    def stalled(self, fitting_seconds: float = 0.0) -> bool:
        """Tell whether the last rounds gained nothing, so that each began with about what the ones before did.

        A guest that saturates its working set in less than a round always shows just the rate of the stream.

        :param fitting_seconds: what is sent within so long is no stall, it is the end.
        """
        began_with = [entry.pending_bytes for entry in self.rounds if entry.pending_bytes][-3:]
        if len(began_with) < 3 or began_with[2] <= fitting_seconds * self.bandwidth_bytes_per_second:
            return False
        return began_with[2] >= _NO_GAIN_RATIO * began_with[0]

    @cached_property
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
        return replace(model, first_pass_bytes=sample.transferred_bytes) if sample.round == 1 else model
    count = sample.round - last.round
    bandwidth = model.bandwidth_bytes_per_second
    # The look came when little enough of the round before was left, some time between these two samples.
    left_over = min(last.remaining_bytes, bandwidth * max(0.0, model.limit_seconds - _TURN_SECONDS / 2))
    looked_at = sample.at_seconds
    if bandwidth > 0 and count == 1:
        looked_at = min(looked_at, last.at_seconds + (last.remaining_bytes - left_over) / bandwidth)
    took = max(1e-3, looked_at - began.at_seconds) / count
    # What is left now is what was dirtied during the last round and what was left over of it, less what was sent since.
    sent = sample.transferred_bytes - last.transferred_bytes
    sent_since = min(max(0, sent), bandwidth * (sample.at_seconds - looked_at))
    dirtied = max(
        sample.remaining_bytes + sent_since - left_over,
        (sample.remaining_bytes - last.remaining_bytes + sent) / count,
    )
    ended = Round(
        at_seconds=sample.at_seconds,
        duration_seconds=took,
        dirtied_bytes=max(0, round(dirtied)),
        throttle_ratio=min(0.99, last.throttle_ratio),
        pending_bytes=round(sample.remaining_bytes + sent_since),
    )
    first = took if last.round == 1 else model.first_pass_seconds
    if last.round == 1:
        model = replace(model, first_pass_bytes=round(sample.transferred_bytes - sent_since))
    model = replace(model, first_pass_seconds=first, round_began=replace(sample, at_seconds=looked_at))
    model = replace(model, most_dirty_bytes=max(model.most_dirty_bytes, ended.pending_bytes))
    return _with_round(model, ended, count)


def _with_round(model: Model, ended: Round, count: int) -> Model:
    """Add a round, or take it together with the one before where both are too short to tell anything."""
    before = model.rounds[-1] if model.rounds else None
    whole = ended.duration_seconds * count
    if (
        before is not None
        and before.pending_bytes
        and before.duration_seconds + whole <= _SHORTEST_ROUND_SECONDS
        and ended.at_seconds - before.at_seconds <= _SHORTEST_ROUND_SECONDS
    ):
        together = replace(
            ended,
            duration_seconds=before.duration_seconds + whole,
            passes=before.passes + count,
            dirtied_bytes=before.dirtied_bytes + ended.dirtied_bytes * count,
        )
        return replace(model, rounds=(*model.rounds[:-1], together))
    return replace(model, rounds=(*model.rounds, ended)[-_ROUNDS_KEPT:], entries=model.entries + 1)


def probe(model: Model, *, at_seconds: float, period_seconds: float, dirty_rate: float) -> Model:
    """Return the model after a probe that saw `dirty_rate` bytes of distinct pages dirtied a second.

    A probe looks at a sample of the pages, so it is believed only in part.

    :param period_seconds: for how long it looked.
    """
    measured = Round(
        at_seconds=at_seconds,
        duration_seconds=period_seconds,
        dirtied_bytes=round(dirty_rate * period_seconds * PROBE_TRUST_RATIO),
    )
    return replace(model, rounds=(*model.rounds, measured)[-_ROUNDS_KEPT:], entries=model.entries + 1)


def _with_bandwidth(model: Model, sample: Sample) -> Model:
    measured = sample.bandwidth_bytes_per_second
    before = model.bandwidth_bytes_per_second
    if sample.at_seconds - model.bandwidth_at < 0.9 * _WINDOW_SECONDS:
        return model  # QEMU shows the same window again
    model = replace(model, bandwidth_at=sample.at_seconds)
    began = model.round_began
    dry = (
        began is not None
        and sample.at_seconds - began.at_seconds < _WINDOW_SECONDS
        and began.remaining_bytes < _ENOUGH_RATIO * before * _WINDOW_SECONDS
    )
    if dry and measured < before:
        return model  # the queue ran dry within the window: that is the guest's rate, not the stream's
    if before <= 0:
        return _with_peak(replace(model, bandwidth_bytes_per_second=measured))
    off = abs(measured - before) / before
    return _with_peak(
        replace(
            model,
            bandwidth_bytes_per_second=before + 0.3 * (measured - before),
            bandwidth_spread=model.bandwidth_spread + 0.1 * (min(1.0, off) - model.bandwidth_spread),
        )
    )


def _with_peak(model: Model) -> Model:
    now, bandwidth = model.bandwidth_at, model.bandwidth_bytes_per_second
    if now < _SETTLED_SECONDS:
        return model
    kept = [(at, peak) for at, peak in model.peaks if at > now - _MOMENT_SECONDS and peak > bandwidth]
    return replace(model, peaks=(*kept, (now, bandwidth)))


class Verdict(StrEnum):
    """Verdict on whether precopy will end inside the policy."""

    #: Too early to say, or waiting for a quiet moment of the guest; :attr:`Forecast.waiting_for` says what for.
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
    #: It ends as it goes if the guest goes on as it did, however short it was watched.
    as_it_goes: bool = False
    #: With ``unknown``: what would tell more, in a few words.
    waiting_for: str = ""
    seconds_p10: float = 0.0
    seconds_p50: float = 0.0
    seconds_p90: float = 0.0
    downtime_seconds_p10: float = 0.0
    downtime_seconds_p50: float = 0.0
    downtime_seconds_p90: float = 0.0

    def after(self, seconds: float) -> Forecast:
        """Return the same forecast so many seconds later."""
        return replace(
            self,
            seconds_p10=max(0.0, self.seconds_p10 - seconds),
            seconds_p50=max(0.0, self.seconds_p50 - seconds),
            seconds_p90=max(0.0, self.seconds_p90 - seconds),
        )


def outlook(
    model: Model,
    *,
    limit_seconds: float,
    throttle_ratio: float = 0.0,
    rate_factor: float = 1.0,
    link_factor: float = 1.0,
    write_rate: float | None = None,
) -> Outlook:
    """Follow the rounds from where the last sample was.

    :param limit_seconds: the downtime limit that QEMU has.
    :param throttle_ratio: share of CPU time taken from the guest from now on.
    :param rate_factor: how much more than measured the guest dirties.
    :param link_factor: how much more than measured the stream carries.
    :param write_rate: bytes per second, unthrottled, that the guest is taken to dirty; by default the highest of late.
    """
    if not model.known or model.last is None:
        return Outlook(ends=False, seconds=math.inf, downtime_seconds=math.inf)
    bandwidth = model.bandwidth_bytes_per_second * link_factor
    rate = (model.write_rate() if write_rate is None else write_rate) * rate_factor * (1 - throttle_ratio)
    working_set = max(model.working_set_bytes() * min(_LARGEST_GROWTH, rate_factor), 1.0)
    threshold, sync = bandwidth * limit_seconds, model.sync_seconds
    seconds = 0.0
    pending: float = model.last.remaining_bytes
    since_look = (
        model.last.at_seconds - model.round_began.at_seconds if model.round_began is not None else 0.0
    )
    # What is left of the first pass says nothing of what a round begins with.
    gained_before = not model.copied_once
    for _ in range(_ROUNDS_AHEAD):
        # Comparisons, and neither min() nor max(): every look at every guest comes through here, many rounds each.
        whole = pending / bandwidth
        took = _TURN_SECONDS / 2 + ((pending - threshold) / bandwidth if pending > threshold else 0.0)
        if took > whole + sync:  # a turn ends where nothing is queued any more
            took = whole + sync
        sent = took * bandwidth
        left_over = pending - sent if pending > sent else 0.0
        dirtied = rate * (took + since_look)
        if dirtied > working_set:
            dirtied = working_set
        following = left_over + dirtied
        if following > working_set and following > left_over:
            following = working_set
            if left_over > following:
                following = left_over
        if took > whole:
            took = whole
        seconds += took
        since_look = 0.0
        if following <= threshold:
            downtime = following / bandwidth + model.overhead_seconds + model.before_memory_seconds
            return Outlook(ends=True, seconds=seconds + downtime, downtime_seconds=downtime)
        if not gained_before and following >= pending * 0.998 and following >= working_set * 0.9:
            break
        pending, gained_before = following, False
    return Outlook(
        ends=False, seconds=math.inf, downtime_seconds=working_set / bandwidth + model.overhead_seconds
    )
