"""The engine over a simulated site, with guests on whose disks something works."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from migrator.api.commands import Cancel, Evacuate, Migrate
from migrator.core.drain.states import EvacuationState
from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.core.preflight.non_migrated_state import BlockJob, DiskUsers, Export
from migrator.engine.evacuation_documents import evacuation_document
from tests.unit.test_engine import World, fill

pytestmark = pytest.mark.looptime

BACKUP = DiskUsers(jobs=(BlockJob(id="nightly", kind="backup"),))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for name in ("a", "b"):
        world.site.add_host(name)
    return world


async def test_guest_under_backup_waits_and_says_for_what_while_the_others_go(world: World) -> None:
    names = fill(world, 3)
    (saved,) = [each for each in world.site.machines.values() if each.name == names[0]]
    saved.disk_users = BACKUP
    async with world.engine() as driver:
        late = datetime.now(UTC) + timedelta(days=1)
        run = await driver.ask(Evacuate(host="a", deadline=late))
        await driver.until(lambda: sum(job.ended for job in driver.engine.registry.migrations.values()) == 2)
        (waiting,) = [job for job in driver.engine.registry.migrations.values() if not job.ended]
        assert world.site.running(names[1]) == world.site.running(names[2]) == ["b"]
        await driver.until(lambda: waiting.state is State.WAITING)  # it may be looked at again just now
        assert waiting.document().waiting_for == "backup nightly"
        assert world.site.running(names[0]) == ["a"]
        await driver.until(lambda: driver.run(run.id).at_risk)  # nobody knows when the backup will have ended
        live = driver.run(run.id)
        told = next(each for each in evacuation_document(live).guests if each.guest_name == names[0])
        assert told.takes_seconds is not None, "it is part of the forecast"
        assert evacuation_document(live).forecast_end_at is not None
        saved.disk_users = DiskUsers()
        assert (await driver.end_of(run)).state is EvacuationState.COMPLETED
        assert waiting.document().waiting_for == ""


async def test_one_that_waits_is_cancelled_at_once(world: World) -> None:
    (name,) = fill(world, 1)
    (machine,) = world.site.machines.values()
    machine.disk_users = DiskUsers(exports=(Export(id="fleece", kind="nbd", node="disk0"),))
    async with world.engine() as driver:
        one = await driver.ask(Migrate(guest=name, to="b"))
        job = driver.engine.registry.migrations[one.id]
        await driver.until(lambda: job.state is State.WAITING)
        await driver.ask(Cancel(target=one.id))
        await driver.until(lambda: job.ended, 2)
        assert (job.state, world.site.running(name)) == (State.CANCELLED, ["a"])


async def test_a_deadline_that_stops_does_not_wait_on(world: World) -> None:
    fill(world, 1)
    (machine,) = world.site.machines.values()
    machine.disk_users = BACKUP
    async with world.engine() as driver:
        soon = datetime.now(UTC) + timedelta(seconds=1)
        run = await driver.ask(Evacuate(host="a", deadline=soon, on_deadline="stop"))
        end = await driver.end_of(run)
        assert (end.state, end.guests_left) == (EvacuationState.STOPPED, 1)


async def test_no_longer_than_max_duration(world: World) -> None:
    (name,) = fill(world, 1)
    (machine,) = world.site.machines.values()
    machine.disk_users = BACKUP
    async with world.engine() as driver:
        short = builtin("default").but(max_duration_seconds=5.0)
        driver.engine.rules = replace(driver.engine.rules, policy=lambda name: short)
        one = await driver.ask(Migrate(guest=name, to="b"))
        job = driver.engine.registry.migrations[one.id]
        await driver.until(lambda: job.ended, 10)
        assert job.state is State.FAILED
        assert "backup nightly did not end within" in (job.result.error or "")


async def test_one_that_waited_when_the_controller_was_killed_waits_again(world: World) -> None:
    (name,) = fill(world, 1)
    (machine,) = world.site.machines.values()
    machine.disk_users = BACKUP
    async with world.engine(killed=True) as driver:
        one = await driver.ask(Migrate(guest=name, to="b"))
        await driver.until(lambda: driver.engine.registry.migrations[one.id].state is State.WAITING)
    async with world.engine() as driver:
        job = driver.engine.registry.migrations[one.id]
        await driver.until(lambda: job.state is State.WAITING)
        machine.disk_users = DiskUsers()
        await driver.until(lambda: job.ended)
        assert (job.state, world.site.running(name)) == (State.COMPLETED, ["b"])
