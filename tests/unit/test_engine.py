"""The engine over a simulated site: evacuations from the command to an empty host, and every way that goes wrong."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Cancel, Check, Evacuate, Migrate, Plan, Restore
from migrator.api.events import (
    EvacuationStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
)
from migrator.api.queries import MigrationFilter
from migrator.api.replies import Refusal
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import HostState
from migrator.core.model import Finding, Severity, State
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=1000 * MIB)
    return service


def fill(service: SimulatedService, count: int = 6, **how) -> list[str]:
    names = [f"vm-{number}" for number in range(count)]
    for name in names:
        service.site.add_guest(name, host="a", **how)
    return names


async def test_host_is_emptied_and_put_in_maintenance(service: SimulatedService) -> None:
    names = fill(service, workload=steady(64 * MIB, 5 * MIB))
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a"))
        assert running.queries.host("a").state is HostState.DRAINING
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert end.guests_left == 0
        assert running.queries.host("a").state is HostState.MAINTENANCE
        for name in names:
            assert service.site.running(name) in (["b"], ["c"])
        migrations = await running.queries.migrations(limit=50, where=MigrationFilter(evacuation=run.id))
        assert [each.state for each in migrations] == [State.COMPLETED] * len(names)
        assert all(each.downtime_seconds < each.max_downtime_seconds for each in migrations)


async def test_restore_brings_the_same_guests_home(service: SimulatedService) -> None:
    names = fill(service, 3)
    service.site.add_guest("stranger", host="b")
    async with service.running() as running:
        await running.end_of(await running.ask(Evacuate(host="a")))
        await running.engine.inventory.look_at_all()
        end = await running.end_of(await running.ask(Restore(host="a")))
        assert end.state is EvacuationState.COMPLETED
        assert [service.site.running(name) for name in names] == [["a"]] * 3
        assert service.site.running("stranger") == ["b"]
        assert running.queries.host("a").state is HostState.ACTIVE


async def test_guest_that_cannot_move_is_left_with_its_reason_and_the_others_go(
    service: SimulatedService,
) -> None:
    fill(service, 2)
    service.site.add_guest("passthrough", host="a", obstacle="a VFIO device cannot be migrated")
    async with service.running() as running:
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.INCOMPLETE
        assert end.guests_left == 1
        assert "passthrough: a VFIO device" in end.error
        assert running.queries.host("a").state is HostState.DRAINING
        assert service.site.running("passthrough") == ["a"]


async def test_failed_start_is_tried_on_another_host(service: SimulatedService) -> None:
    fill(service, 2)
    service.site.hosts["b"].refuses = "no space left on device"
    async with service.running() as running:
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.COMPLETED
        assert {each.target for each in end.guests} == {"c"}


async def test_nothing_is_tried_without_end(service: SimulatedService) -> None:
    fill(service, 1)
    for host in ("b", "c"):
        service.site.hosts[host].refuses = "no space left on device"
    async with service.running() as running:
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.INCOMPLETE
        (guest,) = end.guests
        assert guest.standing is GuestStanding.SET_ASIDE
        assert "no space left" in guest.reason
        assert sum(service.site.started.values()) <= 5
        assert service.site.running("vm-0") == ["a"]


async def test_no_room_is_said_at_once_and_used_when_it_appears(service: SimulatedService) -> None:
    fill(service, 1, memory_bytes=128 << 30)
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a"))
        await running.until(
            lambda: running.queries.active_evacuations()[0].guests[0].standing is GuestStanding.NO_TARGET, 5
        )
        assert "too little memory" in running.queries.active_evacuations()[0].guests[0].reason
        service.site.hosts["c"].memory_bytes = 256 << 30
        await running.engine.inventory.look("c")
        assert (await running.end_of(run)).state is EvacuationState.COMPLETED


async def test_new_guest_on_a_draining_host_is_taken_too(service: SimulatedService) -> None:
    fill(service, 3, workload=steady(256 * MIB, 5 * MIB))
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a"))
        service.site.add_guest("late", host="a")
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert service.site.running("late") != ["a"]


async def test_cancel_leaves_every_guest_running_somewhere(service: SimulatedService) -> None:
    names = fill(service, 8, workload=steady(400 * MIB, 20 * MIB), memory_bytes=1024 * MIB)
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a"))
        await running.until(
            lambda: any(each.state is State.PRECOPY for each in running.queries.active_migrations())
        )
        await running.ask(Cancel(target=run.id))
        end = await running.end_of(run)
        assert end.state is EvacuationState.CANCELLED
        assert running.queries.host("a").state is HostState.ACTIVE
        for name in names:
            assert len(service.site.running(name)) == 1
        assert any(service.site.running(name) == ["a"] for name in names)


async def test_deadline_stop_starts_nothing_more(service: SimulatedService) -> None:
    names = fill(service, 12, workload=steady(400 * MIB, 20 * MIB), memory_bytes=1024 * MIB)
    for host in service.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 50 * MIB
    async with service.running() as running:
        deadline = datetime.now(UTC) + timedelta(seconds=0.5)
        run = await running.ask(Evacuate(host="a", deadline=deadline, on_deadline="stop"))
        end = await running.end_of(run)
        assert end.state is EvacuationState.STOPPED
        assert end.late
        assert running.queries.host("a").state is HostState.DRAINING
        never_begun = [guest for guest in end.guests if guest.migration is None]
        assert {guest.reason for guest in never_begun} == {"it was not begun"}
        assert {guest.starts_in_seconds for guest in never_begun} == {None}
        assert (end.error or "").count("it was not begun") == len(never_begun) > 0
        for name in names:
            assert len(service.site.running(name)) == 1


async def test_what_may_be_asked_of_a_migration_is_said_with_its_state(service: SimulatedService) -> None:
    (name,) = fill(service, 1, workload=steady(64 * MIB, 5 * MIB))
    seen: dict[State, tuple[bool, bool]] = {}
    async with service.running() as running:
        with running.engine.bus.listen() as heard:
            await running.ask(Migrate(guest=name, to="b"))
            async for event in heard:
                if isinstance(event, MigrationStateChanged | MigrationProgressed):
                    document = event.migration
                    seen[document.state] = (document.can_cancel, document.can_postcopy)
                if State.COMPLETED in seen:
                    break
    assert seen[State.PREPARING][0]
    assert seen[State.PRECOPY] == (True, True)
    assert seen[State.FINISHING] == seen[State.COMPLETED] == (False, False)


async def test_two_hosts_never_send_guests_to_each_other(service: SimulatedService) -> None:
    fill(service, 3)
    service.site.add_guest("other", host="b")
    async with service.running() as running:
        first, second = await asyncio.gather(running.ask(Evacuate(host="a")), running.ask(Evacuate(host="b")))
        for run in (first, second):
            end = await running.end_of(run)
            assert end.state is EvacuationState.COMPLETED
            assert {each.target for each in end.guests} == {"c"}


async def test_host_that_does_not_answer_harms_nothing_else(service: SimulatedService) -> None:
    fill(service, 2)
    service.site.hosts["b"].down = True
    async with service.running() as running:
        assert not running.queries.host("b").up
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.COMPLETED
        with pytest.raises(Refusal, match="does not answer"):
            await running.ask(Evacuate(host="b"))


async def test_refused_by_preflight_goes_elsewhere(service: SimulatedService) -> None:
    fill(service, 1)
    finding = Finding(code="bridge-missing", severity=Severity.ERROR, message="no br0", remedy="make it")
    service.site.findings["vm-0", "b"] = (finding,)
    async with service.running() as running:
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert end.guests[0].target == "c"


async def test_same_key_begins_nothing_twice(service: SimulatedService) -> None:
    fill(service, 1)
    async with service.running() as running:
        first = await running.ask(Migrate(guest="vm-0", to="b"), key="me\n1")
        again = await running.ask(Migrate(guest="vm-0", to="b"), key="me\n1")
        assert first.id == again.id
        await running.until(lambda: not running.queries.active_migrations())
        assert (await running.ask(Migrate(guest="vm-0", to="b"), key="me\n1")).id == first.id
        assert service.site.running("vm-0") == ["b"]


async def test_a_guest_that_moves_is_not_checked_through_a_monitor_that_is_in_use(
    service: SimulatedService,
) -> None:
    fill(service, 1, workload=steady(64 * MIB, 5 * MIB))
    async with service.running() as running:
        begun = await running.ask(Migrate(guest="vm-0", to="b"))
        with pytest.raises(Refusal, match=rf"vm-0 is \w+ already: migration {begun.id}"):
            await running.ask(Check(guest="vm-0", to="c"))
        await running.until(lambda: not running.queries.active_migrations())
        assert (await running.ask(Check(guest="vm-0", to="c"))).possible


async def test_plan_says_what_will_be_done(service: SimulatedService) -> None:
    fill(service, 4, workload=steady(64 * MIB, 5 * MIB))
    service.site.add_guest("passthrough", host="a", obstacle="a VFIO device cannot be migrated")
    async with service.running() as running:
        plan = await running.ask(Plan(host="a"))
        placed = [each for each in plan.guests if each.target]
        assert [each.order for each in placed] == [1, 2, 3, 4]
        assert plan.takes_p10_seconds <= plan.takes_p50_seconds <= plan.takes_p90_seconds
        assert plan.lower_bound_seconds <= plan.takes_p50_seconds
        (stays,) = [each for each in plan.guests if not each.target]
        assert "VFIO" in stays.reason
        assert running.queries.host("a").state is HostState.ACTIVE
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert {each.guest: each.target for each in placed} == {
            each.guest: each.target for each in end.guests if each.standing is GuestStanding.MOVED
        }


async def test_plan_says_who_will_not_end_inside_its_policy_and_how_long_the_others_stand_still(
    service: SimulatedService,
) -> None:
    quiet = service.site.add_guest(
        "quiet", host="a", memory_bytes=256 * MIB, workload=steady(16 * MIB, 1 * MIB)
    )
    wild = service.site.add_guest(
        "wild", host="a", memory_bytes=8192 * MIB, workload=steady(4096 * MIB, 2000 * MIB)
    )
    guests = {}
    async with service.running() as running:
        for policy, verdict in (("gentle", "cannot"), ("must-finish", "converges-if")):
            guests = {each.guest: each for each in (await running.ask(Plan(host="a", policy=policy))).guests}
            assert guests[quiet].verdict == "converges"
            assert 0 < guests[quiet].downtime_seconds <= 0.3
            assert guests[wild].verdict == verdict
            said = [each for each in guests[wild].findings if each.code == "does-not-converge"]
            assert bool(said) is (verdict == "cannot")
        assert guests[wild].downtime_seconds <= 2.0


@pytest.mark.parametrize(
    ("resident", "goes"),
    [(None, 4000), (8000, 4000), (1020, 1000), (5, 0)],
    ids=["unknown", "more than its memory", "part of it", "as good as nothing"],
)
async def test_plan_reckons_with_the_memory_that_a_guest_has_touched(
    service: SimulatedService, resident: int | None, goes: int
) -> None:
    service.site.add_guest(
        "vm",
        host="a",
        memory_bytes=4000 * MIB,
        resident_bytes=None if resident is None else resident * MIB,  # 20 MiB of it are QEMU's own
    )
    async with service.running() as running:
        plan = await running.ask(Plan(host="a"))
        links_share = 1000 * (1 - running.engine.rules.links.reserve_ratio)
        assert plan.lower_bound_seconds == pytest.approx(goes / links_share)


async def test_what_differs_from_the_plan_is_said(service: SimulatedService) -> None:
    fill(service, 2)
    async with service.running() as running:
        plan = await running.ask(Plan(host="a"))
        service.site.hosts["b"].refuses = "no space left on device"
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        differs = [each for each in plan.guests if each.target == "b"]
        assert differs
        migrations = await running.queries.migrations(limit=10)
        assert {each.destination for each in migrations if each.state is State.COMPLETED} == {"c"}
        assert end.state is EvacuationState.COMPLETED
        told = (await running.queries.events()).items
        evacuations = [event.evacuation for event in told if isinstance(event, EvacuationStateChanged)]
        reasons = " ".join(guest.reason for document in evacuations for guest in document.guests)
        assert "the plan said b: it failed there" in reasons


async def test_stopped_in_the_middle_another_controller_goes_on(service: SimulatedService) -> None:
    names = fill(service, 6, workload=steady(400 * MIB, 20 * MIB), memory_bytes=1024 * MIB)
    for host in service.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 200 * MIB
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a"))
        await running.until(
            lambda: any(each.state is State.PRECOPY for each in running.queries.active_migrations())
        )
    for name in names:
        assert len(service.site.running(name)) == 1
    async with service.running() as running:
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        for name in names:
            assert service.site.running(name) in (["b"], ["c"])


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.matrix) for seed in range(10, 20))]
)
async def test_killed_at_any_instant_nobody_is_lost_doubled_or_forgotten(
    service: SimulatedService, seed: int
) -> None:
    chance = random.Random(seed)
    names = fill(service, 4, workload=steady(200 * MIB, 20 * MIB), memory_bytes=512 * MIB)
    for host in service.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 200 * MIB
    run = None
    for _ in range(6):
        async with service.running(killed=True) as running:
            if run is None:
                run = await running.ask(Evacuate(host="a"), key="me\n1")
            else:
                assert (await running.ask(Evacuate(host="a"), key="me\n1")).id == run.id
            until = asyncio.get_running_loop().time() + chance.expovariate(0.7)
            while asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.01)
                assert all(len(service.site.running(name)) <= 1 for name in names)
    async with service.running() as running:
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED, end
        for name in names:
            assert service.site.running(name) in (["b"], ["c"])


async def test_one_whose_turn_has_come_has_the_link_while_the_journal_is_written(
    service: SimulatedService,
) -> None:
    for host in service.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 100 * MIB
    fill(service, 3, workload=steady(200 * MIB, 50 * MIB), memory_bytes=256 * MIB)
    save = service.journal.save

    async def slow(*given: Any, **events: Any) -> list[int]:
        await asyncio.sleep(0.15)
        return await save(*given, **events)

    service.journal.save = slow  # type: ignore[method-assign]
    async with service.running() as running:
        await running.ask(Plan(host="a"))
        await running.ask(Evacuate(host="a"))
        most = 0
        while running.queries.active_evacuations():
            most = max(most, sum(each.state is State.PRECOPY for each in running.queries.active_migrations()))
            await asyncio.sleep(0.01)
        assert most == 1
