"""Evacuation as other tools do it: a fixed number of guests at a time, in their order.

oVirt lets 2 migrations leave a host at a time, KubeVirt runs 5 in a cluster. A migration has its place from the start
of its destination to the end of all; those under way share the link as TCP does. Everything else is ours: the same
preparation, the same steering of each guest, the same policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from migrator.core import schedule as ours
from migrator.core.inventory import Host
from migrator.core.schedule import Orders, timetable
from migrator.core.schedule.transfers import LinkRules, Transfer, TransferPhase
from migrator.engine import foretelling, planner

Schedule = Callable[[Iterable[Transfer], Mapping[str, Host], LinkRules | None], Orders]

#: As the tables name them, with how many leave a host at a time.
PEERS = {"2 at a time (oVirt)": 2, "5 at a time (KubeVirt)": 5}
OURS = "migrator"


def at_a_time(count: int) -> Schedule:
    """A schedule in the place of :func:`migrator.core.schedule.schedule`."""

    def schedule(
        transfers: Iterable[Transfer], _hosts: Mapping[str, Host], _rules: LinkRules | None = None
    ) -> Orders:
        prepare, begin, under_way = list[str](), list[str](), dict[str, int]()
        transfers = list(transfers)
        for one in transfers:
            if one.phase is not TransferPhase.WAITING:
                under_way[one.source] = under_way.get(one.source, 0) + 1
            if one.phase is TransferPhase.READY:
                begin.append(one.guest)
        for one in sorted(transfers, key=lambda one: one.guest):
            if one.phase is TransferPhase.WAITING and under_way.get(one.source, 0) < count:
                under_way[one.source] = under_way.get(one.source, 0) + 1
                prepare.append(one.guest)
        return Orders(prepare=tuple(prepare), begin=tuple(begin))

    return schedule


def install(strategy: str) -> None:
    """From now on every engine of this process goes by it."""
    number = PEERS.get(strategy)
    planner.schedule = ours.schedule if number is None else at_a_time(number)  # type: ignore[assignment,attr-defined]
    # Others foretell nothing; ours would foretell what it does not do.
    foretelling.predict = timetable.predict if number is None else _foretell_nothing  # type: ignore[assignment,attr-defined]


def _foretell_nothing(*_: object) -> timetable.Prediction:
    return timetable.Prediction()
