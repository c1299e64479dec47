"""Who is brought home, under which policy, and when nobody is; over a simulated site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from migrator.api.commands import Evacuate, Migrate, Refusal, Restore
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.engine.evacuation_documents import evacuation_document
from migrator.settings.models import LimitsSettings
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import Driver, World

pytestmark = pytest.mark.looptime

#: More than its link carries: nothing that ``gentle`` allows ends that.
WILD = steady(4096 * MIB, 2000 * MIB)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for name in ("a", "b"):
        world.site.add_host(name, link=1000 * MIB)
    return world


def gentle(driver: Driver) -> Driver:
    """Where nobody says otherwise, and with one attempt only."""
    rules = driver.engine.rules
    driver.engine.rules = replace(rules, default_policy="gentle", limits=LimitsSettings(attempts=1))
    return driver


async def test_restore_takes_the_policy_that_it_is_given(world: World) -> None:
    world.site.add_guest("wild", host="a", memory_bytes=8192 * MIB, workload=WILD)
    async with world.engine() as driver:
        gentle(driver)
        end = await driver.end_of(await driver.ask(Evacuate(host="a", policy="must-finish")))
        assert end.state is EvacuationState.COMPLETED
        assert world.site.running("wild") == ["b"]

        end = await driver.end_of(await driver.ask(Restore(host="a")))
        assert (end.state, end.policy) == (EvacuationState.INCOMPLETE, "")
        assert world.site.running("wild") == ["b"]

        # Whom the first restore left is brought home by the next.
        end = await driver.end_of(await driver.ask(Restore(host="a", policy="must-finish")))
        assert (end.state, end.policy) == (EvacuationState.COMPLETED, "must-finish")
        assert [each.standing for each in end.guests] == [GuestStanding.MOVED]
        assert world.site.running("wild") == ["a"]
        policies = [each.policy for each in await driver.queries.migrations(limit=9)]
        assert policies == ["must-finish", "gentle", "must-finish"]


async def test_policy_of_a_restore_is_known_to_whoever_goes_on_with_it(world: World) -> None:
    world.site.add_guest("wild", host="a", memory_bytes=8192 * MIB, workload=WILD)
    async with world.engine(killed=True) as driver:
        await driver.end_of(await driver.ask(Evacuate(host="a", policy="must-finish")))
        run = await driver.ask(Restore(host="a", policy="must-finish"))
    async with world.engine() as driver:
        end = await driver.end_of(evacuation_document(gentle(driver).engine.registry.evacuations[run.id]))
        assert (end.state, end.policy) == (EvacuationState.COMPLETED, "must-finish")
        assert world.site.running("wild") == ["a"]


async def test_restore_with_a_policy_that_is_not_there_begins_nothing(world: World) -> None:
    world.site.add_guest("vm", host="a")
    async with world.engine() as driver:
        await driver.end_of(await driver.ask(Evacuate(host="a")))
        with pytest.raises(Refusal, match="no-such-policy") as refused:
            await driver.ask(Restore(host="a", policy="no-such-policy"))
        assert refused.value.code == "invalid"
        assert [run.kind for run in driver.engine.registry.evacuations.values()] == ["evacuate"]
        assert driver.queries.host("a").state == "maintenance"


async def test_restore_with_nobody_to_bring_home_is_refused(world: World) -> None:
    world.site.add_guest("vm", host="a")
    async with world.engine() as driver:
        # Never evacuated; and evacuated, with everyone at home again.
        for _ in range(2):
            before = list(driver.engine.registry.evacuations)
            with pytest.raises(Refusal, match="a is active and there is nobody to bring home") as refused:
                await driver.ask(Restore(host="a"))
            assert refused.value.code == "conflict"
            assert "\n" not in str(refused.value)
            assert list(driver.engine.registry.evacuations) == before
            await driver.end_of(await driver.ask(Evacuate(host="a")))
            assert (await driver.end_of(await driver.ask(Restore(host="a")))).state == "completed"
        assert world.site.running("vm") == ["a"]


async def test_restore_ends_the_maintenance_of_a_host_that_was_empty(world: World) -> None:
    async with world.engine() as driver:
        await driver.end_of(await driver.ask(Evacuate(host="a")))
        assert driver.queries.host("a").state == "maintenance"
        end = await driver.end_of(await driver.ask(Restore(host="a")))
        assert (end.state, end.guests) == (EvacuationState.COMPLETED, [])
        assert driver.queries.host("a").state == "active"


async def test_guest_is_not_moved_to_where_it_is(world: World) -> None:
    world.site.add_guest("web", host="b")
    async with world.engine() as driver:
        with pytest.raises(Refusal, match=r"^web is on b already$") as refused:
            await driver.ask(Migrate(guest="web", to="b"))
        assert refused.value.code == "conflict"
        assert not driver.engine.registry.migrations
        assert await driver.queries.migrations(limit=9) == []
