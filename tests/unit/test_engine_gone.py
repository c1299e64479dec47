"""Hosts that go away for good while the engine moves guests, over a simulated site."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.core.model import State
from migrator.engine.commands import Evacuate
from migrator.engine.documents import EvacuationState, GuestStanding
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import Driver, World

pytestmark = pytest.mark.looptime


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for name in ("a", "b", "c"):
        world.site.add_host(name, link=20 * MIB)
    world.site.add_guest("db", host="a", workload=steady(256 * MIB, 1 * MIB))
    return world


async def copying(driver: Driver) -> str:
    """The target of the guest, which is on its way."""
    await driver.until(lambda: any(job.state is State.PRECOPY for job in driver.engine.jobs.values()))
    (job,) = driver.engine.jobs.values()
    return job.target


async def test_guest_goes_elsewhere_when_its_target_is_gone(world: World) -> None:
    async with world.engine() as driver:
        run = await driver.ask(Evacuate(host="a"), key="e1")
        target = await copying(driver)
        world.site.hosts[target].down = True
        world.site.hosts[target].into.bytes_per_second = 1.0  # nothing gets there any more
        ended = await driver.end_of(run)
    assert ended.state is EvacuationState.COMPLETED
    (guest,) = ended.guests
    assert guest.target not in ("a", target)
    assert world.site.running("db") == [guest.target]


async def test_source_that_is_lost_is_taken_up_again(world: World) -> None:
    async with world.engine() as driver:
        run = await driver.ask(Evacuate(host="a"), key="e1")
        await copying(driver)
        world.site.hosts["a"].down = True
        await driver.until(lambda: any(job.state is State.HELD for job in driver.engine.jobs.values()), 200)
        (job,) = driver.engine.jobs.values()
        (entry,) = driver.engine.runs[run.id].entries.values()
        assert entry.standing is GuestStanding.HELD
        assert not job.ended
        world.site.hosts["a"].down = False
        ended = await driver.end_of(run)
    assert ended.state is EvacuationState.COMPLETED
    assert job.state is State.FAILED
    (guest,) = ended.guests
    assert world.site.running("db") == [guest.target]
    assert guest.target != "a"
