"""Hosts that shall get no new guests: nobody is moved, nobody is brought there, whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.api.commands import Activate, Cancel, Cordon, Evacuate, Migrate, Plan, Restore, Uncordon
from migrator.api.replies import Refusal
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Host
from migrator.testing.simulated_service import RunningEngine, SimulatedService

pytestmark = pytest.mark.looptime
MIB = 1 << 20


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=1000 * MIB)
    service.site.add_guest("vm-1", host="a")
    return service


def _host(running: RunningEngine, name: str) -> Host:
    host = running.engine.inventory.host(name)
    assert host is not None
    return host


async def test_nobody_goes_to_a_cordoned_host_and_nobody_leaves_it(service: SimulatedService) -> None:
    service.site.add_guest("vm-2", host="b")
    async with service.running() as running:
        answer = await running.ask(Cordon(host="b"))
        assert answer.cordoned
        assert answer.state == "active"
        plan = await running.ask(Plan(host="a"))
        assert [guest.target for guest in plan.guests] == ["c"]
        await running.end_of(await running.ask(Evacuate(host="a")))
    assert service.site.running("vm-1") == ["c"]
    assert service.site.running("vm-2") == ["b"]


async def test_without_another_host_the_reason_names_it(service: SimulatedService) -> None:
    async with service.running() as running:
        for name in ("b", "c"):
            await running.ask(Cordon(host=name))
        plan = await running.ask(Plan(host="a"))
        assert plan.guests[0].reason == "2 other hosts: 2 are cordoned"
        with pytest.raises(Refusal, match="it is cordoned: migrator uncordon b lets guests come"):
            await running.ask(Migrate(guest="vm-1", to="b"))


async def test_it_holds_over_a_restart_and_the_same_again_does_nothing(service: SimulatedService) -> None:
    async with service.running(killed=True) as running:
        await running.ask(Cordon(host="b"))
    async with service.running() as running:
        assert _host(running, "b").cordoned
        assert (await running.ask(Cordon(host="b"))).cordoned
        assert not (await running.ask(Uncordon(host="b"))).cordoned
        assert not (await running.ask(Uncordon(host="b"))).cordoned
    async with service.running() as running:
        assert not _host(running, "b").cordoned


async def test_it_stays_through_an_evacuation_of_it_and_its_guests_do_not_come_home(
    service: SimulatedService,
) -> None:
    async with service.running() as running:
        await running.ask(Cordon(host="a"))
        await running.end_of(await running.ask(Evacuate(host="a")))
        with pytest.raises(
            Refusal, match="a is cordoned, so no guest comes there: migrator uncordon a first"
        ):
            await running.ask(Restore(host="a"))
        activated = await running.ask(Activate(host="a"))
        assert (activated.state, activated.cordoned) == ("active", True)
        await running.ask(Uncordon(host="a"))
        await running.end_of(await running.ask(Restore(host="a")))
    assert service.site.running("vm-1") == ["a"]


async def test_guests_that_wait_for_it_are_told_so(service: SimulatedService) -> None:
    service.site.hosts["b"].refuses = service.site.hosts["c"].refuses = ""
    async with service.running() as running:
        away = await running.end_of(await running.ask(Evacuate(host="a")))
        assert away.state is EvacuationState.COMPLETED
        service.site.hosts["a"].refuses = "no space left on device"
        back = await running.ask(Restore(host="a"))
        await running.ask(Cordon(host="a"))
        end = await running.end_of(back)
        assert end.state is EvacuationState.INCOMPLETE
        assert end.guests[0].standing is GuestStanding.NO_TARGET
        assert end.guests[0].reason == "only a was asked for: 1 is cordoned"


async def test_a_cancelled_evacuation_leaves_it_cordoned(service: SimulatedService) -> None:
    async with service.running() as running:
        await running.ask(Cordon(host="a"))
        begun = await running.ask(Evacuate(host="a"))
        await running.ask(Cancel(target=begun.id))
        await running.end_of(begun)
        host = _host(running, "a")
        assert (host.state, host.cordoned) == ("active", True)


async def test_a_host_that_there_is_not_is_refused(service: SimulatedService) -> None:
    async with service.running() as running:
        with pytest.raises(Refusal, match="there is no host x"):
            await running.ask(Cordon(host="x"))
