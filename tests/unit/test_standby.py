"""A controller that stands by shows what the one that acts shows, and has its own commands carried out there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Command, Evacuate, Migrate, Plan, Role
from migrator.api.events import Event
from migrator.api.replies import Reply
from migrator.api.requests import Envelope
from migrator.ports import Lease
from migrator.replica.channel import MessageKind
from migrator.replica.follower import JournalFollower
from migrator.replica.live_writer import LiveDocumentWriter
from migrator.replica.publisher import Publisher
from migrator.replica.queries import ReplicaQueries
from migrator.replica.requests import SteeringRequests
from migrator.replica.state import ReplicaState
from migrator.service.forwarded_commands import ForwardedCommands
from migrator.service.waiting_commands import WaitingCommandRunner
from migrator.testing.simulated_service import OPERATOR, MemorySamples, RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    service.numbered_by_journal = True
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=40 * MIB)
    for number in range(4):
        service.site.add_guest(f"vm-{number}", host="a", workload=steady(64 * MIB, 5 * MIB))
    return service


@asynccontextmanager
async def running(*work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each()) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Standby:
    """What a controller that stands by has: the journal alone."""

    def __init__(self, service: SimulatedService) -> None:
        self.state = ReplicaState()
        self.follower = JournalFollower(self.state, service.journal)
        self.queries = ReplicaQueries(
            state=self.state, journal=service.journal, samples=MemorySamples(), requests=SteeringRequests()
        )
        self.commands = ForwardedCommands(service.journal, acting=lambda: "first")
        self.heard: list[Event] = []
        self.state.events.subscribe(self.heard.append)

    async def ask(self, command: Command, *, key: str | None = None, **fields: Any) -> Reply:
        return await self.commands.execute(envelope(command, key=key, **fields))


def envelope(command: Command, *, key: str | None = None, **fields: Any) -> Envelope:
    return Envelope(
        verb=command.verb,
        body=command.model_dump(mode="json", exclude_none=True),
        caller=fields.pop("caller", OPERATOR),
        id=key,
        **fields,
    )


class Acting:
    """The process that answers for the controller that acts: told over no socket, it writes for the others."""

    def __init__(self, service: SimulatedService, driver: RunningEngine, lease: Lease) -> None:
        self.state = ReplicaState()
        self.lease: Lease | None = lease
        self.publisher = Publisher(source=driver.queries, events=driver.bus)
        self.writer = LiveDocumentWriter(
            self.state, service.journal.live, name="first", right=lambda: self.lease
        )
        self.runner = WaitingCommandRunner(service.journal, driver.dispatcher, name="first")

    def send(self, kind: MessageKind, body: bytes = b"", number: int = 0) -> None:
        del number
        self.state.receive(kind, body)


@asynccontextmanager
async def acting(service: SimulatedService, *, killed: bool = False) -> AsyncIterator[RunningEngine]:
    """A controller that acts, and writes what others want to know."""
    async with service.running(killed=killed) as driver:
        lease = await service.journal.leases.acquire("site", owner="first", seconds=3600)
        assert lease is not None
        own = Acting(service, driver, lease)
        own.publisher.attach(own)
        async with running(own.publisher.run, own.writer.run, own.runner.run):
            await own.state.complete.wait()
            yield driver


@asynccontextmanager
async def standing_by(service: SimulatedService) -> AsyncIterator[Standby]:
    standby = Standby(service)
    async with running(standby.follower.run, standby.commands.run):
        await standby.state.complete.wait()
        yield standby


async def shown(queries: Any) -> dict[str, Any]:
    """All that can be asked for; hosts may have been looked at again since."""
    return {
        "hosts": [each.model_copy(update={"looked_at": None}) for each in queries.hosts()],
        "guests": list(queries.guests()),
        "active": sorted(queries.active_migrations(), key=lambda each: each.id),
        "running": sorted(queries.active_evacuations(), key=lambda each: each.id),
        "migrations": list(await queries.migrations(limit=100)),
        "evacuations": list(await queries.evacuations(limit=100)),
    }


async def test_it_shows_what_the_acting_one_shows_all_through_an_evacuation(
    service: SimulatedService,
) -> None:
    told: list[Event] = []
    async with acting(service) as driver, standing_by(service) as standby:
        driver.bus.subscribe(told.append, journalled=True)
        await asyncio.sleep(2)
        assert await shown(standby.queries) == await shown(driver.queries)
        begun = await driver.ask(Evacuate(host="a"))
        progressed = 0
        while (await driver.queries.evacuation(begun.id)).ended_at is None:
            await asyncio.sleep(0.5)
            progressed += sum(each.transferred_bytes > 0 for each in standby.queries.active_migrations())
            there, here = (
                {each.id for each in queries.active_migrations()}
                for queries in (driver.queries, standby.queries)
            )
            assert len(there ^ here) <= 4, "what has just begun or ended"
        assert progressed, "figures between two states are shown"
        await asyncio.sleep(6)
        assert await shown(standby.queries) == await shown(driver.queries)
        numbered = [(each.event_id, each.text) for each in told if each.has_number]
        assert [(each.event_id, each.text) for each in standby.heard] == numbered
        assert standby.queries.bus.last_event_id == driver.bus.last_event_id


async def test_one_that_comes_late_or_was_frozen_has_the_same_picture(service: SimulatedService) -> None:
    async with acting(service) as driver:
        begun = await driver.ask(Evacuate(host="a"))
        async with standing_by(service) as standby:
            await driver.until(lambda: bool(standby.queries.active_migrations()))
        # It stands still while everything ends and is forgotten.
        await driver.end_of(begun)
        driver.engine.registry.migrations.clear()
        await asyncio.sleep(10)
        assert standby.state.migrations
        async with running(standby.follower.run), standing_by(service) as fresh:
            await asyncio.sleep(5)
            for each in (standby, fresh):
                assert await shown(each.queries) == await shown(driver.queries)
                assert not each.state.migrations


async def test_nobody_writes_for_nobody(service: SimulatedService) -> None:
    async with service.running() as driver:
        lease = await service.journal.leases.acquire("site", owner="first", seconds=3600)
        assert lease is not None
        own = Acting(service, driver, lease)
        own.publisher.attach(own)
        calls: list[str] = []
        pause = service.journal.pause

        async def counted(call: str) -> None:
            calls.append(call)
            await pause(call)

        service.journal.pause = counted
        own.lease = None
        async with running(own.publisher.run, own.writer.run):
            await driver.end_of(await driver.ask(Evacuate(host="a")))
            assert "live" not in calls
            assert own.state.changed is None
            own.lease = lease
            await asyncio.sleep(30.5)
            writes = calls.count("live")
            assert 0 < writes < 32, "once a second at most"


async def test_what_an_acting_one_left_behind_is_gone_when_the_next_has_written(
    service: SimulatedService,
) -> None:
    service.site.add_host("spare", memory_bytes=1 << 20)
    async with standing_by(service) as standby:
        async with acting(service, killed=True) as driver:
            begun = await driver.ask(Evacuate(host="a"))
            await driver.until(lambda: len(standby.queries.active_migrations()) > 1)
        service.site.hosts.pop("spare")
        async with acting(service) as driver:
            await driver.end_of(begun)
            await asyncio.sleep(6)
            assert await shown(standby.queries) == await shown(driver.queries)
            assert [each.host for each in standby.queries.hosts()] == ["a", "b", "c"]


class TestJournalAway:
    async def test_it_goes_on_answering_with_what_it_has_and_says_how_old_that_is(
        self, service: SimulatedService
    ) -> None:
        async with acting(service) as driver, standing_by(service) as standby:
            await asyncio.sleep(2)
            before = list(standby.queries.hosts())
            service.journal.unreadable = service.journal.broken = "the server cannot be reached"
            await asyncio.sleep(5)
            assert standby.follower.complaint == "the server cannot be reached"
            assert list(standby.queries.hosts()) == before
            reply = await standby.ask(Evacuate(host="a"), key="k")
            assert (reply.kind, reply.code) == ("refused", "unavailable")
            assert "ask again with the same id" in str(reply.message).lower()
            assert "first" in str(reply.message)
            service.journal.unreadable = service.journal.broken = ""
            begun = await standby.ask(Evacuate(host="a"), key="k")
            assert begun.kind == "accepted"
            await driver.until(lambda: not standby.follower.complaint, seconds=5)
            await driver.end_of(await driver.queries.evacuation(begun.subject_id))

    async def test_versions_that_the_server_has_lost_are_read_anew(self, service: SimulatedService) -> None:
        async with acting(service), standing_by(service) as standby:
            await asyncio.sleep(2)
            standby.follower._version = 10_000  # as where another server took over that had less
            service.journal.unreadable = "away"
            await asyncio.sleep(2)
            service.journal.unreadable = ""
            await asyncio.sleep(5)
            assert standby.follower._version < 10_000


class TestCommands:
    async def test_are_carried_out_by_who_acts_and_answered_to_who_asked(
        self, service: SimulatedService
    ) -> None:
        async with acting(service) as driver, standing_by(service) as standby:
            reply = await standby.ask(Evacuate(host="a"), key="k1")
            assert (reply.kind, reply.id, reply.subject) == ("accepted", "k1", "evacuation")
            assert driver.run(str(reply.subject_id)).host == "a"
            assert driver.counted[-1] == ("http", "evacuate", "accepted")
            # The same id, here or there, is the same command; another body is not.
            again = await standby.ask(Evacuate(host="a"), key="k1")
            there = await driver.dispatcher.execute(envelope(Evacuate(host="a"), key="k1"))
            assert again.subject_id == there.subject_id == reply.subject_id
            assert (await standby.ask(Evacuate(host="b"), key="k1")).code == "id-reused"

    async def test_without_an_id_too(self, service: SimulatedService) -> None:
        async with acting(service) as driver, standing_by(service) as standby:
            reply = await standby.ask(Migrate(guest="vm-1", to="b"))
            assert (reply.kind, reply.id) == ("accepted", None)
            assert len(driver.sessions()) == 1
            assert (await standby.ask(Migrate(guest="nobody"))).code == "not-found"

    async def test_that_only_look_leave_nothing_behind(self, service: SimulatedService) -> None:
        async with acting(service), standing_by(service) as standby:
            reply = await standby.ask(Plan(host="a"))
            assert (reply.kind, reply.subject) == ("accepted", "plan")
            assert service.journal.commands == {}

    async def test_that_may_not_be_are_refused_at_once(self, service: SimulatedService) -> None:
        viewer = replace(OPERATOR, role=Role.VIEWER)
        async with standing_by(service) as standby:
            assert (await standby.ask(Evacuate(host="a"), caller=viewer)).code == "forbidden"
            assert service.journal.commands == {}

    async def test_wait_for_the_next_where_nobody_acts(self, service: SimulatedService) -> None:
        async with standing_by(service) as standby:
            asked = asyncio.create_task(standby.ask(Evacuate(host="a"), key="k"))
            await asyncio.sleep(8)
            assert not asked.done()
            async with acting(service) as driver:
                reply = await asked
                assert reply.kind == "accepted"
                await driver.end_of(await driver.queries.evacuation(reply.subject_id))

    async def test_that_nobody_takes_are_taken_back_and_never_begun(self, service: SimulatedService) -> None:
        async with standing_by(service) as standby:
            reply = await standby.ask(Evacuate(host="a"), key="k")
            assert (reply.kind, reply.code) == ("refused", "unavailable")
            assert "was not begun and will not be" in str(reply.message)
            async with acting(service) as driver:
                await asyncio.sleep(5)
                assert not driver.engine.registry.evacuations
                assert (await standby.ask(Evacuate(host="a"), key="k")).kind == "accepted"

    async def test_are_carried_out_once_where_the_acting_one_died_over_them(
        self, service: SimulatedService
    ) -> None:
        answers: list[str] = []
        pause = service.journal.pause

        async def hang(call: str) -> None:
            if call == "answer_command" and not answers:
                answers.append(call)
                await asyncio.sleep(3600)
            await pause(call)

        async with standing_by(service) as standby:
            service.journal.pause = hang
            async with acting(service, killed=True) as driver:
                asked = asyncio.create_task(standby.ask(Evacuate(host="a"), key="k"))
                await driver.until(lambda: bool(answers))
                [first] = driver.engine.registry.evacuations
            async with acting(service) as driver:
                reply = await asked
                assert (reply.kind, reply.subject_id) == ("accepted", first)
                assert list(driver.engine.registry.evacuations) == [first]

    async def test_are_carried_out_though_the_one_that_received_them_has_died(
        self, service: SimulatedService
    ) -> None:
        async with standing_by(service) as standby:
            asked = asyncio.create_task(standby.ask(Evacuate(host="a"), key="k"))
            await asyncio.sleep(1)
        asked.cancel()
        standby.commands._waiting.clear()
        async with acting(service) as driver:
            await driver.until(lambda: bool(driver.engine.registry.evacuations))

    async def test_that_have_waited_long_are_not_begun_by_the_clock_that_all_share(
        self, service: SimulatedService
    ) -> None:
        async with standing_by(service) as standby:
            asked = asyncio.create_task(standby.ask(Evacuate(host="a"), key="k"))
            await asyncio.sleep(1)
            [waiting] = await service.journal.waiting.waiting()
            assert '"expires_at":null' in waiting.envelope, "its own clock may be wrong"
            service.journal.waiting.age_seconds = 3600.0
            async with acting(service) as driver:
                reply = await asked
                assert (reply.kind, reply.code) == ("refused", "expired")
                assert not driver.engine.registry.evacuations

    async def test_that_come_to_both_at_once_are_one(self, service: SimulatedService) -> None:
        async with acting(service) as driver, standing_by(service) as standby:
            given = envelope(Evacuate(host="a"), key="k")
            here, there = await asyncio.gather(
                standby.commands.execute(given), driver.dispatcher.execute(given)
            )
            assert here.subject_id == there.subject_id
            assert len(driver.engine.registry.evacuations) == 1
