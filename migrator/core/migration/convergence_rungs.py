"""Rungs of the ladder of decisions while memory is copied: which will do, and when enough was seen. Pure."""

from __future__ import annotations

import math

from migrator.core.migration import throttling
from migrator.core.migration.convergence_state import Abilities, ActionKind, ConvergenceState, usable_limit
from migrator.core.migration.forecast import Model, outlook
from migrator.core.migration.time_left import NextStep, rises
from migrator.core.model import Sample
from migrator.core.policy import LastResort, Policy, PostcopyMode
from migrator.units import show_ratio, show_seconds

#: So long a guest is watched for a quiet moment before something is done to it that cannot be taken back, where the
#: policy leaves nothing but giving up or stopping it; or so many times what one whole copy takes, if that is more.
_QUIET_WAIT_SECONDS = 8.0
_QUIET_WAIT_COPIES = 2.7
#: So many bad verdicts, each after another round, before a guest is throttled or goes to postcopy, ...
ROUNDS_TO_BELIEVE = 2
#: ...but one is enough where the guest dirties this much faster than the stream carries.
_HOPELESS_FACTOR = 1.15
#: A verdict must stand even if the guest dirties this much faster than it showed.
_DOUBT_FACTOR = 1.05
#: Neither throttle nor postcopy are chosen on what was seen for less long: a stream beside others may begin slowly.
_LEAST_EVIDENCE_SECONDS = 2.5


def left_seconds(policy: Policy, sample: Sample) -> float:
    """Return the seconds until the policy's time limit."""
    limit = policy.max_duration_seconds
    return math.inf if limit is None else limit - sample.at_seconds


def ends(
    state: ConvergenceState,
    model: Model,
    ceiling: float,
    left: float,
    *,
    whatever_rounds_gained: bool = False,
) -> bool:
    """Tell whether the copy ends as it goes, inside the ceiling and the time.

    :param whatever_rounds_gained: go by the rates alone: rounds over a stream that carried less tell nothing.
    """
    ratio = state.throttling.ratio
    middle = outlook(model, limit_seconds=ceiling, throttle_ratio=ratio)
    # The rate that shows is never above the true one, so what ends only just does not end.
    likely = outlook(model, limit_seconds=ceiling, throttle_ratio=ratio, rate_factor=_DOUBT_FACTOR)
    gains = whatever_rounds_gained or not model.stalled(ceiling)
    return likely.ends and middle.ends and middle.seconds <= left and gains


def rung_above(
    state: ConvergenceState, policy: Policy, abilities: Abilities, ceiling: float, left: float
) -> str:
    """Return the lowest rung above the present one that will do; empty when none will."""
    if throttle_share(state, policy, abilities, ceiling, left) is not None:
        return ActionKind.THROTTLE
    if policy.postcopy is PostcopyMode.ALLOW and abilities.postcopy:
        return ActionKind.START_POSTCOPY
    if policy.last_resort is LastResort.PAUSE:
        return ActionKind.PAUSE
    return ""


def throttle_share(
    state: ConvergenceState, policy: Policy, abilities: Abilities, ceiling: float, left: float
) -> float | None:
    if not abilities.throttle:
        return None
    return throttling.share_that_ends(
        state.throttling,
        state.model,
        policy,
        ceiling_seconds=ceiling,
        left_seconds=left,
        other_rung=policy.postcopy is PostcopyMode.ALLOW and abilities.postcopy,
    )


def next_step(
    state: ConvergenceState,
    sample: Sample,
    policy: Policy,
    abilities: Abilities,
    rung: str,
    left: float,
    *,
    enough: bool,
) -> NextStep:
    """Return the rung that comes where the copy does not end as it goes, and when."""
    postcopy = policy.postcopy is PostcopyMode.ALLOW and abilities.postcopy
    model, ratio = state.model, state.throttling.ratio
    share: float | None = ratio
    if rung == ActionKind.THROTTLE:
        share = throttle_share(state, policy, abilities, usable_limit(policy, model.overhead_seconds), left)
    in_seconds = 0.0
    if not believed(state, sample, rung, left):
        bandwidth = model.bandwidth_bytes_per_second
        if rung in (ActionKind.THROTTLE, ActionKind.START_POSTCOPY):
            in_seconds = sample.remaining_bytes / bandwidth
        else:
            since = min(state.bad_since, sample.at_seconds)
            in_seconds = max(0.0, since + _quiet_wait(sample, model, rung, left) - sample.at_seconds)
    return NextStep(
        needed=not enough,
        rung=rung,
        in_seconds=in_seconds,
        throttle_ratio=share if share is not None else ratio,
        max_throttle_ratio=policy.max_throttle_ratio,
        unproven=_unproven(state, sample),
        ends_anyway=postcopy or policy.last_resort is LastResort.PAUSE,
    )


def _unproven(state: ConvergenceState, sample: Sample) -> bool:
    """Tell whether no whole round has shown yet what the CPU time that is taken now does."""
    taken = state.throttling.ratio
    return state.throttling.takes_effect(sample.at_seconds, sample.throttle_ratio) or (
        taken > 0 and state.model.rounds[-1].throttle_ratio < taken - 0.01
    )


def awaited_evidence(state: ConvergenceState, sample: Sample, step: NextStep, *, momentary: bool) -> str:
    """Return what has to be seen before a verdict would rest on more than a guess; empty where enough was seen."""
    if momentary:
        return "the stream to carry again what it carried a moment ago"
    if step.unproven:
        return f"a round in which {show_ratio(state.throttling.ratio)} of the guest's CPU time is taken"
    if not state.model.copied_once:
        return "the end of the first round: a probe says little of what the guest does in all of it"
    if not step.needed:
        return "another round: the guest has begun to write faster" if rises(state.model) else ""
    if step.rung:
        return ""
    if step.in_seconds > 0:
        return f"a quiet moment of the guest, for {show_seconds(step.in_seconds)} more at most"
    return "" if believed(state, sample, step.rung, math.inf) else "another round like the last one"


def believed(state: ConvergenceState, sample: Sample, rung: str, left: float) -> bool:
    """Tell whether the bad verdict has stood for long enough to act on."""
    model = state.model
    if state.bad_rounds == 0:
        return False
    hopeless = (
        model.write_rate() * (1 - state.throttling.ratio)
        > _HOPELESS_FACTOR * model.bandwidth_bytes_per_second
    )
    if rung in (ActionKind.THROTTLE, ActionKind.START_POSTCOPY):
        needed = 2.0 * max(0.0, sample.remaining_bytes / model.bandwidth_bytes_per_second)
        if math.isfinite(left) and left < needed:
            return True
        if not model.copied_once and (
            rung == ActionKind.START_POSTCOPY or sample.at_seconds < _LEAST_EVIDENCE_SECONDS
        ):
            return False  # a postcopy that begins after a full pass has less to fetch
        return hopeless or state.bad_rounds >= ROUNDS_TO_BELIEVE
    wait = _quiet_wait(sample, model, rung, left)
    return state.bad_rounds >= ROUNDS_TO_BELIEVE and sample.at_seconds - state.bad_since >= wait


def _quiet_wait(sample: Sample, model: Model, rung: str, left: float) -> float:
    """Return the seconds, from the first bad round on, for which a quiet moment of the guest is waited for."""
    wait = max(
        _QUIET_WAIT_SECONDS, _QUIET_WAIT_COPIES * sample.total_bytes / model.bandwidth_bytes_per_second
    )
    if math.isfinite(left) and rung == ActionKind.PAUSE:
        wait = min(wait, left - 2.0 * sample.remaining_bytes / model.bandwidth_bytes_per_second)
    return wait
