"""The engine over a simulated site, with a policy that waits for its guests to write little."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from migrator.api.commands import Cancel, Evacuate, Migrate, Plan
from migrator.api.plan_documents import PlanDocument
from migrator.core.model import State
from migrator.core.policy import Start, builtin
from migrator.engine import clock
from migrator.engine.guest_experiences import KIND
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, Workload, idle, steady
from tests.unit.test_engine import fill

pytestmark = pytest.mark.looptime

BUSY = steady(64 * MIB, 30 * MIB)


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name)
    return service


def wait_for_quiet(running: RunningEngine) -> None:
    """Let every policy wait for its guest to write little."""
    quiet = builtin("default").but(start=Start.QUIET)
    running.engine.rules = replace(running.engine.rules, policy=lambda name: quiet)


def works(service: SimulatedService, workload: Workload) -> None:
    for machine in service.site.machines.values():
        machine.workload = workload


async def test_a_busy_guest_waits_says_till_when_and_goes_once_it_is_quiet(service: SimulatedService) -> None:
    (name,) = fill(service, 1)
    works(service, BUSY)
    async with service.running() as running:
        wait_for_quiet(running)
        one = await running.ask(Migrate(guest=name, to="b"))
        job = running.engine.registry.migrations[one.id]
        await running.until(lambda: job.state is State.WAITING)
        assert "at the latest" in job.document().waiting_for
        assert service.site.running(name) == ["a"]
        works(service, idle())
        await running.until(lambda: job.ended)
        assert job.state is State.COMPLETED
        assert any(each.action == "quiet-start" for each in job.result.decisions)
        kept = await running.engine.journal_writer.journal.unfinished(KIND)
        assert kept[0]["last_move"]["destination"] == "b"


async def test_a_plan_shows_how_its_guests_were_moved_before(service: SimulatedService) -> None:
    (name,) = fill(service, 1)
    async with service.running() as running:
        job = running.engine.registry.migrations[(await running.ask(Migrate(guest=name, to="b"))).id]
        await running.until(lambda: job.ended)
        plan = await running.ask(Plan(host="b"))
    async with service.running() as running:
        again = await running.ask(Plan(host="b"))
    for each in (plan, again):
        assert isinstance(each, PlanDocument)
        known = each.guests[0].experience
        assert known is not None
        assert known.last_move_downtime_seconds == job.result.downtime_seconds
        assert known.last_move_seconds == pytest.approx(job.result.duration_seconds, abs=0.001)
        assert known.note.startswith("last moved ")


async def test_one_that_waits_is_cancelled_at_once_and_stays(service: SimulatedService) -> None:
    (name,) = fill(service, 1)
    works(service, BUSY)
    async with service.running() as running:
        wait_for_quiet(running)
        one = await running.ask(Migrate(guest=name, to="b"))
        job = running.engine.registry.migrations[one.id]
        await running.until(lambda: job.state is State.WAITING)
        await running.ask(Cancel(target=one.id))
        await running.until(lambda: job.ended)
        assert job.state is State.CANCELLED
        assert service.site.running(name) == ["a"]


async def test_the_deadline_of_an_evacuation_is_not_endangered(
    service: SimulatedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = fill(service, 1)
    # The loop's clock began somewhere: let it tell the time of day as well.
    began = time.time() - clock.now()
    monkeypatch.setattr(clock, "wall", lambda: began + clock.now())
    works(service, BUSY)
    async with service.running() as running:
        wait_for_quiet(running)
        soon = datetime.now(UTC) + timedelta(seconds=200)
        run = await running.ask(Evacuate(host="a", deadline=soon))
        await running.end_of(run)
        assert service.site.running(name) == ["b"]
        (job,) = running.engine.registry.migrations.values()
        (said,) = [each for each in job.result.decisions if each.action == "quiet-start"]
        assert "last safe start" in said.reason


async def test_one_that_waited_when_its_controller_was_killed_waits_again_and_goes(
    service: SimulatedService,
) -> None:
    (name,) = fill(service, 1)
    works(service, BUSY)
    async with service.running(killed=True) as running:
        wait_for_quiet(running)
        one = await running.ask(Migrate(guest=name, to="b"))
        await running.until(lambda: running.engine.registry.migrations[one.id].state is State.WAITING)
    async with service.running() as running:
        job = running.engine.registry.migrations[one.id]
        await running.until(lambda: job.state is State.WAITING)
        assert job.policy.start is Start.QUIET
        works(service, idle())
        await running.until(lambda: job.ended)
        assert service.site.running(name) == ["b"]
