"""When QEMU is given its real downtime limit, and how high: until then the limit is parked. Pure.

QEMU looks at its limit at the ends of windows of a tenth of a second, and switches at the first look at the dirty
bitmap that finds less than ``bandwidth of the last window × limit``. With :data:`PARKED_LIMIT_SECONDS` it goes on
copying until a millisecond's worth is left: a guest that the stream outruns gets there by itself, with the least
downtime there is; any other keeps copying until it is given more. (A limit of 0 is no parking: QEMU then never looks at
the bitmap again, and switches after the first pass with everything that was dirtied since; docs/switch.md has the
measurements.)

So the moment is chosen here: each way to end is followed to its end, :mod:`migrator.core.migration.objective` says
which is the best, and its limit is given as long before its STOP as QEMU may take to notice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from migrator.core.migration.forecast import Model, Outlook, Round, outlook
from migrator.core.migration.objective import Ending, best_ending
from migrator.core.model import Sample
from migrator.core.policy import Policy
from migrator.units import show_seconds

#: As low as QEMU knows without giving up its looks at the dirty bitmap.
PARKED_LIMIT_SECONDS = 0.001
#: A real limit is not lower than this: the bandwidth of a window in which there was little to send is low, and so is
#: what fits into the limit then.
_LEAST_LIMIT_SECONDS = 0.005
#: Limits that are tried, as shares of the highest that keeps the ceiling.
_SHARES = (0.02, 0.035, 0.06, 0.1, 0.15, 0.2, 0.275, 0.35, 0.475, 0.6, 0.8, 1.0)
#: QEMU takes up to so long to act on a limit (3 to 138 ms were measured, half of them above 60).
_LAG_SECONDS = 0.1
#: From so long before the STOP the source is looked at in half of what is left until the limit has to be given, but no
#: sooner than after the second: QEMU's own lag is ten times as long.
_NEAR_SECONDS, _SOONEST_LOOK_SECONDS = 0.35, 0.008
#: Once the limit is given it is looked at so often: QEMU's events tell of rounds and of the STOP.
_GIVEN_LOOK_SECONDS = 0.04
#: So long in a migration and no longer: a guest may always be about to be quiet.
_NEAR_AT_MOST_SECONDS = 3.0
#: Between rounds all ways to end are followed this often only, and only the chosen one at every sample; sooner where
#: that one is off by so much.
_PLANNED_EVERY_SECONDS, _AS_PLANNED_SECONDS = 0.09, 0.01
#: The switch is far where the rest of the round alone takes so long; then they are followed so often, or once in this
#: share of what is left of it, where that is longer.
_FAR_SECONDS, _PLANNED_EVERY_FAR_SECONDS, _PLANNED_EVERY_FAR_RATIO = 0.5, 0.5, 0.05
#: The end of a first pass that nothing is known of yet: a limit of this share of the ceiling is given ahead.
_UNKNOWN_RATIO = 0.1
#: The first pass over a guest of no more memory than this may be over within so long. A look that finds too much then
#: costs a window of QEMU's, more of the whole time than the objective allows; so until then such a guest has a limit
#: of this share of the ceiling. (The bandwidth of the first windows is seen too high.)
_SMALL_BYTES, _SHORT_SECONDS, _SHORT_RATIO = 640 * 2**20, 0.35, 0.8
#: A limit that has not brought the switch after so long is raised to what the last rounds really left.
_OVERDUE_SECONDS = 0.25
#: A real limit that was given is raised only by this factor at least, ...
_STEP = 1.25
#: ...and withdrawn where the STOP has gone this far away.
_AWAY_SECONDS = 1.5
#: What is left may turn out to be more than forecast by this factor.
_DOUBT_FACTOR = 1.25
#: A socket that holds more than the ceiling allows is waited for so long: one that never drains is not ours to drain.
_QUEUE_SECONDS = 3.0
#: Two ways to end that differ by less are alike.
_ALIKE_SECONDS = 0.005
#: What is left is much, and may turn out to be more, if sending it takes longer than this.
_MUCH_SECONDS = 0.02
#: The guest is taken to go on as in its last round; after one round alone it may write faster than that showed: the
#: less a round dirties, the longer it was.
_FIRST_RATE_FACTOR, _RATE_FACTOR = 1.25, 1.0


@dataclass(frozen=True, kw_only=True)
class SwitchPlan:
    """The way in which the copy shall end, as of the last sample."""

    #: ``None``: none that keeps the ceiling is in sight. As of :attr:`planned_at_seconds`.
    ending: Ending | None = None
    #: When all ways to end were followed last, seconds since the migration began, and what they rested on: the last
    #: round, and the share of CPU time that was taken.
    planned_at_seconds: float = -math.inf
    planned_on: tuple[Round, float] | None = None
    #: QEMU has the real limit.
    given: bool = False
    #: When it was given, seconds since the migration began.
    given_at: float = 0.0
    #: It was given only in case that the first pass is over at once.
    for_short_pass: bool = False
    #: Whole time after which it could have ended inside the ceiling, once that was in reach; seconds.
    could_end_seconds: float | None = None
    #: Since when the socket holds more than the ceiling allows, where that alone is in the way.
    full_since: float | None = None
    #: The switch may be near: in so many seconds the source is to be looked at. ``None``: at the usual pace.
    look_in_seconds: float | None = None
    #: The guest goes on running for so long, whatever it does; 0 where the switch may be near.
    far_seconds: float = 0.0
    #: How long the switch seemed near.
    near_seconds: float = 0.0
    at_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LimitChange:
    """A downtime limit to give to QEMU, and why."""

    limit_seconds: float
    reason: str


def plan_switch(
    plan: SwitchPlan,
    model: Model,
    sample: Sample,
    policy: Policy,
    *,
    limit_ceiling_seconds: float,
    downtime_ceiling_seconds: float,
    throttle_ratio: float,
    left_seconds: float,
) -> tuple[SwitchPlan, LimitChange | None]:
    """Plan the switch anew after one more sample.

    :param limit_ceiling_seconds: the highest limit that keeps the ceiling of the downtime.
    :param downtime_ceiling_seconds: what the whole downtime may be, that which no limit bounds included.
    :param throttle_ratio: share of CPU time that is taken from the guest.
    :param left_seconds: until the policy's time limit.
    """
    plan = replace(plan, far_seconds=_far_seconds(model, sample, limit_ceiling_seconds))
    if not model.known:
        return _before_anything_is_known(plan, model, sample, limit_ceiling_seconds)
    if plan.for_short_pass:
        # The pass is over, and what the guest does is known: the limit is as if none had been given.
        plan = replace(plan, given=False, for_short_pass=False)
        plan, change = plan_switch(
            plan,
            model,
            sample,
            policy,
            limit_ceiling_seconds=limit_ceiling_seconds,
            downtime_ceiling_seconds=downtime_ceiling_seconds,
            throttle_ratio=throttle_ratio,
            left_seconds=left_seconds,
        )
        reason = "the moment to switch is not yet: the limit is parked"
        return plan, change or LimitChange(limit_seconds=PARKED_LIMIT_SECONDS, reason=reason)
    stop_in = _stop_in_by_plan(plan, model, sample, limit_ceiling_seconds, throttle_ratio)
    if stop_in is not None:
        return _watched(plan, sample, stop_in), None
    endings = [
        Ending(limit_seconds=limit, seconds=found.seconds, downtime_seconds=found.downtime_seconds)
        for limit in _limits(limit_ceiling_seconds)
        if (found := _followed(model, limit, throttle_ratio)).ends
    ]
    # A limit that is tried keeps the ceiling by itself: where none does, it is what the socket holds, or what mirrors
    # of disks lag behind. Those catch up, and until they have there is no switch.
    least = min((each.downtime_seconds for each in endings), default=0.0)
    full = least - model.disk_backlog_seconds > downtime_ceiling_seconds
    since = (sample.at_seconds if plan.full_since is None else plan.full_since) if full else None
    overdue = since is not None and sample.at_seconds - since > _QUEUE_SECONDS
    if overdue and model.disk_backlog_seconds <= downtime_ceiling_seconds:
        downtime_ceiling_seconds = math.inf
    chosen = best_ending(
        endings,
        ceiling_seconds=downtime_ceiling_seconds,
        elapsed_seconds=sample.at_seconds,
        soonest_seconds=plan.could_end_seconds,
        left_seconds=left_seconds,
        prefer=policy.prefer,
    )
    could = plan.could_end_seconds
    if could is None and chosen is not None and any(each.stop_in_seconds <= _LAG_SECONDS for each in endings):
        could = sample.at_seconds + min(each.seconds for each in endings)
    stop_in = math.inf if chosen is None else chosen.stop_in_seconds
    plan = replace(
        plan,
        ending=chosen,
        could_end_seconds=could,
        full_since=since,
        planned_at_seconds=sample.at_seconds,
        planned_on=(model.rounds[-1], throttle_ratio),
    )
    plan = _watched(plan, sample, stop_in)
    if chosen is None or stop_in > _LAG_SECONDS:
        return _withdrawn(plan, model, stop_in)
    limit = _limit_for(chosen, endings, model, limit_ceiling_seconds)
    if plan.given and sample.at_seconds - plan.given_at > _OVERDUE_SECONDS:
        left = model.rounds[-1].pending_bytes / model.bandwidth_bytes_per_second
        limit = max(limit, min(limit_ceiling_seconds, left * _DOUBT_FACTOR))
    if plan.given and limit < model.limit_seconds * _STEP:
        return plan, None
    plan = replace(plan, given=True, given_at=sample.at_seconds)
    when = f"in {show_seconds(stop_in)}" if stop_in >= 0.001 else "at once"
    reason = (
        f"now is the moment: about {show_seconds(chosen.downtime_seconds)} of downtime, {when}"
        f"{_beside(endings, chosen)}"
    )
    return plan, LimitChange(limit_seconds=limit, reason=reason)


def _far_seconds(model: Model, sample: Sample, limit_ceiling_seconds: float) -> float:
    """Return the seconds that the guest goes on running at the least: what is left of this round has to be sent."""
    bandwidth = max(model.at_its_best().bandwidth_bytes_per_second, sample.bandwidth_bytes_per_second)
    left = sample.remaining_bytes / bandwidth - limit_ceiling_seconds if bandwidth > 0 else 0.0
    return left if left > _FAR_SECONDS else 0.0


def _followed(model: Model, limit_seconds: float, throttle_ratio: float) -> Outlook:
    factor = _FIRST_RATE_FACTOR if len(model.rounds) < 2 else _RATE_FACTOR
    return outlook(
        model,
        limit_seconds=limit_seconds,
        throttle_ratio=throttle_ratio,
        rate_factor=factor,
        write_rate=model.latest_rate(),
    )


def _stop_in_by_plan(
    plan: SwitchPlan, model: Model, sample: Sample, limit_ceiling_seconds: float, throttle_ratio: float
) -> float | None:
    """Return how long the guest goes on running by the last plan; ``None`` where it is time to plan anew."""
    age = sample.at_seconds - plan.planned_at_seconds
    if plan.planned_on != (model.rounds[-1], throttle_ratio) or plan.full_since is not None:
        return None
    every = max(_PLANNED_EVERY_FAR_SECONDS, _PLANNED_EVERY_FAR_RATIO * plan.far_seconds)
    if plan.far_seconds and not plan.given and age < every:
        return math.inf
    if plan.ending is None or age >= _PLANNED_EVERY_SECONDS:
        return None
    limits = [plan.ending.limit_seconds]
    if plan.could_end_seconds is None:
        limits.append(limit_ceiling_seconds)  # the soonest
    found = [_followed(model, limit, throttle_ratio) for limit in limits]
    if not abs(found[0].seconds - (plan.ending.seconds - age)) < _AS_PLANNED_SECONDS:
        return None
    stops = [each.seconds - each.downtime_seconds if each.ends else 0.0 for each in found]
    if plan.given:
        return stops[0] if stops[0] <= _LAG_SECONDS else None
    return stops[0] if min(stops) > _LAG_SECONDS else None


def _limit_for(chosen: Ending, endings: list[Ending], model: Model, ceiling_seconds: float) -> float:
    """Return the limit that brings that ending about, with what the forecast may be off by."""
    memory = max(0.0, chosen.downtime_seconds - model.overhead_seconds - model.before_memory_seconds)
    highest = max(each.limit_seconds for each in endings if _alike(each, chosen))
    soonest = min(endings, key=lambda each: (each.seconds, each.downtime_seconds))
    limit = memory * _DOUBT_FACTOR
    # After one round alone, less downtime than by so much is no more than doubt.
    in_doubt = len(model.rounds) < 2 and soonest.downtime_seconds <= chosen.downtime_seconds * _DOUBT_FACTOR
    if in_doubt:
        highest = max(highest, soonest.limit_seconds)
    if (in_doubt or _alike(soonest, chosen)) and memory > _MUCH_SECONDS:
        limit = highest  # one that just misses what cannot become less would cost a round, and save nothing
    least = min(_LEAST_LIMIT_SECONDS, ceiling_seconds)
    last = model.last.bandwidth_bytes_per_second if model.last is not None else 0.0
    slower = min(2.0, max(1.0, model.bandwidth_bytes_per_second / last)) if last > 0 else 1.0
    return min(ceiling_seconds, max(least, min(highest, limit) * slower))


def _alike(one: Ending, other: Ending) -> bool:
    return (
        abs(one.seconds - other.seconds) < _ALIKE_SECONDS
        and abs(one.downtime_seconds - other.downtime_seconds) < _ALIKE_SECONDS
    )


def _limits(ceiling_seconds: float) -> list[float]:
    """Return the limits that are tried, lowest first, each once."""
    least = min(_LEAST_LIMIT_SECONDS, ceiling_seconds)
    return sorted({max(least, share * ceiling_seconds) for share in _SHARES})


def _before_anything_is_known(
    plan: SwitchPlan, model: Model, sample: Sample, ceiling_seconds: float
) -> tuple[SwitchPlan, LimitChange | None]:
    """Give a low limit ahead of the end of a first pass that is over before anything could be learned of the guest."""
    bandwidth = model.bandwidth_bytes_per_second
    ends_in = sample.remaining_bytes / bandwidth if bandwidth > 0 and sample.round == 1 else math.inf
    plan = _watched(plan, sample, ends_in)
    least = min(_LEAST_LIMIT_SECONDS, ceiling_seconds)
    short = 0 < sample.total_bytes <= _SMALL_BYTES and sample.at_seconds < _SHORT_SECONDS
    if short and sample.round <= 1 and not plan.given:
        limit = max(least, _SHORT_RATIO * ceiling_seconds)
        reason = "the guest is small: its first pass may be over before anything is known of it"
    elif not short and ends_in <= _LAG_SECONDS and (plan.for_short_pass or not plan.given):
        limit = max(least, _UNKNOWN_RATIO * ceiling_seconds)
        reason = f"the first pass ends in {show_seconds(ends_in)}, before anything is known of the guest"
    elif not short and plan.for_short_pass:
        plan = replace(plan, given=False, for_short_pass=False)
        reason = "the first pass takes longer, and will tell what the guest does: the limit is parked"
        return plan, LimitChange(limit_seconds=PARKED_LIMIT_SECONDS, reason=reason)
    else:
        return plan, None
    plan = replace(plan, given=True, given_at=sample.at_seconds, for_short_pass=short)
    return plan, LimitChange(limit_seconds=limit, reason=reason)


def _watched(plan: SwitchPlan, sample: Sample, stop_in: float) -> SwitchPlan:
    was_near = plan.look_in_seconds is not None
    spent = plan.near_seconds + (max(0.0, sample.at_seconds - plan.at_seconds) if was_near else 0.0)
    near = stop_in <= _NEAR_SECONDS and spent < _NEAR_AT_MOST_SECONDS
    look_in = _GIVEN_LOOK_SECONDS if plan.given else max(_SOONEST_LOOK_SECONDS, (stop_in - _LAG_SECONDS) / 2)
    return replace(
        plan, look_in_seconds=look_in if near else None, near_seconds=spent, at_seconds=sample.at_seconds
    )


def _withdrawn(plan: SwitchPlan, model: Model, stop_in: float) -> tuple[SwitchPlan, LimitChange | None]:
    """Park the limit again where the moment it was given for has passed by and the next one is far away."""
    if not plan.given or stop_in <= _AWAY_SECONDS or model.limit_seconds <= PARKED_LIMIT_SECONDS:
        return plan, None
    when = f"{show_seconds(stop_in)} away" if math.isfinite(stop_in) else "not in sight"
    reason = f"the guest writes more again, and the moment to switch is {when}: the limit is parked"
    return replace(plan, given=False), LimitChange(limit_seconds=PARKED_LIMIT_SECONDS, reason=reason)


def _beside(endings: list[Ending], chosen: Ending) -> str:
    """Say what the soonest way to end would have cost, where it is another."""
    soonest = min(endings, key=lambda each: each.seconds)
    if chosen.downtime_seconds >= soonest.downtime_seconds - 0.001:
        return ""
    return (
        f"; the soonest would have been {show_seconds(soonest.downtime_seconds)}, "
        f"{show_seconds(max(0.0, chosen.seconds - soonest.seconds))} earlier"
    )
