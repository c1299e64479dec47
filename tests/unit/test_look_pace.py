"""Migrations that are far from their switch are looked at more rarely while the event loop is busy."""

from __future__ import annotations

from itertools import pairwise

from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.engine.look_pace import stretched
from migrator.engine.migration.observer import interval

_COPIES = View(process=ProcessState.ALIVE, answers=True, run=RunState.RUNNING, status=MigrationStatus.ACTIVE)
_INTENT = Intent(milestone=Milestone.MIGRATING)


def _after(stretch: float, load: float, times: int) -> float:
    for _ in range(times):
        stretch = stretched(stretch, load)
    return stretch


def test_a_busy_loop_looks_more_rarely_and_a_calm_one_as_usual_again() -> None:
    assert _after(1.0, load=0.3, times=5) == 1.0
    seen = [_after(1.0, load=0.9, times=times) for times in range(6)]
    assert all(after >= before for before, after in pairwise(seen))
    assert _after(1.0, load=1.0, times=20) == 4.0
    assert _after(2.0, load=0.5, times=20) == 2.0
    assert _after(4.0, load=0.2, times=20) == 1.0


def test_only_looks_at_what_is_far_from_its_switch_become_rarer() -> None:
    def waits(stretch: float, far: float = 0.0, near: float | None = None) -> float:
        return interval(_INTENT, _COPIES, far_seconds=far, near_seconds=near, stretch=stretch)

    assert (waits(1.0, far=1000.0), waits(4.0, far=1000.0)) == (2.0, 8.0)
    assert waits(4.0, far=10.0) < 10.0
    assert waits(4.0) == waits(1.0)
    assert waits(4.0, near=0.03) == waits(1.0, near=0.03) == 0.03
