"""Hosts that go away for good while the engine moves guests, over a simulated site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Evacuate
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.errors import HostError
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
    await driver.until(lambda: any(job.state is State.PRECOPY for job in driver.sessions()))
    (job,) = driver.engine.registry.migrations.values()
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
        await driver.until(lambda: any(job.state is State.HELD for job in driver.sessions()), 200)
        (job,) = driver.engine.registry.migrations.values()
        (entry,) = driver.engine.registry.evacuations[run.id].entries.values()
        assert entry.standing is GuestStanding.HELD
        assert not job.ended
        world.site.hosts["a"].down = False
        ended = await driver.end_of(run)
    assert ended.state is EvacuationState.COMPLETED
    assert job.state is State.FAILED
    (guest,) = ended.guests
    assert world.site.running("db") == [guest.target]
    assert guest.target != "a"


async def test_target_that_cannot_even_be_opened_holds_what_a_controller_takes_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is no longer in the configuration."""
    async with world.engine(killed=True) as driver:
        await driver.ask(Evacuate(host="a"), key="e1")
        target = await copying(driver)
    plain = world.site.open

    async def without(host: str, socket: str, **how: Any) -> Any:
        if host == target:
            raise HostError(host, "it is not in the configuration")
        return await plain(host, socket, **how)

    monkeypatch.setattr(world.site, "open", without)
    async with world.engine() as driver:
        (job,) = driver.engine.registry.migrations.values()
        await driver.until(lambda: job.state is State.HELD)
        assert job.result.held_code == "not-reachable"
        assert "not in the configuration" in str(job.result.error)
        assert world.site.running("db") == ["a"]
        monkeypatch.undo()
        await driver.until(lambda: job.ended or job.state is not State.HELD, 300)
