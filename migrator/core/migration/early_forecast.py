"""Forecast before the first round has ended: what the guest did in earlier migrations is all that is known. Pure."""

from __future__ import annotations

from dataclasses import replace

from migrator.core.migration.convergence_rungs import left_seconds, next_step, rung_above
from migrator.core.migration.convergence_state import WATCHING, Abilities, ConvergenceState, usable_limit
from migrator.core.migration.forecast import Forecast, Verdict, outlook
from migrator.core.migration.prior import with_prior
from migrator.core.migration.time_left import TimeLeft, time_left
from migrator.core.model import Sample
from migrator.core.policy import Policy


def forecast_unseen(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities
) -> Forecast:
    """Return the forecast before anything was seen of the guest's writing: what it did before is all that is known."""
    ahead = time_left_by_experience(state, sample, policy, abilities)
    return Forecast(verdict=Verdict.UNKNOWN, waiting_for=WATCHING, **ahead.figures())


def time_left_by_experience(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities
) -> TimeLeft:
    """Return what is to be expected before the first round has ended, as the guest did before; nothing is decided."""
    state = replace(state, model=with_prior(state.model))
    ceiling, left = usable_limit(policy, state.model.overhead_seconds), left_seconds(policy, sample)
    # What it did before may be above its true rate as well as below: there is nothing to add for doubt.
    middle = outlook(state.model, limit_seconds=ceiling, throttle_ratio=state.throttling.ratio)
    enough = middle.ends and middle.seconds <= left
    rung = "" if enough else rung_above(state, policy, abilities, ceiling, left)
    step = next_step(state, sample, policy, abilities, rung, left, enough=enough)
    aim = state.switch.ending.limit_seconds if state.switch.ending is not None else ceiling
    return time_left(state.model, limit_seconds=aim, throttle_ratio=state.throttling.ratio, step=step)
