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
from dataclasses import dataclass, field, replace
from enum import StrEnum

from migrator.core.guest_experience import GuestPrior
from migrator.core.migration import forecast, throttling
from migrator.core.migration.forecast import (
    DEFAULT_OVERHEAD_SECONDS,
    Forecast,
    Model,
    Verdict,
    outlook,
)
from migrator.core.migration.halted_stream import HALT_SECONDS, StreamHistory
from migrator.core.migration.prior import with_prior
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS, SwitchPlan, plan_switch
from migrator.core.migration.throttling import Throttling
from migrator.core.migration.time_left import NextStep, TimeLeft, just_changed, rises, time_left
from migrator.core.model import Sample
from migrator.core.policy import LastResort, Policy, PostcopyMode
from migrator.units import show_bytes, show_rate, show_ratio, show_seconds

#: Left of the ceiling for what the bandwidth may fall by during the switch.
_CEILING_MARGIN_RATIO = 0.1
#: So long a guest is watched for a quiet moment before something is done to it that cannot be taken back, where the
#: policy leaves nothing but giving up or stopping it; or so many times what one whole copy takes, if that is more.
_QUIET_WAIT_SECONDS = 8.0
_QUIET_WAIT_COPIES = 2.7
#: So many bad verdicts, each after another round, before a guest is throttled or goes to postcopy, ...
_ROUNDS_TO_BELIEVE = 2
#: ...but one is enough where the guest dirties this much faster than the stream carries.
_HOPELESS_FACTOR = 1.15
#: A verdict must stand even if the guest dirties this much faster than it showed.
_DOUBT_FACTOR = 1.05
#: Where the policy sets no time limit, one that has not ended after so many times its first round, and at least so many
#: seconds, will not.
_ROUNDS_WORTH = 30.0
_LEAST_BUDGET_SECONDS = HALT_SECONDS
#: It surely ends within the time limit where it would even if it took this much longer.
_SURE_FACTOR = 1.15
#: A bandwidth that was higher by this factor within the last seconds may be low for a moment only.
_MOMENTARY_FACTOR = 1.15
#: A verdict on the same round stands for so long, ...
_STANDS_SECONDS = 0.09
#: ...and a good one for so long while the switch is far.
_STANDS_FAR_SECONDS = 0.5
#: CPU time is not given back where the guest moves within so long anyway.
_NOT_WORTH_RELAXING_SECONDS = 2.0
#: Neither throttle nor postcopy are chosen on what was seen for less long: a stream beside others may begin slowly.
_LEAST_EVIDENCE_SECONDS = 2.5

#: What a forecast waits for before there is one.
_WATCHING = "a second of watching how fast the guest writes"

#: How the reason ends of a migration that is given up, and its error.
GIVING_UP = "giving up"


class ActionKind(StrEnum):
    """Kinds of action that the controller may take while memory is copied."""

    LIMIT = "downtime-limit"
    THROTTLE = "throttle"
    START_POSTCOPY = "start-postcopy"
    #: Stop the guest until its memory has arrived.
    PAUSE = "pause"
    GIVE_UP = "give-up"
    #: Nothing is done to the guest: it would end if others did not share its path, so those are to be held back.
    CROWDED = "crowded"
    #: Nothing is done; somebody should know.
    AT_RISK = "at-risk"


@dataclass(frozen=True, kw_only=True)
class Action:
    """One action and the reason for it."""

    act: ActionKind
    reason: str
    #: With ``downtime-limit``: seconds. With ``throttle``: the share of CPU time to take.
    value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """Abilities that both ends turned out to have."""

    postcopy: bool
    throttle: bool


@dataclass(frozen=True, kw_only=True)
class ConvergenceState:
    """State that :func:`decide` carries from one sample to the next."""

    model: Model = field(default_factory=Model)
    stream: StreamHistory = field(default_factory=StreamHistory)
    throttling: Throttling = field(default_factory=Throttling)
    #: Rounds after which the verdict was bad, in a row.
    bad_rounds: int = 0
    #: When the first of them ended, seconds since the migration began.
    bad_since: float = math.inf
    #: Rounds and probes that a verdict was given on.
    judged_entries: int = 0
    #: The last verdict, and when it was given, seconds since the migration began.
    judged: Forecast = field(default_factory=lambda: Forecast(verdict=Verdict.UNKNOWN, waiting_for=_WATCHING))
    judged_at_seconds: float = -math.inf
    switch: SwitchPlan = field(default_factory=SwitchPlan)
    #: Something was done that nothing follows on: postcopy, pause or giving up.
    settled: bool = False
    at_risk: bool = False
    #: It was said that others of its path are to be held back.
    crowded: bool = False
    #: Total time forecast at the end of the first round, seconds; what the forecast's error is measured by.
    first_forecast_seconds: float | None = None
    #: How often the guest was seen to change its habit.
    habit_changes: int = 0

    @property
    def look_in_seconds(self) -> float | None:
        """Return in how many seconds the source is to be looked at, as the switch is near; ``None`` where it is not."""
        return None if self.settled else self.switch.look_in_seconds


def begin(
    policy: Policy,
    *,
    overhead_seconds: float = DEFAULT_OVERHEAD_SECONDS,
    prior: GuestPrior | None = None,
) -> ConvergenceState:
    """Return the state to begin with; :attr:`Model.limit_seconds` in it is the limit to give to QEMU.

    :param overhead_seconds: learned: the part of downtime that is not memory over the network.
    :param prior: likewise: what the guest did before.
    """
    # Of an offline one nothing is dirtied, so no limit is too high.
    first = policy.max_downtime_seconds if policy.offline else PARKED_LIMIT_SECONDS
    return ConvergenceState(model=Model(overhead_seconds=overhead_seconds, limit_seconds=first, prior=prior))


def usable_limit(policy: Policy, overhead_seconds: float) -> float:
    """Return the highest downtime limit that keeps the downtime under the policy's ceiling, in seconds.

    Never less than a tenth of the ceiling: where the overhead alone exceeds it, no limit would help.

    :param overhead_seconds: part of the downtime that the limit says nothing of: the switch itself, and what is queued.
    """
    ceiling = policy.max_downtime_seconds
    return max(ceiling * (1 - _CEILING_MARGIN_RATIO) - overhead_seconds, ceiling * 0.1, 0.001)


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
        seen, actions = _forecast_unseen(state, sample, policy, abilities), []
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
    left = _left(policy, sample)
    ceiling = usable_limit(policy, state.model.overhead_seconds)
    enough = _ends(state, state.model, ceiling, left)
    best = state.model.at_its_best()
    momentary = (
        not enough
        and best.bandwidth_bytes_per_second > _MOMENTARY_FACTOR * state.model.bandwidth_bytes_per_second
        and _ends(state, best, ceiling, left, whatever_rounds_gained=True)
    )
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
    rung = "" if enough or momentary else _rung(state, policy, abilities, ceiling, left)
    step = _next_step(state, sample, policy, abilities, rung, left, enough=enough or momentary)
    ahead = time_left(state.model, limit_seconds=aim, throttle_ratio=state.throttling.ratio, step=step)
    if state.model.prior is not None and not state.model.copied_once:
        ahead = _with_experience(state, sample, policy, abilities)
    waiting_for = _waiting_for(state, sample, step, momentary=momentary)
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
    elif _believed(state, sample, rung, left):
        state, climbed = _climb(state, sample, policy, abilities, rung, left)
        actions += climbed
    elif not rung and state.bad_rounds >= _ROUNDS_TO_BELIEVE and not state.at_risk:
        # Whoever writes without a pause, and who does so for some seconds, look the same so far.
        state = replace(state, at_risk=True)
        reason = (
            f"{_why(state)}: it will not end while the guest goes on like that; waiting for a quiet moment"
        )
        actions.append(Action(act=ActionKind.AT_RISK, reason=reason))
    return state, seen, actions


def _forecast_unseen(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities
) -> Forecast:
    """Return the forecast before anything was seen of the guest's writing: what it did before is all that is known."""
    ahead = _with_experience(state, sample, policy, abilities)
    return Forecast(verdict=Verdict.UNKNOWN, waiting_for=_WATCHING, **ahead.figures())


def _with_experience(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities
) -> TimeLeft:
    """Return what is to be expected before the first round has ended, as the guest did before; nothing is decided."""
    state = replace(state, model=with_prior(state.model))
    ceiling, left = usable_limit(policy, state.model.overhead_seconds), _left(policy, sample)
    # What it did before may be above its true rate as well as below: there is nothing to add for doubt.
    middle = outlook(state.model, limit_seconds=ceiling, throttle_ratio=state.throttling.ratio)
    enough = middle.ends and middle.seconds <= left
    rung = "" if enough else _rung(state, policy, abilities, ceiling, left)
    step = _next_step(state, sample, policy, abilities, rung, left, enough=enough)
    aim = state.switch.ending.limit_seconds if state.switch.ending is not None else ceiling
    return time_left(state.model, limit_seconds=aim, throttle_ratio=state.throttling.ratio, step=step)


def _left(policy: Policy, sample: Sample) -> float:
    """Return the seconds until the policy's time limit."""
    limit = policy.max_duration_seconds
    return math.inf if limit is None else limit - sample.at_seconds


def _ends(
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
        left_seconds=_left(policy, sample),
    )
    state = replace(state, switch=plan)
    if change is None:
        return state, []
    reason = f"{_why(state)}: {change.reason}" if state.model.known else change.reason
    state = replace(state, model=replace(state.model, limit_seconds=change.limit_seconds))
    return state, [Action(act=ActionKind.LIMIT, reason=reason, value=change.limit_seconds)]


def _rung(state: ConvergenceState, policy: Policy, abilities: Abilities, ceiling: float, left: float) -> str:
    """Return the lowest rung above the present one that will do; empty when none will."""
    if _throttle(state, policy, abilities, ceiling, left) is not None:
        return ActionKind.THROTTLE
    if policy.postcopy is PostcopyMode.ALLOW and abilities.postcopy:
        return ActionKind.START_POSTCOPY
    if policy.last_resort is LastResort.PAUSE:
        return ActionKind.PAUSE
    return ""


def _throttle(
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


def _next_step(
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
        share = _throttle(state, policy, abilities, usable_limit(policy, model.overhead_seconds), left)
    in_seconds = 0.0
    if not _believed(state, sample, rung, left):
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


def _waiting_for(state: ConvergenceState, sample: Sample, step: NextStep, *, momentary: bool) -> str:
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
    return "" if _believed(state, sample, step.rung, math.inf) else "another round like the last one"


def _believed(state: ConvergenceState, sample: Sample, rung: str, left: float) -> bool:
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
        return hopeless or state.bad_rounds >= _ROUNDS_TO_BELIEVE
    wait = _quiet_wait(sample, model, rung, left)
    return state.bad_rounds >= _ROUNDS_TO_BELIEVE and sample.at_seconds - state.bad_since >= wait


def _quiet_wait(sample: Sample, model: Model, rung: str, left: float) -> float:
    """Return the seconds, from the first bad round on, for which a quiet moment of the guest is waited for."""
    wait = max(
        _QUIET_WAIT_SECONDS, _QUIET_WAIT_COPIES * sample.total_bytes / model.bandwidth_bytes_per_second
    )
    if math.isfinite(left) and rung == ActionKind.PAUSE:
        wait = min(wait, left - 2.0 * sample.remaining_bytes / model.bandwidth_bytes_per_second)
    return wait


def _climb(
    state: ConvergenceState, sample: Sample, policy: Policy, abilities: Abilities, rung: str, left: float
) -> tuple[ConvergenceState, list[Action]]:
    ceiling = usable_limit(policy, state.model.overhead_seconds)
    why = _why(state)
    if rung == ActionKind.THROTTLE:
        share = _throttle(state, policy, abilities, ceiling, left)
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
