"""Evacuation as other tools do it: a fixed number of guests at a time, in their order.

oVirt lets 2 migrations leave a host at a time, KubeVirt runs 5 in a cluster. A migration has its place from the start
of its destination to the end of all; those under way share the link as TCP does. Everything else is ours: the same
preparation, the same steering of each guest, the same policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from migrator.core import schedule as ours
from migrator.core.drain import forecast, plan
from migrator.core.schedule import ScheduleDecision, timetable
from migrator.core.schedule.queues import Queues
from migrator.core.schedule.transfers import LinkRules, Move, TransferPhase

Decide = Callable[..., ScheduleDecision]

#: As the tables name them, with how many leave a host at a time.
PEERS = {"2 at a time (oVirt)": 2, "5 at a time (KubeVirt)": 5}
OURS = "migrator"


def at_a_time(count: int) -> Decide:
    """Return a decision in the place of :func:`migrator.core.schedule.decide`."""

    def decide(
        active: Sequence[Move],
        waiting: Queues,
        _rules: LinkRules,
        *,
        now: float = 0.0,
    ) -> ScheduleDecision:
        decided = ScheduleDecision(active=active, waiting=waiting, now=now)
        under_way = dict[str, int]()
        for move in active:
            under_way[move.transfer.source] = under_way.get(move.transfer.source, 0) + 1
            if move.phase is TransferPhase.READY:
                decided.begin.append(move)
        for move in sorted(chain(*waiting.values()), key=lambda move: move.transfer.guest):
            if under_way.get(move.transfer.source, 0) < count:
                under_way[move.transfer.source] = under_way.get(move.transfer.source, 0) + 1
                decided.prepare.append(move)
        return decided

    return decide


def install(strategy: str) -> None:
    """From now on every engine of this process goes by it."""
    number = PEERS.get(strategy)
    plan.decide = ours.decide if number is None else at_a_time(number)  # type: ignore[attr-defined]
    # Others foretell nothing; ours would foretell what it does not do.
    forecast.predict = timetable.predict if number is None else _foretell_nothing  # type: ignore[assignment,attr-defined]


def _foretell_nothing(*_: object) -> timetable.Prediction:
    return timetable.Prediction()
