"""The engine over a simulated site: evacuations from the command to an empty host, and every way that goes wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import (
    Caller,
    Cancel,
    Check,
    Command,
    Evacuate,
    Migrate,
    Plan,
    Refusal,
    Restore,
    Role,
)
from migrator.api.events import (
    EvacuationStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
)
from migrator.api.queries import MigrationFilter
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest, HostState
from migrator.core.model import Finding, Severity, State
from migrator.core.policy import builtin
from migrator.engine.controller import Engine
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.rules import Rules
from migrator.ports import Record
from migrator.store.step_records import StepRecords
from migrator.testing.journal import MemoryJournal
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime

OPERATOR = Caller(user="unix:0", role=Role.OPERATOR, interface="http")


class Held(StepRecords):
    """Knows the locks it holds, as the kernel does of a process that is killed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._held: list[Record] = []

    def create(self, migration: str) -> Record:
        self._held.append(super().create(migration))
        return self._held[-1]

    async def take_up(self, migration: str) -> Any:
        found = await super().take_up(migration)
        if found is not None:
            self._held.append(found[0])
        return found

    def kill(self) -> None:
        for record in self._held:
            self.release(record)


class World:
    """A site and an engine that keeps it."""

    def __init__(
        self,
        directory: Path,
        site: SimulatedSite | None = None,
        accept: Callable[[Any, Any], Any] = lambda findings, codes: findings,
    ) -> None:
        self.site = site or SimulatedSite()
        self.accept = accept
        #: What the configuration says of every guest.
        self.requires: dict[str, str] = {}
        self.anti_affinity = ""
        self.journal = MemoryJournal()
        #: As on a server that several controllers share.
        self.numbered_by_journal = False
        self.directory = directory

    def configured(self, guest: Guest) -> Guest:
        """What the configuration says of a guest."""
        return replace(guest, requires=self.requires, anti_affinity=self.anti_affinity)

    @asynccontextmanager
    async def engine(self, *, killed: bool = False) -> AsyncIterator[Driver]:
        """Started as the service does it, and let go at the end; or killed, without a word to anyone."""
        last, sequences = await self.journal.positions()
        journal_writer = JournalWriter(self.journal)
        records = Held(self.directory)

        async def keep(job: JournalledSession) -> None:
            await journal_writer.commit(("migration", job.journalled))

        inventory = Inventory(
            [host.configured() for host in self.site.hosts.values()],
            site=self.site,
            rules=self.configured,
        )
        engine = Engine(
            inventory=inventory,
            services=SessionServices(
                site=self.site,
                records=records,
                keep=keep,
                accept=self.accept,
            ),
            journal_writer=journal_writer,
            bus=EventBus(
                last_event_id=last,
                sequences={(Subject(kind), name): number for (kind, name), number in sequences.items()},
                numbered_by_journal=self.numbered_by_journal,
            ),
            rules=Rules(policy=builtin),
        )
        inventory.on_change(engine.inventory_changed)
        await engine.recover()
        await inventory.look_at_all()
        running = asyncio.create_task(engine.run(), name="engine")
        try:
            yield Driver(engine)
        finally:
            if killed:
                tasks = {*engine.registry.driving(), running}
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                records.kill()
            else:
                await engine.stop()
                assert not running.done() or running.result() is None
                running.cancel()
                await asyncio.wait({running})


class Driver:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.queries: Any = engine.queries
        self._verbs = engine.handlers

    def sessions(self) -> list[JournalledSession]:
        return list(self.engine.registry.migrations.values())

    def run(self, identifier: str) -> Evacuation:
        return self.engine.registry.evacuations[identifier]

    async def ask(self, command: Command, *, key: str = "") -> Any:
        return await self._verbs.carry_out(command, OPERATOR, key=key)

    async def until(self, what: Callable[[], bool], seconds: float = 3600) -> None:
        async with asyncio.timeout(seconds):
            while not what():
                await asyncio.sleep(0.1)

    async def end_of(self, run: Any) -> Any:
        async with asyncio.timeout(3600):
            while True:
                now = await self.queries.evacuation(run.id)
                if now.ended_at is not None:
                    return now
                await asyncio.sleep(0.2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for name in ("a", "b", "c"):
        world.site.add_host(name, link=1000 * MIB)
    return world


def fill(world: World, count: int = 6, **how) -> list[str]:
    names = [f"vm-{number}" for number in range(count)]
    for name in names:
        world.site.add_guest(name, host="a", **how)
    return names


async def test_host_is_emptied_and_put_in_maintenance(world: World) -> None:
    names = fill(world, workload=steady(64 * MIB, 5 * MIB))
    async with world.engine() as driver:
        run = await driver.ask(Evacuate(host="a"))
        assert driver.queries.host("a").state is HostState.DRAINING
        end = await driver.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert end.guests_left == 0
        assert driver.queries.host("a").state is HostState.MAINTENANCE
        for name in names:
            assert world.site.running(name) in (["b"], ["c"])
        migrations = await driver.queries.migrations(limit=50, where=MigrationFilter(evacuation=run.id))
        assert [each.state for each in migrations] == [State.COMPLETED] * len(names)
        assert all(each.downtime_seconds < each.max_downtime_seconds for each in migrations)


async def test_restore_brings_the_same_guests_home(world: World) -> None:
    names = fill(world, 3)
    world.site.add_guest("stranger", host="b")
    async with world.engine() as driver:
        await driver.end_of(await driver.ask(Evacuate(host="a")))
        await driver.engine.inventory.look_at_all()
        end = await driver.end_of(await driver.ask(Restore(host="a")))
        assert end.state is EvacuationState.COMPLETED
        assert [world.site.running(name) for name in names] == [["a"]] * 3
        assert world.site.running("stranger") == ["b"]
        assert driver.queries.host("a").state is HostState.ACTIVE


async def test_guest_that_cannot_move_is_left_with_its_reason_and_the_others_go(world: World) -> None:
    fill(world, 2)
    world.site.add_guest("passthrough", host="a", obstacle="a VFIO device cannot be migrated")
    async with world.engine() as driver:
        end = await driver.end_of(await driver.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.INCOMPLETE
        assert end.guests_left == 1
        assert "passthrough: a VFIO device" in end.error
        assert driver.queries.host("a").state is HostState.DRAINING
        assert world.site.running("passthrough") == ["a"]


async def test_failed_start_is_tried_on_another_host(world: World) -> None:
    fill(world, 2)
    world.site.hosts["b"].refuses = "no space left on device"
    async with world.engine() as driver:
        end = await driver.end_of(await driver.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.COMPLETED
        assert {each.target for each in end.guests} == {"c"}


async def test_nothing_is_tried_without_end(world: World) -> None:
    fill(world, 1)
    for host in ("b", "c"):
        world.site.hosts[host].refuses = "no space left on device"
    async with world.engine() as driver:
        end = await driver.end_of(await driver.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.INCOMPLETE
        (guest,) = end.guests
        assert guest.standing is GuestStanding.SET_ASIDE
        assert "no space left" in guest.reason
        assert sum(world.site.started.values()) <= 5
        assert world.site.running("vm-0") == ["a"]


async def test_no_room_is_said_at_once_and_used_when_it_appears(world: World) -> None:
    fill(world, 1, memory_bytes=128 << 30)
    async with world.engine() as driver:
        run = await driver.ask(Evacuate(host="a"))
        await driver.until(
            lambda: driver.queries.active_evacuations()[0].guests[0].standing is GuestStanding.NO_TARGET, 5
        )
        assert "too little memory" in driver.queries.active_evacuations()[0].guests[0].reason
        world.site.hosts["c"].memory_bytes = 256 << 30
        await driver.engine.inventory.look("c")
        assert (await driver.end_of(run)).state is EvacuationState.COMPLETED


async def test_new_guest_on_a_draining_host_is_taken_too(world: World) -> None:
    fill(world, 3, workload=steady(256 * MIB, 5 * MIB))
    async with world.engine() as driver:
        run = await driver.ask(Evacuate(host="a"))
        world.site.add_guest("late", host="a")
        end = await driver.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        assert world.site.running("late") != ["a"]


async def test_cancel_leaves_every_guest_running_somewhere(world: World) -> None:
    names = fill(world, 8, workload=steady(400 * MIB, 20 * MIB), memory_bytes=1024 * MIB)
    async with world.engine() as driver:
        run = await driver.ask(Evacuate(host="a"))
        await driver.until(
            lambda: any(each.state is State.PRECOPY for each in driver.queries.active_migrations())
        )
        await driver.ask(Cancel(target=run.id))
        end = await driver.end_of(run)
        assert end.state is EvacuationState.CANCELLED
        assert driver.queries.host("a").state is HostState.ACTIVE
        for name in names:
            assert len(world.site.running(name)) == 1
        assert any(world.site.running(name) == ["a"] for name in names)


async def test_deadline_stop_starts_nothing_more(world: World) -> None:
    names = fill(world, 12, workload=steady(400 * MIB, 20 * MIB), memory_bytes=1024 * MIB)
    for host in world.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 50 * MIB
    async with world.engine() as driver:
        deadline = datetime.now(UTC) + timedelta(seconds=0.5)
        run = await driver.ask(Evacuate(host="a", deadline=deadline, on_deadline="stop"))
        end = await driver.end_of(run)
        assert end.state is EvacuationState.STOPPED
        assert end.late
        assert driver.queries.host("a").state is HostState.DRAINING
        never_begun = [guest for guest in end.guests if guest.migration is None]
        assert {guest.reason for guest in never_begun} == {"it was not begun"}
        assert {guest.starts_in_seconds for guest in never_begun} == {None}
        assert (end.error or "").count("it was not begun") == len(never_begun) > 0
        for name in names:
            assert len(world.site.running(name)) == 1


async def test_what_may_be_asked_of_a_migration_is_said_with_its_state(world: World) -> None:
    (name,) = fill(world, 1, workload=steady(64 * MIB, 5 * MIB))
    seen: dict[State, tuple[bool, bool]] = {}
    async with world.engine() as driver:
        with driver.engine.bus.listen() as heard:
            await driver.ask(Migrate(guest=name, to="b"))
            async for event in heard:
                if isinstance(event, MigrationStateChanged | MigrationProgressed):
                    document = event.migration
                    seen[document.state] = (document.can_cancel, document.can_postcopy)
                if State.COMPLETED in seen:
                    break
    assert seen[State.PREPARING][0]
    assert seen[State.PRECOPY] == (True, True)
    assert seen[State.FINISHING] == seen[State.COMPLETED] == (False, False)


async def test_two_hosts_never_send_guests_to_each_other(world: World) -> None:
    fill(world, 3)
    world.site.add_guest("other", host="b")
    async with world.engine() as driver:
        first, second = await asyncio.gather(driver.ask(Evacuate(host="a")), driver.ask(Evacuate(host="b")))
        for run in (first, second):
            end = await driver.end_of(run)
            assert end.state is EvacuationState.COMPLETED
            assert {each.target for each in end.guests} == {"c"}


async def test_host_that_does_not_answer_harms_nothing_else(world: World) -> None:
    fill(world, 2)
    world.site.hosts["b"].down = True
    async with world.engine() as driver:
        assert not driver.queries.host("b").up
        end = await driver.end_of(await driver.ask(Evacuate(host="a")))
        assert end.state is EvacuationState.COMPLETED
        with pytest.raises(Refusal, match="does not answer"):
            await driver.ask(Evacuate(host="b"))


async def test_refused_by_preflight_goes_elsewhere(world: World) -> None:
    fill(world, 1)
    finding = Finding(code="bridge-missing", severity=Severity.ERROR, message="no br0", remedy="make it")
    world.site.findings["vm-0", "b"] = (finding,)
    async with world.engine() as driver:
        end = await driver.end_of(await driver.ask(Evacuate(host="a")))
        assert end.guests[0].target == "c"


async def test_same_key_begins_nothing_twice(world: World) -> None:
    fill(world, 1)
    async with world.engine() as driver:
        first = await driver.ask(Migrate(guest="vm-0", to="b"), key="me\n1")
        again = await driver.ask(Migrate(guest="vm-0", to="b"), key="me\n1")
        assert first.id == again.id
        await driver.until(lambda: not driver.queries.active_migrations())
        assert (await driver.ask(Migrate(guest="vm-0", to="b"), key="me\n1")).id == first.id
        assert world.site.running("vm-0") == ["b"]


async def test_a_guest_that_moves_is_not_checked_through_a_monitor_that_is_in_use(world: World) -> None:
    fill(world, 1, workload=steady(64 * MIB, 5 * MIB))
    async with world.engine() as driver:
        begun = await driver.ask(Migrate(guest="vm-0", to="b"))
        with pytest.raises(Refusal, match=rf"vm-0 is \w+ already: migration {begun.id}"):
            await driver.ask(Check(guest="vm-0", to="c"))
        await driver.until(lambda: not driver.queries.active_migrations())
        assert (await driver.ask(Check(guest="vm-0", to="c"))).possible


async def test_plan_says_what_will_be_done(world: World) -> None:
    fill(world, 4, workload=steady(64 * MIB, 5 * MIB))
    world.site.add_guest("passthrough", host="a", obstacle="a VFIO device cannot be migrated")
    async with world.engine() as driver:
        plan = await driver.ask(Plan(host="a"))
        placed = [each for each in plan.guests if each.target]
        assert [each.order for each in placed] == [1, 2, 3, 4]
        assert plan.takes_p10_seconds <= plan.takes_p50_seconds <= plan.takes_p90_seconds
        assert plan.lower_bound_seconds <= plan.takes_p50_seconds
        (stays,) = [each for each in plan.guests if not each.target]
        assert "VFIO" in stays.reason
        assert driver.queries.host("a").state is HostState.ACTIVE
        end = await driver.end_of(await driver.ask(Evacuate(host="a")))
        assert {each.guest: each.target for each in placed} == {
            each.guest: each.target for each in end.guests if each.standing is GuestStanding.MOVED
        }


async def test_plan_says_who_will_not_end_inside_its_policy_and_how_long_the_others_stand_still(
    world: World,
) -> None:
    quiet = world.site.add_guest(
        "quiet", host="a", memory_bytes=256 * MIB, workload=steady(16 * MIB, 1 * MIB)
    )
    wild = world.site.add_guest(
        "wild", host="a", memory_bytes=8192 * MIB, workload=steady(4096 * MIB, 2000 * MIB)
    )
    guests = {}
    async with world.engine() as driver:
        for policy, verdict in (("gentle", "cannot"), ("must-finish", "converges-if")):
            guests = {each.guest: each for each in (await driver.ask(Plan(host="a", policy=policy))).guests}
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
    world: World, resident: int | None, goes: int
) -> None:
    world.site.add_guest(
        "vm",
        host="a",
        memory_bytes=4000 * MIB,
        resident_bytes=None if resident is None else resident * MIB,  # 20 MiB of it are QEMU's own
    )
    async with world.engine() as driver:
        plan = await driver.ask(Plan(host="a"))
        links_share = 1000 * (1 - driver.engine.rules.links.reserve_ratio)
        assert plan.lower_bound_seconds == pytest.approx(goes / links_share)


async def test_what_differs_from_the_plan_is_said(world: World) -> None:
    fill(world, 2)
    async with world.engine() as driver:
        plan = await driver.ask(Plan(host="a"))
        world.site.hosts["b"].refuses = "no space left on device"
        end = await driver.end_of(await driver.ask(Evacuate(host="a")))
        differs = [each for each in plan.guests if each.target == "b"]
        assert differs
        migrations = await driver.queries.migrations(limit=10)
        assert {each.destination for each in migrations if each.state is State.COMPLETED} == {"c"}
        assert end.state is EvacuationState.COMPLETED
        told = (await driver.queries.events()).items
        evacuations = [event.evacuation for event in told if isinstance(event, EvacuationStateChanged)]
        reasons = " ".join(guest.reason for document in evacuations for guest in document.guests)
        assert "the plan said b: it failed there" in reasons


async def test_stopped_in_the_middle_another_controller_goes_on(world: World) -> None:
    names = fill(world, 6, workload=steady(400 * MIB, 20 * MIB), memory_bytes=1024 * MIB)
    for host in world.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 200 * MIB
    async with world.engine() as driver:
        run = await driver.ask(Evacuate(host="a"))
        await driver.until(
            lambda: any(each.state is State.PRECOPY for each in driver.queries.active_migrations())
        )
    for name in names:
        assert len(world.site.running(name)) == 1
    async with world.engine() as driver:
        end = await driver.end_of(run)
        assert end.state is EvacuationState.COMPLETED
        for name in names:
            assert world.site.running(name) in (["b"], ["c"])


@pytest.mark.parametrize("seed", range(20))
async def test_killed_at_any_instant_nobody_is_lost_doubled_or_forgotten(world: World, seed: int) -> None:
    chance = random.Random(seed)
    names = fill(world, 4, workload=steady(200 * MIB, 20 * MIB), memory_bytes=512 * MIB)
    for host in world.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 200 * MIB
    run = None
    for _ in range(6):
        async with world.engine(killed=True) as driver:
            if run is None:
                run = await driver.ask(Evacuate(host="a"), key="me\n1")
            else:
                assert (await driver.ask(Evacuate(host="a"), key="me\n1")).id == run.id
            until = asyncio.get_running_loop().time() + chance.expovariate(0.7)
            while asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.01)
                assert all(len(world.site.running(name)) <= 1 for name in names)
    async with world.engine() as driver:
        end = await driver.end_of(run)
        assert end.state is EvacuationState.COMPLETED, end
        for name in names:
            assert world.site.running(name) in (["b"], ["c"])


async def test_one_whose_turn_has_come_has_the_link_while_the_journal_is_written(world: World) -> None:
    for host in world.site.hosts.values():
        host.out.bytes_per_second = host.into.bytes_per_second = 100 * MIB
    fill(world, 3, workload=steady(200 * MIB, 50 * MIB), memory_bytes=256 * MIB)
    save = world.journal.save

    async def slow(*given: Any, **events: Any) -> list[int]:
        await asyncio.sleep(0.15)
        return await save(*given, **events)

    world.journal.save = slow  # type: ignore[method-assign]
    async with world.engine() as driver:
        await driver.ask(Plan(host="a"))
        await driver.ask(Evacuate(host="a"))
        most = 0
        while driver.queries.active_evacuations():
            most = max(most, sum(each.state is State.PRECOPY for each in driver.queries.active_migrations()))
            await asyncio.sleep(0.01)
        assert most == 1
