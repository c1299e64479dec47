"""Guests that are sent to postcopy so that others need not wait for their link. Pure.

A guest that writes much sends its memory twice or three times before it can be switched inside its ceiling. Where its
policy allows postcopy and prefers time, or where the evacuation would miss its deadline, what it has dirtied in its
first pass is fetched instead: each page once more at the most. Never before a full first pass, never where it would
wait for pages for longer than its policy allows, and only while somebody else waits for one of its links.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from migrator.core.drain.actions import StartPostcopy
from migrator.core.drain.snapshot import MigrationSnapshot, SiteSnapshot
from migrator.core.model import State
from migrator.core.policy import Policy, PostcopyMode, Preference
from migrator.core.schedule import ScheduleDecision
from migrator.core.schedule.transfers import Move
from migrator.units import show_seconds

#: The link has to be free for others earlier by so many seconds at the least, and by this share of the time that all of
#: the guest's memory takes.
_WORTH_SECONDS, _WORTH_RATIO = 0.3, 0.15
#: The end of a first pass is looked for so much later than it is forecast; after it, so often.
_SOON_SECONDS, _AGAIN_SECONDS = 0.02, 0.1


def hurried(snapshot: SiteSnapshot, decided: ScheduleDecision) -> Iterator[StartPostcopy]:
    """Yield what is sent to postcopy now."""
    at_risk = {run.id for run in snapshot.evacuations if run.at_risk}
    wanted = {link for moves in decided.waiting.values() if moves for link in moves[0].links}
    wanted |= {link for move in decided.blocked for link in move.links}
    for move in decided.bandwidth:
        migration = snapshot.live.get(move.transfer.guest)
        if migration is None or wanted.isdisjoint(move.links) or not _may_be(migration, at_risk):
            continue
        if reason := _worth_it(migration, move):
            yield StartPostcopy(migration=migration.id, reason=reason)


def next_seconds(snapshot: SiteSnapshot, decided: ScheduleDecision) -> float:
    """Return the seconds until it should be asked again; infinite where nobody may be sent to postcopy."""
    at_risk = {run.id for run in snapshot.evacuations if run.at_risk}
    ends = [
        _SOON_SECONDS + (migration.remaining_bytes or 0) / move.speed
        if migration.round == 1
        else _AGAIN_SECONDS
        for move in decided.bandwidth
        if (migration := snapshot.live.get(move.transfer.guest)) is not None
        and migration.round > 0
        and _may_be(migration, at_risk)
    ]
    return min(ends, default=math.inf)


def expected_bytes(policy: Policy, *, memory_bytes: float, dirty_ratio: float) -> float | None:
    """Return what a guest that waits is expected to send where it will be sent to postcopy so; else ``None``.

    An evacuation that may miss its deadline is forecast without: else it would be on time because it was late.

    :param dirty_ratio: what it dirties, as a share of what its links carry.
    """
    if not _in_haste(policy, at_risk=False) or dirty_ratio >= 1:
        return None
    saved_ratio = 1 / (1 - dirty_ratio) - (1 + dirty_ratio)
    return memory_bytes * (1 + dirty_ratio) if saved_ratio >= _WORTH_RATIO else None


def _in_haste(policy: Policy, *, at_risk: bool) -> bool:
    return policy.postcopy is PostcopyMode.ALLOW and (policy.prefer is Preference.TIME or at_risk)


def _may_be(migration: MigrationSnapshot, at_risk: set[str]) -> bool:
    held = bool(migration.moved_with) and not migration.switch_allowed
    if migration.state is not State.PRECOPY or migration.policy.offline or held:
        return False
    return _in_haste(migration.policy, at_risk=migration.evacuation in at_risk)


def _worth_it(migration: MigrationSnapshot, move: Move) -> str:
    """Return why; empty where it is not."""
    if migration.round < 2 or migration.remaining_bytes is None or migration.seconds_left is None:
        return ""
    stall = migration.remaining_bytes / move.speed
    saved = migration.seconds_left - stall
    least = max(_WORTH_SECONDS, _WORTH_RATIO * migration.guest.memory_bytes / move.speed)
    if stall > migration.policy.max_postcopy_stall_seconds or saved < least:
        return ""
    how_much = show_seconds(saved) if math.isfinite(saved) else "much"
    return (
        f"others wait for its link, which is free {how_much} sooner: what it has dirtied is fetched in "
        f"{show_seconds(stall)}"
    )
