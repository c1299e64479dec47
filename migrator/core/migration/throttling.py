"""CPU time that is taken from a guest so that it dirties less, and given back: how much, and when not. Pure.

Only a guest whose writing is what keeps it from ending is throttled. The direction is changed once at most; a further
change takes new evidence, a guest that writes much more (or less) than when it was changed last, and the reason names
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from migrator.core.migration.forecast import Model, outlook
from migrator.core.policy import Policy
from migrator.units import show_rate

#: Throttling goes in steps of this much.
_STEP_RATIO = 0.1
#: A guest that writes less than this share of what the stream carries is not what keeps the copy from ending.
_WRITES_RATIO = 0.1
#: A guest that writes no more than this is idle: what it writes it writes by its clock, however much CPU time it has.
_IDLE_BYTES_PER_SECOND = 2 * 2**20
#: The write rate has to differ by this factor from the one at the last change of direction to count as new evidence.
_EVIDENCE_FACTOR = 1.25
#: CPU time is given back at most so often; after that what was taken stays.
_RELAXED_AT_MOST = 2
#: A guest that rewrites its whole working set in less than a round shows only the rate of the stream; it is then taken
#: to write this much faster than it shows.
_SATURATED_FACTOR = 2.0
#: QEMU throttles at the second look that finds much dirtied, looks being a second apart at least; a share that it has
#: not taken after so long is judged as if it had.
_LAG_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """Share of CPU time that QEMU was told to take, and how that came about."""

    ratio: float = 0.0
    #: Since when, seconds since the migration began.
    at_seconds: float = -math.inf
    relaxed_times: int = 0
    #: The guest's write rate, unthrottled, when the direction was changed last (or taken first).
    write_rate: float = 0.0

    @property
    def relaxed(self) -> bool:
        """Return whether the last change gave CPU time back."""
        return self.relaxed_times > 0 and self.ratio <= 0

    def takes_effect(self, at_seconds: float, seen_ratio: float) -> bool:
        """Tell whether QEMU is still to take what it was told to: a round of now says nothing of it."""
        return seen_ratio < self.ratio - 0.01 and at_seconds - self.at_seconds < _LAG_SECONDS


def share_that_ends(
    throttling: Throttling,
    model: Model,
    policy: Policy,
    *,
    ceiling_seconds: float,
    left_seconds: float,
    other_rung: bool,
) -> float | None:
    """Return the least share of CPU time, above what is taken now, with which the copy ends in time.

    :param ceiling_seconds: the highest downtime limit that QEMU may have.
    :param other_rung: a higher rung of the ladder is left: what only trying can tell is not tried.
    """
    stalled = model.stalled(ceiling_seconds)
    rate = model.write_rate()
    if rate < _IDLE_BYTES_PER_SECOND or (
        not stalled and rate < _WRITES_RATIO * model.bandwidth_bytes_per_second
    ):
        return None
    if throttling.relaxed and rate < _EVIDENCE_FACTOR * throttling.write_rate:
        return None
    # With 10 per cent in hand: a throttle that just suffices would have to stay for long.
    factor = _SATURATED_FACTOR if stalled else 1.1
    share = _STEP_RATIO * (1 + math.floor(throttling.ratio / _STEP_RATIO + 1e-9))
    while share <= policy.max_throttle_ratio + 1e-9:
        tried = outlook(model, limit_seconds=ceiling_seconds, throttle_ratio=share, rate_factor=factor)
        if tried.ends and tried.seconds <= left_seconds:
            return min(share, policy.max_throttle_ratio)
        share += _STEP_RATIO
    if stalled and throttling.ratio < policy.max_throttle_ratio:
        # What a guest that saturates its working set really writes, and how far throttling slows it, only trying tells.
        return None if other_rung else policy.max_throttle_ratio
    return None


def take(throttling: Throttling, model: Model, *, share: float, at_seconds: float) -> tuple[Throttling, str]:
    """Return the state once that share is taken, and what of the reason is new evidence; empty where none is needed."""
    rate = model.write_rate()
    evidence = _evidence(throttling, rate) if throttling.relaxed else ""
    first = throttling.ratio <= 0
    taken = replace(
        throttling,
        ratio=share,
        at_seconds=at_seconds,
        write_rate=rate if first else throttling.write_rate,
    )
    return taken, evidence


def relax(
    throttling: Throttling, model: Model, *, ceiling_seconds: float, left_seconds: float
) -> tuple[Throttling, str] | None:
    """Give the CPU time back where the copy would end without taking it; ``None`` where it would not, or not again."""
    if throttling.ratio <= 0 or throttling.relaxed_times >= _RELAXED_AT_MOST:
        return None
    rate = model.write_rate()
    again = throttling.relaxed_times > 0
    if again and rate * _EVIDENCE_FACTOR > throttling.write_rate:
        return None
    free = outlook(model, limit_seconds=ceiling_seconds, rate_factor=1.2)
    if not free.ends or free.seconds > left_seconds:
        return None
    given_back = replace(throttling, ratio=0.0, relaxed_times=throttling.relaxed_times + 1, write_rate=rate)
    return given_back, _evidence(throttling, rate) if again else ""


def _evidence(throttling: Throttling, rate: float) -> str:
    return f" (new: it writes {show_rate(rate)}, and {show_rate(throttling.write_rate)} at the last change)"
