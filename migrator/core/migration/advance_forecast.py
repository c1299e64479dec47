"""Forecast made before anything is begun: can a guest move inside its policy, and how long will it stand still? Pure.

The forecast asks the very function that will decide, with a dirty-rate probe and the link's capacity as its first
sample, so that what is told is what will be done as long as the guest goes on like that.
"""

from __future__ import annotations

from dataclasses import dataclass

from migrator.core.migration import convergence, convergence_state
from migrator.core.migration.convergence_state import Abilities, ActionKind
from migrator.core.migration.downtime_floor import may_exceed, smallest_ceiling
from migrator.core.migration.forecast import DEFAULT_OVERHEAD_SECONDS, Verdict, outlook
from migrator.core.model import Sample
from migrator.core.policy import Policy, PostcopyMode


@dataclass(frozen=True, kw_only=True)
class AdvanceForecast:
    """Verdict on a precopy that has not begun."""

    verdict: Verdict
    #: Seconds that the guest will stand still; ``None``: it does not get so far, or too little is known.
    downtime_seconds: float | None = None


def forecast_in_advance(
    policy: Policy,
    *,
    left_bytes: float,
    bytes_per_second: float,
    dirty_rate_bytes_per_second: float | None,
    probe_seconds: float,
) -> AdvanceForecast:
    """Forecast verdict and downtime of a precopy that begins now.

    :param left_bytes: what the first copy sends.
    :param bytes_per_second: what the stream will carry.
    :param dirty_rate_bytes_per_second: of distinct pages, as a probe of `probe_seconds` saw it; ``None``: not measured.
    """
    if left_bytes <= 0 or bytes_per_second <= 0:
        return AdvanceForecast(verdict=Verdict.UNKNOWN)
    if policy.offline:
        # It stands still until all has arrived.
        downtime = left_bytes / bytes_per_second + DEFAULT_OVERHEAD_SECONDS
        return AdvanceForecast(verdict=Verdict.CONVERGES, downtime_seconds=downtime)
    least = smallest_ceiling(policy, bytes_per_second)
    if least is not None:
        verdict = Verdict.CONVERGES_IF if may_exceed(policy) else Verdict.CANNOT
        return AdvanceForecast(verdict=verdict, downtime_seconds=least)
    if policy.postcopy is PostcopyMode.IMMEDIATE:
        return AdvanceForecast(verdict=Verdict.CONVERGES, downtime_seconds=DEFAULT_OVERHEAD_SECONDS)
    if dirty_rate_bytes_per_second is None:
        return AdvanceForecast(verdict=Verdict.UNKNOWN)
    state = convergence.after_probe(
        convergence_state.begin(policy),
        at_seconds=0.0,
        period_seconds=probe_seconds,
        dirty_rate=dirty_rate_bytes_per_second,
    )
    left = round(left_bytes)
    sample = Sample(
        round=1,
        total_bytes=left,
        remaining_bytes=left,
        transferred_bytes=1,
        bandwidth_bytes_per_second=bytes_per_second,
    )
    # What both ends support preflight says, and the controller takes into account.
    state, forecast, _ = convergence.decide(state, sample, policy, Abilities(postcopy=True, throttle=True))
    if forecast.as_it_goes:
        likely = outlook(state.model, limit_seconds=state.model.limit_seconds)
        return AdvanceForecast(verdict=Verdict.CONVERGES, downtime_seconds=likely.downtime_seconds)
    if not forecast.rung:
        return AdvanceForecast(verdict=Verdict.CANNOT)
    downtime = {
        ActionKind.START_POSTCOPY: DEFAULT_OVERHEAD_SECONDS,
        ActionKind.PAUSE: forecast.downtime_seconds_p50,
    }.get(ActionKind(forecast.rung), policy.max_downtime_seconds)
    return AdvanceForecast(verdict=Verdict.CONVERGES_IF, downtime_seconds=downtime)
