"""Decisions while memory is copied: the least disturbing action that the forecast says will work. Pure.

:func:`decide` takes the state it left behind and one more sample, and gives a new state, a forecast, and the actions
that are due, each with its reason. It is called only while the source copies; after the switch there is nothing left
to decide. The ladder, cheapest for the guest first:

1. wait, while the forecast says that it ends, or that the guest will be quiet in time;
2. give QEMU its real downtime limit at the best moment: :mod:`~migrator.core.migration.switch_timing`;
3. take CPU time from the guest, up to the policy's ceiling, and give it back when it is not needed any more;
4. go to postcopy;
5. stop the guest until its memory has arrived;
6. give up, leaving the guest as it was.

A rung is skipped when the forecast says that it will not do, or not in the time left.
"""

from __future__ import annotations

import math
from dataclasses import replace

from migrator.core.migration import forecast, throttling
from migrator.core.migration.convergence_rungs import (
    ROUNDS_TO_BELIEVE,
    awaited_evidence,
    believed,
    ends,
    left_seconds,
    next_step,
    rung_above,
    throttle_share,
)
from migrator.core.migration.convergence_state import (
    Abilities,
    Action,
    ActionKind,
    ConvergenceState,
    usable_limit,
)
from migrator.core.migration.early_forecast import forecast_unseen, time_left_by_experience
from migrator.core.migration.forecast import Forecast, Model, Verdict
from migrator.core.migration.halted_stream import HALT_SECONDS
from migrator.core.migration.prior import with_prior
from migrator.core.migration.switch_timing import plan_switch
from migrator.core.migration.time_left import just_changed, time_left
from migrator.core.model import Sample
from migrator.core.policy import LastResort, Policy, PostcopyMode
from migrator.units import show_bytes, show_rate, show_ratio, show_seconds

#: Where the policy sets no time limit, one that has not ended after so many times its first round, and at least so many
#: seconds, will not.
_ROUNDS_WORTH = 30.0
_LEAST_BUDGET_SECONDS = HALT_SECONDS
#: It surely ends within the time limit where it would even if it took this much longer.
_SURE_FACTOR = 1.15
#: A bandwidth that was higher by this factor within the last seconds may be low for a moment only.
_MOMENTARY_FACTOR = 1.15
#: A moment lasts no longer than so many rounds of the working set, or so many seconds, if that is more.
_MOMENT_ROUNDS, _MOMENT_SECONDS = 2.0, 3.0
#: A verdict on the same round stands for so long, ...
_STANDS_SECONDS = 0.09
#: ...and a good one for so long while the switch is far.
_STANDS_FAR_SECONDS = 0.5
#: CPU time is not given back where the guest moves within so long anyway.
_NOT_WORTH_RELAXING_SECONDS = 2.0

#: How the reason ends of a migration that is given up, and its error.
GIVING_UP = "giving up"


def decide(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities
) -> tuple[ConvergenceState, Forecast, tuple[Action, ...]]:
    """Decide on one more sample, with :attr:`Sample.at_seconds` since the migration began.

    :return: the new state, the forecast as of now, and what to do, in this order.
    """
    state = replace(state, model=forecast.observe(state.model, sample), stream=state.stream.after(sample))
    if state.settled or policy.offline:
        return state, Forecast(verdict=Verdict.UNKNOWN), ()
    if policy.postcopy is PostcopyMode.IMMEDIATE and abilities.postcopy:
        action = Action(act=ActionKind.START_POSTCOPY, reason="the policy asks for postcopy at once")
        return replace(state, settled=True), Forecast(verdict=Verdict.CONVERGES), (action,)
    state, limit = _time_switch(state, sample, policy)
    if state.model.known and not _stands(state, sample):
        state, seen, actions = _judge(state, sample, policy, abilities)
        # One that something was done on does not stand.
        judged_at = -math.inf if limit or actions else sample.at_seconds
        state = replace(state, judged=seen, judged_at_seconds=judged_at)
    elif not state.model.known and with_prior(state.model).known and not _stands(state, sample):
        seen, actions = forecast_unseen(state, sample, policy, abilities), []
        state = replace(state, judged=seen, judged_at_seconds=sample.at_seconds)
    else:
        seen, actions = state.judged.after(sample.at_seconds - state.judged_at_seconds), []
    if not state.settled:
        state, seen, late = _too_late(state, sample, policy, abilities, seen)
        actions += late
    return state, seen, (*limit, *actions)


def _stands(state: ConvergenceState, sample: Sample) -> bool:
    """Tell whether the last verdict stands: it was given a moment ago, and no round has ended since."""
    far = state.switch.far_seconds > 0 and state.judged.verdict is Verdict.CONVERGES
    return state.model.entries == state.judged_entries and sample.at_seconds - state.judged_at_seconds < (
        _STANDS_FAR_SECONDS if far else _STANDS_SECONDS
    )


def after_probe(
    state: ConvergenceState, *, at_seconds: float, period_seconds: float, dirty_rate: float
) -> ConvergenceState:
    """Return the state after a dirty-rate probe, which the next :func:`decide` at `at_seconds` takes into account.

    :param dirty_rate: bytes of distinct pages dirtied a second over `period_seconds`.
    """
    model = forecast.probe(
        state.model, at_seconds=at_seconds, period_seconds=period_seconds, dirty_rate=dirty_rate
    )
    return replace(state, model=model)


def _judge(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities
) -> tuple[ConvergenceState, Forecast, list[Action]]:
    left = left_seconds(policy, sample)
    ceiling = usable_limit(policy, state.model.overhead_seconds)
    enough = ends(state, state.model, ceiling, left)
    best = state.model.at_its_best()
    may_be_momentary = (
        not enough
        and best.bandwidth_bytes_per_second > _MOMENTARY_FACTOR * state.model.bandwidth_bytes_per_second
        and ends(state, best, ceiling, left, whatever_rounds_gained=True)
    )
    state = replace(state, moment_since=_moment_since(state, sample, enough=enough, begins=may_be_momentary))
    momentary = may_be_momentary and not _is_over(state, sample, best)
    new_round = (
        state.model.entries != state.judged_entries and state.model.rounds[-1].at_seconds == sample.at_seconds
    )
    if new_round:
        waits = momentary or state.throttling.takes_effect(sample.at_seconds, sample.throttle_ratio)
        bad = 0 if enough or waits else state.bad_rounds + 1
        since = math.inf if enough or momentary else min(state.bad_since, sample.at_seconds)
        state = replace(
            state,
            bad_rounds=bad,
            bad_since=since,
            judged_entries=state.model.entries,
            habit_changes=state.habit_changes + just_changed(state.model),
        )
    aim = state.switch.ending.limit_seconds if state.switch.ending is not None else ceiling
    rung = "" if enough or momentary else rung_above(state, policy, abilities, ceiling, left)
    step = next_step(state, sample, policy, abilities, rung, left, enough=enough or momentary)
    ahead = time_left(state.model, limit_seconds=aim, throttle_ratio=state.throttling.ratio, step=step)
    if state.model.prior is not None and not state.model.copied_once:
        ahead = time_left_by_experience(state, sample, policy, abilities)
    waiting_for = awaited_evidence(state, sample, step, momentary=momentary)
    if enough and not waiting_for and ahead.seconds[1] * _SURE_FACTOR > left:
        waiting_for = f"whether it ends within the {show_seconds(max(0.0, left))} that are left"
    if waiting_for and (enough or not rung):
        verdict = Verdict.UNKNOWN
    elif enough:
        verdict = Verdict.CONVERGES
    else:
        verdict = Verdict.CONVERGES_IF if rung else Verdict.CANNOT
    seen = Forecast(
        verdict=verdict,
        rung=rung,
        as_it_goes=enough,
        waiting_for=waiting_for if verdict is Verdict.UNKNOWN else "",
        **ahead.figures(),
    )
    if state.first_forecast_seconds is None and state.model.copied_once and math.isfinite(seen.seconds_p50):
        state = replace(state, first_forecast_seconds=sample.at_seconds + seen.seconds_p50)
    actions: list[Action] = []
    if (
        momentary
        and not state.crowded
        and sample.attainable_bytes_per_second >= best.bandwidth_bytes_per_second
    ):
        state = replace(state, crowded=True)
        reason = (
            f"{_why(state)}; it would end with the {show_rate(sample.attainable_bytes_per_second)} that its path could "
            "give it: others on that path are held back"
        )
        actions.append(Action(act=ActionKind.CROWDED, reason=reason))
    if enough:
        state, relaxed = _relax(state, ceiling, left) if new_round else (state, [])
        actions += relaxed
        if not seen.seconds_p90 <= left and not state.at_risk:
            state = replace(state, at_risk=True)
            reason = f"{_why(state)}: it may take longer than the {show_seconds(max(0.0, left))} left"
            actions.append(Action(act=ActionKind.AT_RISK, reason=reason))
    elif believed(state, sample, rung, left):
        state, climbed = _climb(state, sample, policy, abilities, rung, left)
        actions += climbed
    elif not rung and state.bad_rounds >= ROUNDS_TO_BELIEVE and not state.at_risk:
        # Whoever writes without a pause, and who does so for some seconds, look the same so far.
        state = replace(state, at_risk=True)
        reason = (
            f"{_why(state)}: it will not end while the guest goes on like that; waiting for a quiet moment"
        )
        actions.append(Action(act=ActionKind.AT_RISK, reason=reason))
    return state, seen, actions


def _moment_since(state: ConvergenceState, sample: Sample, *, enough: bool, begins: bool) -> float:
    """Return since when the bandwidth may be low for a moment only; a better one for a while begins no new moment."""
    if enough:
        return math.inf
    return min(state.moment_since, sample.at_seconds if begins else math.inf)


def _is_over(state: ConvergenceState, sample: Sample, best: Model) -> bool:
    """Tell whether the bandwidth has been low for longer than a moment.

    A guest that rewrites all of its working set in each round shows no more than the bandwidth, so a little more always
    seems to be enough; and where streams share a path each has more of it whenever another has just ended. Where those
    others can be held back the bandwidth is waited for as long as that takes.
    """
    if sample.attainable_bytes_per_second >= best.bandwidth_bytes_per_second:
        return False
    model = state.model
    lasts = max(
        _MOMENT_SECONDS, _MOMENT_ROUNDS * model.working_set_bytes() / model.bandwidth_bytes_per_second
    )
    return sample.at_seconds - state.moment_since > lasts


def _time_switch(
    state: ConvergenceState, sample: Sample, policy: Policy
) -> tuple[ConvergenceState, list[Action]]:
    """Give QEMU its real downtime limit when the best moment is near."""
    overhead = state.model.overhead_seconds
    ceiling = usable_limit(policy, overhead)
    plan, change = plan_switch(
        state.switch,
        state.model,
        sample,
        policy,
        limit_ceiling_seconds=ceiling,
        downtime_ceiling_seconds=max(policy.max_downtime_seconds, ceiling + overhead),
        throttle_ratio=state.throttling.ratio,
        left_seconds=left_seconds(policy, sample),
    )
    state = replace(state, switch=plan)
    if change is None:
        return state, []
    reason = f"{_why(state)}: {change.reason}" if state.model.known else change.reason
    state = replace(state, model=replace(state.model, limit_seconds=change.limit_seconds))
    return state, [Action(act=ActionKind.LIMIT, reason=reason, value=change.limit_seconds)]


def _relax(state: ConvergenceState, ceiling: float, left: float) -> tuple[ConvergenceState, list[Action]]:
    """Give CPU time back when the copy would end without taking it."""
    ending = state.switch.ending
    if ending is not None and ending.stop_in_seconds < _NOT_WORTH_RELAXING_SECONDS:
        return state, []
    found = throttling.relax(state.throttling, state.model, ceiling_seconds=ceiling, left_seconds=left)
    if found is None:
        return state, []
    given_back, evidence = found
    reason = f"{_why(state)}: it ends without throttling{evidence}"
    return replace(state, throttling=given_back), [Action(act=ActionKind.THROTTLE, reason=reason, value=0.0)]


def _climb(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities, rung: str, left: float
) -> tuple[ConvergenceState, list[Action]]:
    ceiling = usable_limit(policy, state.model.overhead_seconds)
    why = _why(state)
    if rung == ActionKind.THROTTLE:
        share = throttle_share(state, policy, abilities, ceiling, left)
        if share is None:
            return state, []
        taken, evidence = throttling.take(
            state.throttling, state.model, share=share, at_seconds=sample.at_seconds
        )
        reason = f"{why}: taking {show_ratio(share)} of the guest's CPU time lets it end{evidence}"
        state = replace(state, throttling=taken, bad_rounds=0, bad_since=math.inf)
        return state, [Action(act=ActionKind.THROTTLE, reason=reason, value=share)]
    if rung == ActionKind.START_POSTCOPY:
        reason = f"{why}: switching to postcopy"
        return replace(state, settled=True), [Action(act=ActionKind.START_POSTCOPY, reason=reason)]
    if rung == ActionKind.PAUSE:
        reason = f"{why}: stopping the guest until its memory has arrived"
        return replace(state, settled=True), [Action(act=ActionKind.PAUSE, reason=reason)]
    waited = show_seconds(max(0.0, sample.at_seconds - state.bad_since))
    why += f"; nothing that the policy allows would let it end, and no quiet moment came in {waited}"
    return replace(state, settled=True), [Action(act=ActionKind.GIVE_UP, reason=f"{why}: {GIVING_UP}")]


def _too_late(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities, seen: Forecast
) -> tuple[ConvergenceState, Forecast, tuple[Action, ...]]:
    """Take the last rung at once: the time is over, the policy's or any reasonable one.

    A stream that has come to a halt is given up: nothing that the guest is to wait for would ever arrive.
    """
    if state.stream.halted:
        waited = show_seconds(state.stream.seconds_without_progress)
        carried = show_rate(state.stream.carried_bytes_per_second)
        reason = f"next to nothing has come through for {waited}, over a stream that carried {carried}: {GIVING_UP}"
        return replace(state, settled=True), seen, (Action(act=ActionKind.GIVE_UP, reason=reason),)
    limit, passed = policy.max_duration_seconds, sample.at_seconds
    if limit is not None:
        what = f"the policy's max_duration of {show_seconds(limit)}"
    else:
        limit, passed = _budget(state, sample), state.stream.working_seconds
        what = f"{_ROUNDS_WORTH:.0f} times what one whole copy takes"
    if passed < limit:
        return state, seen, ()
    why = f"{show_seconds(sample.at_seconds)} are over, {what}"
    if policy.postcopy is PostcopyMode.ALLOW and abilities.postcopy:
        action = Action(act=ActionKind.START_POSTCOPY, reason=f"{why}: switching to postcopy")
    elif policy.last_resort is LastResort.PAUSE:
        action = Action(
            act=ActionKind.PAUSE, reason=f"{why}: stopping the guest until its memory has arrived"
        )
    else:
        action = Action(act=ActionKind.GIVE_UP, reason=f"{why}: {GIVING_UP}")
    return replace(state, settled=True), seen, (action,)


def _budget(state: ConvergenceState, sample: Sample) -> float:
    """Return the seconds of work that the copy may take where the policy does not say."""
    first = state.model.first_pass_seconds
    if first is None:
        carried = state.stream.carried_bytes_per_second
        if carried <= 0:
            return math.inf
        first = sample.total_bytes / carried
    return max(_LEAST_BUDGET_SECONDS, _ROUNDS_WORTH * first)


def _why(state: ConvergenceState) -> str:
    """Give the numbers in words that a person can check."""
    model = state.model
    ended = model.rounds[-1]
    took = show_seconds(ended.duration_seconds)
    if ended.pending_bytes and model.last is not None:
        what = f"round {max(1, model.last.round - 1)} left {show_bytes(ended.pending_bytes)} after {took}"
    else:
        what = f"a probe saw {show_bytes(ended.dirtied_bytes)} dirtied in {took}"
    return (
        f"{what}, the guest rewrites up to {show_bytes(model.working_set_bytes())} at "
        f"{show_rate(model.write_rate())}, the stream carries {show_rate(model.bandwidth_bytes_per_second)}"
    )
