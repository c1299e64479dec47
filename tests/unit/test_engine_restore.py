"""Who is brought home, under which policy, and when nobody is; over a simulated site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Activate, Evacuate, Migrate, Restore
from migrator.api.events import HostStateChanged
from migrator.api.replies import Refusal
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.policy import Policy, builtin
from migrator.engine.evacuation_documents import evacuation_document
from migrator.settings.models import LimitsSettings
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime

#: More than its link carries: nothing that ``gentle`` allows ends that.
WILD = steady(4096 * MIB, 2000 * MIB)


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name, link=1000 * MIB)
    return service


def gentle(running: RunningEngine) -> RunningEngine:
    """Where nobody says otherwise, and with one attempt only."""
    rules = running.engine.rules
    running.engine.rules = replace(rules, default_policy="gentle", limits=LimitsSettings(attempts=1))
    return running


async def test_restore_takes_the_policy_that_it_is_given(service: SimulatedService) -> None:
    service.site.add_guest("wild", host="a", memory_bytes=8192 * MIB, workload=WILD)
    async with service.running() as running:
        gentle(running)
        end = await running.end_of(await running.ask(Evacuate(host="a", policy="must-finish")))
        assert end.state is EvacuationState.COMPLETED
        assert service.site.running("wild") == ["b"]

        end = await running.end_of(await running.ask(Restore(host="a", policy="gentle")))
        assert (end.state, end.policy) == (EvacuationState.INCOMPLETE, "gentle")
        assert service.site.running("wild") == ["b"]

        # Whom the first restore left is brought home by the next.
        end = await running.end_of(await running.ask(Restore(host="a", policy="must-finish")))
        assert (end.state, end.policy) == (EvacuationState.COMPLETED, "must-finish")
        assert [each.standing for each in end.guests] == [GuestStanding.MOVED]
        assert service.site.running("wild") == ["a"]
        policies = [each.policy for each in await running.queries.migrations(limit=9)]
        assert policies == ["must-finish", "gentle", "must-finish"]


async def test_guests_go_home_by_the_policy_that_they_came_by(service: SimulatedService) -> None:
    service.site.add_guest("wild", host="a", memory_bytes=8192 * MIB, workload=WILD)
    async with service.running() as running:
        gentle(running)
        await running.end_of(await running.ask(Evacuate(host="a", policy="must-finish")))
        end = await running.end_of(await running.ask(Restore(host="a")))
        assert (end.state, end.policy) == (EvacuationState.COMPLETED, "must-finish")
        assert service.site.running("wild") == ["a"]


async def test_guests_that_came_by_several_policies_go_home_each_by_its_own_also_after_a_crash(
    service: SimulatedService,
) -> None:
    service.site.add_guest("wild", host="a", memory_bytes=8192 * MIB, workload=WILD)
    async with service.running(killed=True) as running:
        gentle(running)
        await running.end_of(await running.ask(Evacuate(host="a", policy="must-finish")))
        await running.ask(Activate(host="a"))
        service.site.add_guest("calm", host="a")
        await running.engine.inventory.look_at_all()
        await running.end_of(await running.ask(Evacuate(host="a")))
        run = await running.ask(Restore(host="a"))
        assert run.policy == ""
    async with service.running() as running:
        gentle(running)
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        home = [each for each in await running.queries.migrations(limit=9) if each.evacuation == run.id]
        assert {each.guest_name: each.policy for each in home} == {"wild": "must-finish", "calm": "gentle"}


async def test_who_would_come_home_and_how_is_said_before_and_nothing_is_begun(
    service: SimulatedService,
) -> None:
    for name in ("one", "two"):
        service.site.add_guest(name, host="a")
    async with service.running() as running:
        await running.end_of(await running.ask(Evacuate(host="a", policy="offline")))
        await running.ask(Activate(host="a"))
        service.site.add_guest("late", host="a")
        await running.engine.inventory.look_at_all()
        await running.end_of(await running.ask(Evacuate(host="a")))
        before = list(running.engine.registry.evacuations)

        async def said(**asked: Any) -> dict[str, int]:
            found = await running.ask(Restore(host="a", dry_run=True, **asked))
            assert found.guests == sum(each.guests for each in found.policies)
            for each in found.policies:
                assert bool(each.allows) == bool(each.policy)
            return {each.policy: each.guests for each in found.policies}

        assert await said() == {"": 1, "offline": 2}
        assert await said(policy="gentle") == {"gentle": 3}
        assert await said(evacuation=before[0]) == {"offline": 2}
        assert list(running.engine.registry.evacuations) == before
        assert running.queries.host("a").state == "maintenance"

        await running.end_of(await running.ask(Restore(host="a")))
        with pytest.raises(Refusal, match="nobody to bring home"):
            await running.ask(Restore(host="a", dry_run=True))


async def test_a_policy_that_guests_came_by_and_that_is_gone_is_asked_for(service: SimulatedService) -> None:
    service.site.add_guest("vm", host="a")

    def policy(name: str) -> Policy:
        return builtin("cold" if name == "ours" else name)

    async with service.running() as running:
        running.engine.rules = replace(running.engine.rules, policy=policy)
        await running.end_of(await running.ask(Evacuate(host="a", policy="ours")))
        running.engine.rules = replace(running.engine.rules, policy=builtin)
        with pytest.raises(Refusal, match=r"left a by the policy ours.*migrator restore a --policy NAME"):
            await running.ask(Restore(host="a"))
        end = await running.end_of(await running.ask(Restore(host="a", policy="default")))
        assert end.state is EvacuationState.COMPLETED


async def test_policy_of_a_restore_is_known_to_whoever_goes_on_with_it(service: SimulatedService) -> None:
    service.site.add_guest("wild", host="a", memory_bytes=8192 * MIB, workload=WILD)
    async with service.running(killed=True) as running:
        await running.end_of(await running.ask(Evacuate(host="a", policy="must-finish")))
        run = await running.ask(Restore(host="a", policy="must-finish"))
    async with service.running() as running:
        end = await running.end_of(evacuation_document(gentle(running).engine.registry.evacuations[run.id]))
        assert (end.state, end.policy) == (EvacuationState.COMPLETED, "must-finish")
        assert service.site.running("wild") == ["a"]


async def test_restore_with_a_policy_that_is_not_there_begins_nothing(service: SimulatedService) -> None:
    service.site.add_guest("vm", host="a")
    async with service.running() as running:
        await running.end_of(await running.ask(Evacuate(host="a")))
        with pytest.raises(Refusal, match="no-such-policy") as refused:
            await running.ask(Restore(host="a", policy="no-such-policy"))
        assert refused.value.code == "invalid"
        assert [run.kind for run in running.engine.registry.evacuations.values()] == ["evacuate"]
        assert running.queries.host("a").state == "maintenance"


async def test_restore_with_nobody_to_bring_home_is_refused(service: SimulatedService) -> None:
    service.site.add_guest("vm", host="a")
    async with service.running() as running:
        # Never evacuated; and evacuated, with everyone at home again.
        for _ in range(2):
            before = list(running.engine.registry.evacuations)
            with pytest.raises(Refusal, match="a is active and there is nobody to bring home") as refused:
                await running.ask(Restore(host="a"))
            assert refused.value.code == "conflict"
            assert "\n" not in str(refused.value)
            assert list(running.engine.registry.evacuations) == before
            await running.end_of(await running.ask(Evacuate(host="a")))
            assert (await running.end_of(await running.ask(Restore(host="a")))).state == "completed"
        assert service.site.running("vm") == ["a"]


async def test_restore_ends_the_maintenance_of_a_host_that_was_empty(service: SimulatedService) -> None:
    async with service.running() as running:
        await running.end_of(await running.ask(Evacuate(host="a")))
        assert running.queries.host("a").state == "maintenance"
        end = await running.end_of(await running.ask(Restore(host="a")))
        assert (end.state, end.guests) == (EvacuationState.COMPLETED, [])
        assert running.queries.host("a").state == "active"


@pytest.mark.parametrize(("error", "known"), [("", 2), ("libvirt does not answer", None)])
async def test_an_evacuation_that_has_ended_says_what_its_host_keeps_shut_off(
    service: SimulatedService, error: str, known: int | None
) -> None:
    host = service.site.hosts["a"]
    host.shut_off_guests, host.libvirt_error = 2, error
    service.site.add_guest("web", host="a")
    async with service.running() as running:
        begun = await running.ask(Evacuate(host="a"))
        assert begun.guests_shut_off == 0  # they are counted when it ends
        end = await running.end_of(begun)
        assert (end.state, end.guests_left, end.guests_shut_off) == (EvacuationState.COMPLETED, 0, known)
        host.shut_off_guests = 0
        home = await running.end_of(await running.ask(Restore(host="a")))
        assert (home.state, home.guests_shut_off) == (EvacuationState.COMPLETED, 0)
    async with service.running() as running:
        assert (await running.queries.evacuation(begun.id)).guests_shut_off == known


async def test_everyone_is_told_when_guests_of_a_host_are_shut_off(service: SimulatedService) -> None:
    async with service.running() as running:
        told: list[int] = []
        running.engine.bus.subscribe(
            lambda event: (
                told.append(event.host.guests_shut_off)
                if isinstance(event, HostStateChanged) and event.host.host == "a"
                else None
            )
        )
        service.site.hosts["a"].shut_off_guests = 3
        await running.until(lambda: 3 in told, 120)


async def test_guest_is_not_moved_to_where_it_is(service: SimulatedService) -> None:
    service.site.add_guest("web", host="b")
    async with service.running() as running:
        with pytest.raises(Refusal, match=r"^web is on b already$") as refused:
            await running.ask(Migrate(guest="web", to="b"))
        assert refused.value.code == "conflict"
        assert not running.engine.registry.migrations
        assert await running.queries.migrations(limit=9) == []
