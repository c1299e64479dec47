"""A host is not empty while a guest is on its way there; over a simulated site."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.api.commands import Cancel, Evacuate, Migrate, Plan
from migrator.api.documents import PlanDocument
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import World

pytestmark = pytest.mark.looptime


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for name in ("a", "b", "c"):
        world.site.add_host(name, link=100 * MIB)
    world.site.add_guest("vm", host="a", memory_bytes=4096 * MIB, workload=steady(16 * MIB, 1 * MIB))
    return world


async def test_evacuation_waits_for_a_guest_that_comes_and_moves_it_on(world: World) -> None:
    async with world.engine() as driver:
        move = await driver.ask(Migrate(guest="vm", to="b"))
        plan = await driver.ask(Plan(host="b"))
        assert isinstance(plan, PlanDocument)
        assert (plan.cannot_move, [each.code for each in plan.guests[0].findings]) == (1, ["arriving"])

        run = await driver.ask(Evacuate(host="b"))
        assert [each.standing for each in run.guests] == [GuestStanding.SET_ASIDE]
        end = await driver.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert [(each.standing, each.target) for each in end.guests] == [
            (GuestStanding.MOVED, world.site.running("vm")[0])
        ]
        assert world.site.running("vm") != ["b"]
        assert (await driver.queries.migration(move.id)).state == "completed"


async def test_guest_that_was_on_its_way_and_did_not_come_is_waited_for_no_longer(world: World) -> None:
    async with world.engine() as driver:
        move = await driver.ask(Migrate(guest="vm", to="b"))
        run = await driver.ask(Evacuate(host="b"))
        await driver.ask(Cancel(target=move.id))
        end = await driver.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert [each.standing for each in end.guests] == [GuestStanding.GONE]
        assert world.site.running("vm") == ["a"]


async def test_guest_whose_earlier_migration_is_held_is_left_for_a_person(world: World) -> None:
    async with world.engine(killed=True) as driver:
        move = await driver.ask(Migrate(guest="vm", to="b"))
        await driver.until(lambda: driver.engine.registry.migrations[move.id].state is State.PRECOPY)
    for record in world.directory.rglob("*.jsonl"):
        record.unlink()
    async with world.engine() as driver:
        assert driver.engine.registry.migrations[move.id].state is State.HELD
        for host in ("a", "b"):
            end = await driver.end_of(await driver.ask(Evacuate(host=host)))
            assert end.state is EvacuationState.INCOMPLETE
            assert f"its migration {move.id}" in str(end.error)
        assert world.site.running("vm") == ["a"]
