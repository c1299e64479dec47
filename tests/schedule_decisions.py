"""What the schedule decides, by the guests' names: the same calls that a plan makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from migrator.core.inventory import Host
from migrator.core.schedule import LinkRules, Transfer, decide, partition
from migrator.core.schedule.transfers import moves_of


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One decision; see :class:`migrator.core.schedule.ScheduleDecision`."""

    prepare: tuple[str, ...]
    begin: tuple[str, ...]
    #: Whole bytes per second.
    bandwidth: Mapping[str, int]
    reasons: Mapping[str, str]
    recheck_seconds: float | None


def decided(
    transfers: Iterable[Transfer], hosts: Mapping[str, Host], rules: LinkRules | None = None
) -> Decided:
    """Decide what all that waits and runs shall do now."""
    rules = rules or LinkRules()
    found = decide(*partition(moves_of(transfers, hosts, rules)), rules)
    return Decided(
        prepare=tuple(move.transfer.guest for move in found.prepare),
        begin=tuple(move.transfer.guest for move in found.begin),
        bandwidth={move.transfer.guest: max(1, int(speed)) for move, speed in found.bandwidth.items()},
        reasons={move.transfer.guest: text for move, text in found.reasons().items()},
        recheck_seconds=found.recheck_seconds(rules),
    )
