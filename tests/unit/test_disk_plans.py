"""Plans with disks that are copied: the time that this takes is foretold, and room is given to one guest alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Check, Evacuate, Migrate, Plan
from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Host
from migrator.core.migration.disk_copies import MirrorPhase, Mirrors
from migrator.core.migration.mirror_forecast import MirrorForecast
from migrator.core.preflight.disk_room import CopiedDisk, beside_others, copied_disk
from migrator.core.schedule import LinkRules, Transfer, TransferPhase
from migrator.core.schedule.timetable import lower_bound_seconds, predict
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import fill

GIB = 1024 * MIB
LINK = 100 * MIB


def local_disk(
    copied: int = 2 * GIB, *, free: int = 100 * GIB, held: Mapping[str, int] | None = None
) -> CopiedDisk:
    return copied_disk(
        "it is copied",
        copied_bytes=copied,
        directory="/images",
        file_system="8:1",
        free_bytes=free,
        held_bytes=held,
    )


# --- the schedule ----------------------------------------------------------------------------------------------------


def moved(guest: str, **fields: float) -> Transfer:
    return Transfer(
        guest=guest,
        source="a",
        target="b",
        phase=TransferPhase.READY,
        bytes_left=5 * LINK,
        disk_bytes_left=fields.pop("disk_bytes_left", 20 * LINK),
        **fields,  # type: ignore[arg-type]
    )


HOSTS = {name: Host(name=name, link_bytes_per_second=LINK) for name in ("a", "b")}
RULES = LinkRules(reserve_ratio=0.0)


def test_disks_take_the_time_of_the_link_before_memory() -> None:
    found = predict([moved("one")], HOSTS, RULES).guests["one"]
    assert found.ends.p50 == pytest.approx(25.3, abs=0.1)


def test_what_a_guest_dirties_meanwhile_is_not_sent_as_long_as_its_disks_are_copied() -> None:
    found = predict([moved("one", dirty_rate_bytes_per_second=LINK / 2)], HOSTS, RULES).guests["one"]
    assert found.ends.p50 == pytest.approx(20 + 2 * 5 + 0.3, abs=0.2)


def test_others_on_the_link_wait_for_its_disks_too() -> None:
    both = [moved("one"), moved("two")]
    assert predict(both, HOSTS, RULES).makespan.p50 == pytest.approx(51, abs=1.5)
    assert lower_bound_seconds(both, HOSTS, RULES) == pytest.approx(50)


def test_deadline_that_disks_alone_would_miss_is_said_to_be_missed() -> None:
    late = moved("one", deadline_seconds=15)
    assert predict([late], HOSTS, RULES).late == ("one",)
    assert predict([moved("one", deadline_seconds=15, disk_bytes_left=0)], HOSTS, RULES).late == ()


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=LINK)
    fill(service, 2, workload=steady(64 * MIB, 1 * MIB))
    return service


def on_local_disk(service: SimulatedService, *targets: str, **how: Any) -> list[str]:
    names = sorted(machine.name for machine in service.site.machines.values())
    for name in names:
        for target in targets:
            service.site.findings[name, target] = (local_disk(**how),)
    return names


@pytest.mark.looptime
async def test_guest_with_a_local_disk_is_foretold_to_take_as_long_as_its_disk_takes(
    service: SimulatedService,
) -> None:
    async with service.running() as running:
        before = await running.ask(Plan(host="a"))
        name = on_local_disk(service, "b", "c")[0]
        service.site.findings = {key: each for key, each in service.site.findings.items() if key[0] == name}
        plan = await running.ask(Plan(host="a"))
        took = {each.guest_name: each.takes_p50_seconds or 0.0 for each in before.guests}
        takes = {each.guest_name: each.takes_p50_seconds or 0.0 for each in plan.guests}
        # 2 GiB at the 90 MiB/s that migrations may have of the link.
        assert takes.pop(name) - took.pop(name) == pytest.approx(2 * GIB / (0.9 * LINK), rel=0.1)
        assert plan.takes_p50_seconds > before.takes_p50_seconds + 15
        assert plan.lower_bound_seconds > 2 * GIB / LINK


@pytest.mark.looptime
async def test_check_says_how_long_the_disk_takes(service: SimulatedService) -> None:
    async with service.running() as running:
        name = on_local_disk(service, "b")[0]
        (found,) = (await running.ask(Check(guest=name, to="b"))).findings
        assert found.message == "it is copied, about 22.8 s at 90.0 MiB/s"


@pytest.mark.looptime
async def test_deadline_that_the_disks_will_miss_is_at_risk_once_a_plan_has_shown_them(
    service: SimulatedService,
) -> None:
    on_local_disk(service, "b", "c")
    async with service.running() as running:
        await running.ask(Plan(host="a"))
        run = await running.ask(Evacuate(host="a", deadline=datetime.now(UTC) + timedelta(seconds=30)))
        await running.until(lambda: running.run(run.id).forecast_end_at is not None)
        assert running.run(run.id).at_risk


@pytest.mark.looptime
async def test_deadline_of_an_evacuation_without_a_plan_reckons_with_disks_of_guests_that_wait(
    service: SimulatedService,
) -> None:
    for number in range(6):
        service.site.add_guest(f"more-{number}", host="a", workload=steady(64 * MIB, 1 * MIB))
    on_local_disk(service, "b", "c")
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a", deadline=datetime.now(UTC) + timedelta(seconds=120)))
        await running.until(
            lambda: all(
                entry.standing is not GuestStanding.WAITING
                or any(guest.disk_bytes_to for guest in running.engine.inventory.guests_of(key))
                for key, entry in running.run(run.id).entries.items()
            )
        )
        await running.until(lambda: running.run(run.id).at_risk)
        assert any(entry.standing is GuestStanding.WAITING for entry in running.run(run.id).entries.values())


@pytest.mark.looptime
async def test_plan_does_not_give_the_same_room_to_two_guests(service: SimulatedService) -> None:
    on_local_disk(service, "b", "c", free=3 * GIB)
    async with service.running() as running:
        plan = await running.ask(Plan(host="a"))
        assert sorted(str(each.target) for each in plan.guests) == ["b", "c"]


@pytest.mark.looptime
async def test_room_that_another_controllers_migration_will_take_is_not_free(
    service: SimulatedService,
) -> None:
    one, _ = on_local_disk(service, "b", free=3 * GIB, held={"elsewhere": GIB + 1})
    async with service.running() as running:
        refused = await running.ask(Check(guest=one, to="b"))
        assert [each.code for each in refused.findings] == ["disk-room", "disk-copied"]
        on_local_disk(service, "b", free=3 * GIB, held={"elsewhere": GIB})
        assert (await running.ask(Check(guest=one, to="b"))).possible


@pytest.mark.looptime
async def test_room_that_a_migration_under_way_will_need_is_not_free(service: SimulatedService) -> None:
    service.site.hosts["b"].start_seconds = 30.0
    one, other = on_local_disk(service, "b", free=3 * GIB)
    async with service.running() as running:
        await running.ask(Migrate(guest=one, to="b"))
        (session,) = running.sessions()
        await running.until(lambda: session.copied_disks is not None)
        refused = await running.ask(Check(guest=other, to="b"))
        assert [each.code for each in refused.findings] == ["disk-room", "disk-copied"]
        await running.until(lambda: session.ended)
        assert (await running.ask(Check(guest=other, to="b"))).possible


def test_room_for_one_is_no_room_for_two() -> None:
    one = local_disk(free=3 * GIB)
    assert not list(beside_others("b", [one], {}))
    assert not list(beside_others("b", [one], {"8:1": 1 * GIB, "8:2": 9 * GIB}))
    (found,) = beside_others("b", [one], {"8:1": 2 * GIB})
    assert found.code == "disk-room"


# --- while they are copied -------------------------------------------------------------------------------------------


def mirrors(done: int, total: int) -> Mirrors:
    return Mirrors(phase=MirrorPhase.COPYING, done_bytes=done, total_bytes=total)


def test_time_left_while_disks_are_copied_has_what_is_left_of_them_and_the_memory() -> None:
    follows = MirrorForecast(disk_bytes=20 * LINK, memory_bytes=5 * LINK)
    assert follows.forecast(mirrors(0, 20 * LINK), at_seconds=0.0).seconds_p50 == 0
    found = follows.forecast(mirrors(2 * LINK, 20 * LINK), at_seconds=2.0)
    assert found.seconds_p50 == pytest.approx(18 + 5)
    assert found.seconds_p10 < found.seconds_p50 < found.seconds_p90


def test_holes_of_a_disk_are_not_waited_for() -> None:
    follows = MirrorForecast(disk_bytes=1 * GIB, memory_bytes=0)
    assert follows.left_bytes(mirrors(5 * GIB, 10 * GIB)) == pytest.approx(0.5 * GIB)
