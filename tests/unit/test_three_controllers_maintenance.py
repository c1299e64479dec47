"""Windows and rolling evacuations of three controllers of which the one that plans dies on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from migrator.core.inventory import HostState
from migrator.ports import Lease
from tests.three_controllers import ThreeControllers

#: What is told of an evacuation when it is written.
Told = Callable[[Mapping[str, Any]], bool]
_BEGINS_SECONDS = 8.0


class _LoopTime(datetime):
    """The time of day by the clock of the simulated loop, which all that is simulated goes by."""

    loop_time: Callable[[], float]
    began = datetime.now(UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override] # of no subclass of ours
        return (cls.began + timedelta(seconds=cls.loop_time())).astimezone(tz)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> ThreeControllers:
    world = ThreeControllers(seed=5, guests=2)
    monkeypatch.setattr(_LoopTime, "loop_time", world.loop.time, raising=False)
    for name, module in list(sys.modules.items()):
        if name.startswith("migrator.engine") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", _LoopTime)
    return world


def kill_planner_when(world: ThreeControllers, told: Told) -> list[float]:
    """Kill it once an evacuation is written of which that holds; the list then has when."""
    killed: list[float] = []
    written = world.store.written

    def see(
        lease: Lease | None, kind: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]
    ) -> None:
        written(lease, kind, before, after)
        if kind == "evacuation" and not killed and told(after):
            killed.append(world.loop.time())
            world.loop.call_soon(kill_planner, world)

    world.store.written = see
    return killed


def kill_planner(world: ThreeControllers) -> None:
    acting = {each.sole_use.token: each for each in world.controllers if each.sole_use is not None}
    world.kill(acting[max(acting)])


def places(world: ThreeControllers) -> set[str]:
    """The hosts on which guests run."""
    return {host for each in world.site.machines.values() for host in world.site.running(each.name)}


async def evacuations(world: ThreeControllers) -> list[dict[str, Any]]:
    """All that there ever were, the oldest first."""
    return sorted(await world.store.journal.page("evacuation", limit=99), key=lambda each: each["created_at"])


async def begin_window(world: ThreeControllers) -> None:
    at = _LoopTime.now(UTC) + timedelta(seconds=_BEGINS_SECONDS)
    until = at + timedelta(hours=1)
    reply = await world.ask("evacuate", "k-window", host="a", at=at.isoformat(), until=until.isoformat())
    assert reply.kind == "accepted", reply.message


async def judge_window(world: ThreeControllers) -> None:
    await world.quiet()
    [run] = await evacuations(world)
    assert (run["state"], run["guests_left"]) == ("completed", 0)
    assert len(await world.store.journal.page("migration", limit=99)) == world.guests
    assert "a" not in places(world)


def test_a_window_whose_planner_dies_before_it_begins_is_begun_by_the_next_at_its_time(
    world: ThreeControllers,
) -> None:
    began: list[datetime] = []

    async def scenario(world: ThreeControllers) -> None:
        await begin_window(world)
        kill_planner(world)
        await judge_window(world)
        began.extend(each["created_at"] for each in await world.store.journal.page("migration", limit=99))

    asked_at = _LoopTime.began
    world.run(scenario)
    late = min(datetime.fromisoformat(str(each)) for each in began) - asked_at
    assert late >= timedelta(seconds=_BEGINS_SECONDS)


def test_a_window_whose_planner_dies_as_it_begins_is_gone_on_with_and_not_begun_twice(
    world: ThreeControllers,
) -> None:
    killed: list[float] = []

    async def scenario(world: ThreeControllers) -> None:
        seen = kill_planner_when(world, lambda run: run["state"] == "running")
        await begin_window(world)
        await judge_window(world)
        killed.extend(seen)

    world.run(scenario)
    assert killed
    assert killed[0] >= _BEGINS_SECONDS


@pytest.mark.parametrize("stage", ["emptying", "restoring"])
def test_a_roll_whose_planner_dies_in_the_middle_is_gone_on_with_by_the_next(
    world: ThreeControllers, stage: str
) -> None:
    killed: list[float] = []

    async def scenario(world: ThreeControllers) -> None:
        def first_is_there(run: Mapping[str, Any]) -> bool:
            own = "evacuation" if stage == "emptying" else "restore"
            return bool(run["kind"] == "roll" and run["hosts"][0]["stage"] == stage and run["hosts"][0][own])

        seen = kill_planner_when(world, first_is_there)
        reply = await world.ask("roll", "k-roll", hosts=["a", "b"], policy="offline")
        assert reply.kind == "accepted", reply.message
        await world.quiet()
        killed.extend(seen)
        runs = await evacuations(world)
        kinds = sorted((run["kind"], run["host"], run["state"]) for run in runs)
        assert kinds == [
            ("evacuate", "a", "completed"),
            ("evacuate", "b", "completed"),
            ("restore", "a", "completed"),
            ("restore", "b", "completed"),
            ("roll", "", "completed"),
        ]
        [roll] = [run for run in runs if run["kind"] == "roll"]
        assert [each["stage"] for each in roll["hosts"]] == ["done", "done"]
        assert places(world) == {"a"}, "everybody is home"
        hosts = [each["state"] for each in await world.store.journal.page("host", limit=9)]
        assert set(hosts) <= {HostState.ACTIVE}

    world.run(scenario)
    assert killed
