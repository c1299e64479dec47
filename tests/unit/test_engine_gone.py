"""Hosts that go away for good while the engine moves guests, over a simulated site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Evacuate
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.errors import HostError
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=20 * MIB)
    service.site.add_guest("db", host="a", workload=steady(256 * MIB, 1 * MIB))
    return service


async def copying(running: RunningEngine) -> str:
    """The target of the guest, which is on its way."""
    await running.until(lambda: any(job.state is State.PRECOPY for job in running.sessions()))
    (job,) = running.engine.registry.migrations.values()
    return job.target


async def test_guest_goes_elsewhere_when_its_target_is_gone(service: SimulatedService) -> None:
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a"), key="e1")
        target = await copying(running)
        service.site.hosts[target].down = True
        service.site.hosts[target].into.bytes_per_second = 1.0  # nothing gets there any more
        ended = await running.end_of(run)
    assert ended.state is EvacuationState.COMPLETED
    (guest,) = ended.guests
    assert guest.target not in ("a", target)
    assert service.site.running("db") == [guest.target]


async def test_source_that_is_lost_is_taken_up_again(service: SimulatedService) -> None:
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a"), key="e1")
        await copying(running)
        service.site.hosts["a"].down = True
        await running.until(lambda: any(job.state is State.HELD for job in running.sessions()), 200)
        (job,) = running.engine.registry.migrations.values()
        (entry,) = running.engine.registry.evacuations[run.id].entries.values()
        assert entry.standing is GuestStanding.HELD
        assert not job.ended
        service.site.hosts["a"].down = False
        ended = await running.end_of(run)
    assert ended.state is EvacuationState.COMPLETED
    assert job.state is State.FAILED
    (guest,) = ended.guests
    assert service.site.running("db") == [guest.target]
    assert guest.target != "a"


async def test_target_that_cannot_even_be_opened_holds_what_a_controller_takes_up(
    service: SimulatedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is no longer in the configuration."""
    async with service.running(killed=True) as running:
        await running.ask(Evacuate(host="a"), key="e1")
        target = await copying(running)
    plain = service.site.open

    async def without(host: str, socket: str, **how: Any) -> Any:
        if host == target:
            raise HostError(host, "it is not in the configuration")
        return await plain(host, socket, **how)

    monkeypatch.setattr(service.site, "open", without)
    async with service.running() as running:
        (job,) = running.engine.registry.migrations.values()
        await running.until(lambda: job.state is State.HELD)
        assert job.result.held_code == "not-reachable"
        assert "not in the configuration" in str(job.result.error)
        assert service.site.running("db") == ["a"]
        monkeypatch.undo()
        await running.until(lambda: job.ended or job.state is not State.HELD, 300)
