"""Forecasts with what is known of a guest from before, until its own rounds tell more. Pure.

Until the first round has ended:

- the write rate is the mean of what the guest did at this hour of the week before and of what a probe sees, each
  weighed by how much is known of it (precision weighting of logarithms): QEMU's probe looks at a few pages only, so of
  a guest that writes little it sees a handful dirtied. Before the probe it is the former alone;
- the working set is no smaller than it was: a probe of a second sees only what is written in a second;
- as much of the memory is zeros, which cost nothing.

All of it serves the forecast's interval alone: nothing is done to a guest for what it did another day. How long it kept
its habit counts in the interval for as long as it writes about as it did; see
:func:`~migrator.core.migration.time_left.habit`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from migrator.core.migration.forecast import PROBE_TRUST_RATIO, Model, Round

if TYPE_CHECKING:
    from migrator.core.guest_experience import GuestPrior

#: Memory that one page stands for that a probe looks at.
_PROBED_PAGE_STANDS_FOR_BYTES = 2 * 2**20
#: A probe that is off by no more standard deviations shows the same habit.
_MOST_DEVIATIONS = 2.0
#: Likewise rounds whose rates differ by less than this factor; what is below that share of the stream is no writing.
_SAME_FACTOR, _LEAST_RATE_RATIO = 1.6, 0.05


def with_prior(model: Model) -> Model:
    """Return the model to forecast with before the first round has ended; the same one where nothing else is known."""
    prior, last = model.prior, model.last
    if prior is None or model.copied_once or last is None:
        return model
    left = max(0.0, prior.first_pass_ratio * last.total_bytes - last.transferred_bytes)
    model = replace(
        model,
        last=replace(last, remaining_bytes=min(last.remaining_bytes, round(left))),
        least_working_set_bytes=prior.working_set_bytes,
    )
    rate, spread = prior.bytes_per_second, prior.rate_spread
    if model.rounds:
        if habit_before(model) is None:
            return model
        probe = model.rounds[-1]
        seen = _seen_pages(probe)
        own, others = seen + 1.0, 1 / spread**2
        seen_rate = max(1.0, probe.rate / PROBE_TRUST_RATIO)
        rate = math.exp((others * math.log(max(1.0, rate)) + own * math.log(seen_rate)) / (own + others))
        spread = 1 / math.sqrt(own + others)
    expected = Round(at_seconds=0.0, duration_seconds=1.0, dirtied_bytes=round(rate))
    return replace(model, rounds=(expected,), expected_rate_spread=spread)


def habit_before(model: Model) -> GuestPrior | None:
    """Return how the guest kept its habit before, as long as it writes about as it did then; else ``None``."""
    prior = model.prior
    if prior is None or not model.entries:
        return prior
    least, factor = max(1.0, _LEAST_RATE_RATIO * model.bandwidth_bytes_per_second), _SAME_FACTOR
    rate = model.measured_rate()
    if not model.copied_once:
        probe = model.rounds[-1]
        rate = probe.rate / PROBE_TRUST_RATIO
        deviation = math.sqrt(prior.rate_spread**2 + 1 / (_seen_pages(probe) + 1.0))
        factor = max(factor, math.exp(_MOST_DEVIATIONS * deviation))
    now, before = max(least, rate), max(least, prior.bytes_per_second)
    return prior if max(now, before) <= factor * min(now, before) else None


def _seen_pages(probe: Round) -> float:
    """Return how many of the pages that a probe looked at were dirty."""
    return probe.dirtied_bytes / PROBE_TRUST_RATIO / _PROBED_PAGE_STANDS_FOR_BYTES
