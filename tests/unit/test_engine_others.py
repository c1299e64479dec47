"""A host is not empty while a guest is on its way there; over a simulated site."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.api.commands import Cancel, Evacuate, Migrate, Plan
from migrator.api.plan_documents import PlanDocument
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=100 * MIB)
    service.site.add_guest("vm", host="a", memory_bytes=4096 * MIB, workload=steady(16 * MIB, 1 * MIB))
    return service


async def test_evacuation_waits_for_a_guest_that_comes_and_moves_it_on(service: SimulatedService) -> None:
    async with service.running() as running:
        move = await running.ask(Migrate(guest="vm", to="b"))
        plan = await running.ask(Plan(host="b"))
        assert isinstance(plan, PlanDocument)
        assert (plan.cannot_move, [each.code for each in plan.guests[0].findings]) == (1, ["arriving"])

        run = await running.ask(Evacuate(host="b"))
        assert [each.standing for each in run.guests] == [GuestStanding.SET_ASIDE]
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert [(each.standing, each.target) for each in end.guests] == [
            (GuestStanding.MOVED, service.site.running("vm")[0])
        ]
        assert service.site.running("vm") != ["b"]
        assert (await running.queries.migration(move.id)).state == "completed"


async def test_guest_that_was_on_its_way_and_did_not_come_is_waited_for_no_longer(
    service: SimulatedService,
) -> None:
    async with service.running() as running:
        move = await running.ask(Migrate(guest="vm", to="b"))
        run = await running.ask(Evacuate(host="b"))
        await running.ask(Cancel(target=move.id))
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert [each.standing for each in end.guests] == [GuestStanding.GONE]
        assert service.site.running("vm") == ["a"]


async def test_guest_whose_earlier_migration_is_held_is_left_for_a_person(service: SimulatedService) -> None:
    async with service.running(killed=True) as running:
        move = await running.ask(Migrate(guest="vm", to="b"))
        await running.until(lambda: running.engine.registry.migrations[move.id].state is State.PRECOPY)
    for record in service.directory.rglob("*.jsonl"):
        record.unlink()
    async with service.running() as running:
        assert running.engine.registry.migrations[move.id].state is State.HELD
        for host in ("a", "b"):
            end = await running.end_of(await running.ask(Evacuate(host=host)))
            assert end.state is EvacuationState.INCOMPLETE
            assert f"its migration {move.id}" in str(end.error)
        assert service.site.running("vm") == ["a"]
