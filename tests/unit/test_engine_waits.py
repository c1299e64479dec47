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
from migrator.testing.simulated_service import SimulatedService
from tests.unit.test_engine import fill

pytestmark = pytest.mark.looptime

BACKUP = DiskUsers(jobs=(BlockJob(id="nightly", kind="backup"),))


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name)
    return service


async def test_guest_under_backup_waits_and_says_for_what_while_the_others_go(
    service: SimulatedService,
) -> None:
    names = fill(service, 3)
    (saved,) = [each for each in service.site.machines.values() if each.name == names[0]]
    saved.disk_users = BACKUP
    async with service.running() as running:
        late = datetime.now(UTC) + timedelta(days=1)
        run = await running.ask(Evacuate(host="a", deadline=late))
        await running.until(
            lambda: sum(job.ended for job in running.engine.registry.migrations.values()) == 2
        )
        (waiting,) = [job for job in running.engine.registry.migrations.values() if not job.ended]
        assert service.site.running(names[1]) == service.site.running(names[2]) == ["b"]
        await running.until(lambda: waiting.state is State.WAITING)  # it may be looked at again just now
        assert waiting.document().waiting_for == "backup nightly"
        assert service.site.running(names[0]) == ["a"]
        await running.until(
            lambda: running.run(run.id).at_risk
        )  # nobody knows when the backup will have ended
        live = running.run(run.id)
        told = next(each for each in evacuation_document(live).guests if each.guest_name == names[0])
        assert told.takes_seconds is not None, "it is part of the forecast"
        assert evacuation_document(live).forecast_end_at is not None
        saved.disk_users = DiskUsers()
        assert (await running.end_of(run)).state is EvacuationState.COMPLETED
        assert waiting.document().waiting_for == ""


async def test_one_that_waits_is_cancelled_at_once(service: SimulatedService) -> None:
    (name,) = fill(service, 1)
    (machine,) = service.site.machines.values()
    machine.disk_users = DiskUsers(exports=(Export(id="fleece", kind="nbd", node="disk0"),))
    async with service.running() as running:
        one = await running.ask(Migrate(guest=name, to="b"))
        job = running.engine.registry.migrations[one.id]
        await running.until(lambda: job.state is State.WAITING)
        await running.ask(Cancel(target=one.id))
        await running.until(lambda: job.ended, 2)
        assert (job.state, service.site.running(name)) == (State.CANCELLED, ["a"])


async def test_a_deadline_that_stops_does_not_wait_on(service: SimulatedService) -> None:
    fill(service, 1)
    (machine,) = service.site.machines.values()
    machine.disk_users = BACKUP
    async with service.running() as running:
        soon = datetime.now(UTC) + timedelta(seconds=1)
        run = await running.ask(Evacuate(host="a", deadline=soon, on_deadline="stop"))
        end = await running.end_of(run)
        assert (end.state, end.guests_left) == (EvacuationState.STOPPED, 1)


async def test_no_longer_than_max_duration(service: SimulatedService) -> None:
    (name,) = fill(service, 1)
    (machine,) = service.site.machines.values()
    machine.disk_users = BACKUP
    async with service.running() as running:
        short = builtin("default").but(max_duration_seconds=5.0)
        running.engine.rules = replace(running.engine.rules, policy=lambda name: short)
        one = await running.ask(Migrate(guest=name, to="b"))
        job = running.engine.registry.migrations[one.id]
        await running.until(lambda: job.ended, 10)
        assert job.state is State.FAILED
        assert "backup nightly did not end within" in (job.result.error or "")


async def test_one_that_waited_when_the_controller_was_killed_waits_again(service: SimulatedService) -> None:
    (name,) = fill(service, 1)
    (machine,) = service.site.machines.values()
    machine.disk_users = BACKUP
    async with service.running(killed=True) as running:
        one = await running.ask(Migrate(guest=name, to="b"))
        await running.until(lambda: running.engine.registry.migrations[one.id].state is State.WAITING)
    async with service.running() as running:
        job = running.engine.registry.migrations[one.id]
        await running.until(lambda: job.state is State.WAITING)
        machine.disk_users = DiskUsers()
        await running.until(lambda: job.ended)
        assert (job.state, service.site.running(name)) == (State.COMPLETED, ["b"])
