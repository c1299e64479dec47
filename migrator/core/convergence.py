"""Whether a precopy will end inside its policy, and what to do about it: a plain rule over the rounds seen so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from migrator.core.model import Sample
from migrator.core.policy import LastResort, Policy, Postcopy
from migrator.units import show_bytes, show_rate, show_seconds

#: A round that leaves at least this share of what the one before left has gained nothing.
_STALL_RATIO = 0.9
#: So many rounds in a row without gain are no accident.
_STALLED_ROUNDS = 2
#: Auto-converge takes a step a round, of 10 % of the CPU by default: after this many it has reached any ceiling.
_THROTTLED_ROUNDS = 12


class Act(StrEnum):
    """What the controller may do while memory is copied."""

    START_POSTCOPY = "start-postcopy"
    #: Let auto-converge take up to the policy's share of CPU time.
    THROTTLE = "throttle"
    #: Stop the guest until its memory has arrived.
    PAUSE = "pause"
    GIVE_UP = "give-up"


@dataclass(frozen=True)
class Action:
    """One thing to do and why."""

    act: Act
    reason: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the rule remembers from one sample to the next."""

    round: int = 0
    #: Bytes left at the start of the present round.
    left_bytes: int = 0
    stalled_rounds: int = 0
    done: frozenset[Act] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What both ends turned out to support."""

    postcopy: bool
    throttle: bool


def decide(
    seen: Seen, sample: Sample, policy: Policy, abilities: Abilities, elapsed_seconds: float
) -> tuple[Seen, Action | None]:
    """The rule's new memory, and an action if one is due. Pure; called while the source copies, never after.

    :param elapsed_seconds: since the migration began.
    """
    if sample.round != seen.round:
        gained = sample.remaining_bytes < _STALL_RATIO * seen.left_bytes or seen.round < 2
        stalled = 0 if gained else seen.stalled_rounds + 1
        seen = replace(seen, round=sample.round, left_bytes=sample.remaining_bytes, stalled_rounds=stalled)
    action = _action(seen, sample, policy, abilities, elapsed_seconds)
    return (seen, None) if action is None else (replace(seen, done=seen.done | {action.act}), action)


def _action(
    seen: Seen, sample: Sample, policy: Policy, abilities: Abilities, elapsed_seconds: float
) -> Action | None:
    over = policy.max_duration_seconds is not None and elapsed_seconds >= policy.max_duration_seconds
    if Act.START_POSTCOPY in seen.done or Act.PAUSE in seen.done or Act.GIVE_UP in seen.done:
        return None
    if policy.postcopy is Postcopy.IMMEDIATE and abilities.postcopy:
        return Action(Act.START_POSTCOPY, "the policy asks for postcopy at once")
    why = (
        f"round {seen.round} left {show_bytes(seen.left_bytes)}, the guest dirties "
        f"{show_rate(sample.dirty_rate_bytes_per_second)} and the stream carries "
        f"{show_rate(sample.bandwidth_bytes_per_second)}"
    )
    if over:
        why = f"{show_seconds(elapsed_seconds)} are over, the policy's max_duration; {why}"
    elif seen.stalled_rounds < _STALLED_ROUNDS:
        return None
    if policy.postcopy is Postcopy.ALLOW and abilities.postcopy:
        return Action(Act.START_POSTCOPY, f"{why}: switching to postcopy")
    if not over:
        if abilities.throttle and policy.max_throttle_ratio > 0 and Act.THROTTLE not in seen.done:
            return Action(
                Act.THROTTLE, f"{why}: throttling the guest by up to {policy.max_throttle_ratio:.0%}"
            )
        if policy.max_duration_seconds is not None or (
            Act.THROTTLE in seen.done and seen.stalled_rounds < _THROTTLED_ROUNDS
        ):
            return None
    if policy.last_resort is LastResort.PAUSE:
        return Action(Act.PAUSE, f"{why}: stopping the guest until its memory has arrived")
    return Action(Act.GIVE_UP, f"{why}: nothing that the policy allows will end this")
