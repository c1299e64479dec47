"""A replica of the service's state says what the engine says: from a snapshot, events, and what no event tells."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Evacuate
from migrator.api.events import Event
from migrator.core.inventory import HostState
from migrator.errors import Unavailable
from migrator.replica.channel import Channel, MessageKind
from migrator.replica.publisher import Publisher
from migrator.replica.queries import ReplicaQueries
from migrator.replica.requests import RequestServer, SteeringRequests
from migrator.replica.state import ReplicaState
from migrator.service.entrance_requests import Shared
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady

looptime = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=1000 * MIB)
    for number in range(6):
        service.site.add_guest(f"vm-{number}", host="a", workload=steady(64 * MIB, 5 * MIB))
    return service


class NoSamples:
    """As where none were kept."""

    def add(self, migration: str, point: Any) -> None:
        pass

    async def of(self, migration: str) -> list[Any]:
        del migration
        return []


class Replica:
    """One that is told over no socket, and reads the same journal."""

    def __init__(self, service: SimulatedService) -> None:
        self.state = ReplicaState()
        self.queries = ReplicaQueries(
            state=self.state, journal=service.journal, samples=NoSamples(), requests=SteeringRequests()
        )
        self.kinds: list[MessageKind] = []

    def send(self, kind: MessageKind, body: bytes = b"", number: int = 0) -> None:
        del number
        self.kinds.append(kind)
        self.state.receive(kind, body)


@asynccontextmanager
async def published(running: RunningEngine) -> AsyncIterator[Publisher]:
    publisher = Publisher(source=running.queries, events=running.engine.bus)
    publishing = asyncio.create_task(publisher.run(), name="publisher")
    yield publisher
    publishing.cancel()
    await asyncio.wait({publishing})


async def everything(queries: Any) -> dict[str, Any]:
    """All that can be asked for."""
    return {
        "hosts": list(queries.hosts()),
        "guests": list(queries.guests()),
        "of one": list(queries.guests("b")),
        "active": sorted(queries.active_migrations(), key=lambda each: each.id),
        "running": sorted(queries.active_evacuations(), key=lambda each: each.id),
        "migrations": list(await queries.migrations(limit=100)),
        "evacuations": list(await queries.evacuations(limit=100)),
        "complaints": list(queries.complaints()),
    }


@looptime
@pytest.mark.parametrize("numbered_by_journal", [False, True], ids=["", "numbered by the journal"])
async def test_it_is_the_same_through_an_evacuation_and_after_it(
    service: SimulatedService, numbered_by_journal: bool
) -> None:
    service.numbered_by_journal = numbered_by_journal
    replica = Replica(service)
    told: dict[str, list[Event]] = {"engine": [], "replica": []}
    async with service.running() as running, published(running) as publisher:
        publisher.attach(replica)
        await replica.state.complete.wait()
        running.engine.bus.subscribe(told["engine"].append, journalled=True)
        replica.queries.bus.subscribe(told["replica"].append, journalled=True)
        run = await running.ask(Evacuate(host="a"))
        await publisher.flush()
        assert replica.queries.host("a").state is HostState.DRAINING  # type: ignore[union-attr]
        while (await running.queries.evacuation(run.id)).ended_at is None:
            await asyncio.sleep(0.07)
            await publisher.flush()
            states = [
                {each.id: (each.state, each.destination) for each in queries.active_migrations()}
                for queries in (running.queries, replica.queries)
            ]
            assert states[0] == states[1]
        await asyncio.sleep(5.0)  # it was each one's turn to be compared
        await publisher.flush()
        assert await everything(replica.queries) == await everything(running.queries)
        assert [each.text for each in told["replica"]] == [each.text for each in told["engine"]]
        assert replica.queries.bus.last_event_id == running.engine.bus.last_event_id
        counted = [each.event_id for each in told["replica"] if each.has_number]
        assert counted == [each["event_id"] for each in await service.journal.events(after=counted[0] - 1)]
        decisions = [each.decisions for each in await replica.queries.migrations(limit=100)]
        assert all(decisions)


@looptime
async def test_one_that_comes_late_has_it_all(service: SimulatedService) -> None:
    first, second = Replica(service), Replica(service)
    async with service.running() as running, published(running) as publisher:
        publisher.attach(first)
        await first.state.complete.wait()
        run = await running.ask(Evacuate(host="a"))
        await running.until(lambda: any(each.round for each in running.queries.active_migrations()))
        publisher.attach(second)
        await second.state.complete.wait()
        active = {each.id for each in running.queries.active_migrations()}
        assert {each.id for each in second.queries.active_migrations()} == active
        await running.end_of(run)
        await asyncio.sleep(5.0)
        assert await everything(second.queries) == await everything(running.queries)
        assert any(each.ended_at is None for each in first.state.migrations.values()), (
            "it is told nothing more"
        )


@looptime
async def test_what_no_event_tells_is_found_by_comparing(service: SimulatedService) -> None:
    replica = Replica(service)
    async with service.running() as running, published(running) as publisher:
        publisher.attach(replica)
        await replica.state.complete.wait()
        [key] = [each.guest for each in running.queries.guests() if each.name == "vm-0"]
        running.engine.inventory.note_dirty_rate(key, 12_345.0)
        await asyncio.sleep(2.0)
        assert replica.queries.guest("vm-0").dirty_rate_bytes_per_second == 12_345.0  # type: ignore[union-attr]
        # Nothing is sent that was sent before.
        replica.kinds.clear()
        await asyncio.sleep(3.5)
        assert set(replica.kinds) == {MessageKind.STATUS}


@looptime
async def test_guests_are_gone_through_twice_a_second_at_most_while_nothing_happens(
    service: SimulatedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica(service)
    async with service.running() as running, published(running) as publisher:
        publisher.attach(replica)
        await replica.state.complete.wait()
        await asyncio.sleep(2.0)
        asked, known_guests = list[str](), running.queries.known_guests

        def ask(host: str) -> Any:
            asked.append(host)
            return known_guests(host)

        monkeypatch.setattr(running.queries, "known_guests", ask)
        await asyncio.sleep(10.0)
        assert 10 <= asked.count("a") <= 22


@looptime
async def test_what_memory_has_forgotten_is_read_from_the_journal(service: SimulatedService) -> None:
    replica = Replica(service)
    async with service.running() as running, published(running) as publisher:
        publisher.attach(replica)
        run = await running.ask(Evacuate(host="a"))
        await running.end_of(run)
        await asyncio.sleep(1.0)
        assert len(replica.state.migrations) == 6
        running.engine.registry.migrations.clear()
        await asyncio.sleep(2.0)
        assert not replica.state.migrations
        assert len(await replica.queries.migrations(limit=100)) == 6


@looptime
async def test_a_guest_is_found_as_the_engine_finds_it(service: SimulatedService) -> None:
    replica = Replica(service)
    async with service.running() as running, published(running) as publisher:
        publisher.attach(replica)
        await replica.state.complete.wait()
        for which in ("vm-1", "a/vm-1", "b/vm-1", running.queries.guests()[0].guest, "nobody"):
            assert replica.queries.guest(which) == running.queries.guest(which), which


async def test_a_message_that_cannot_be_read_costs_only_what_it_is_about() -> None:
    state = ReplicaState()
    with pytest.raises(ValueError, match="validation error"):
        state.receive(MessageKind.EVENT, b'{"kind": "nonsense"}')
    with pytest.raises(ValueError, match="validation error"):
        state.receive(MessageKind.MIGRATION, b"{}")
    state.receive(MessageKind.DELIVERED, b"")
    state.receive(MessageKind.STATUS, b'{"complaints": ["one"]}')
    assert state.complaints == ["one"]


# The channel ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def channels(**handlers: Any) -> AsyncIterator[tuple[Channel, SteeringRequests]]:
    """The end that carries requests out, and who asks at the other."""
    ours, theirs = socket.socketpair()
    server, asks = RequestServer(handlers), SteeringRequests()
    ends: list[Channel] = []
    lost: list[str] = []
    ends.append(
        await Channel.over(
            ours, received=lambda _, number, body: server.receive(ends[0], number, body), lost=lost.append
        )
    )
    other = await Channel.over(
        theirs, received=lambda _, number, body: asks.receive(number, body), lost=lost.append
    )
    asks.use(other)
    yield ends[0], asks
    for end in (ends[0], other):
        end.close()
    async with asyncio.timeout(5):
        while len(lost) < 2:
            await asyncio.sleep(0)


async def test_requests_are_replied_to_each_with_its_own() -> None:
    async def double(asked: Any) -> Any:
        await asyncio.sleep(0.01 * (5 - asked["number"]))
        return 2 * asked["number"], "x" * 300_000

    async def fails(_: Any) -> Any:
        raise Unavailable("not now")

    async with channels(double=double, fails=fails) as (_, asks):
        found = await asyncio.gather(*(asks.ask("double", number=number) for number in range(5)))
        assert [number for number, _ in found] == [0, 2, 4, 6, 8]
        with pytest.raises(Unavailable, match="not now"):
            await asks.ask("fails")
        with pytest.raises(Unavailable):
            await asks.ask("what nobody does")


async def test_an_end_that_does_not_take_what_it_is_sent_is_cut_off_and_nobody_waits() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        lost: list[str] = []
        channel = await Channel.over(
            ours, received=lambda *_: None, lost=lost.append, most_waiting_bytes=1 << 20
        )
        sent = 0
        async with asyncio.timeout(10):
            while channel.open:
                channel.send(MessageKind.EVENT, json.dumps("x" * 1000).encode())
                sent += 1000
                await asyncio.sleep(0)
        assert lost == ["it has let more than 1048576 bytes wait"]
        assert sent < 3 << 20
        channel.send(MessageKind.EVENT, b"1")  # to nobody: no error


@looptime
async def test_who_asks_together_has_it_done_once_and_after_asking() -> None:
    done: list[float] = []
    loop = asyncio.get_running_loop()

    async def work() -> None:
        await asyncio.sleep(0.1)
        done.append(loop.time())

    shared = Shared(work, pause_seconds=1.0)
    first = asyncio.create_task(shared(), name="first")
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(shared(), name=f"late {number}") for number in range(50)]
    await asyncio.gather(first, *others)
    assert len(done) == 2, "once for the first, and once for all who asked when that was under way"
    assert done[1] - done[0] >= 1.0


@looptime
async def test_guests_that_are_different_are_sent_without_those_beside_them(
    service: SimulatedService,
) -> None:
    replica = Replica(service)
    async with service.running() as running, published(running) as publisher:
        await running.engine.inventory.look_at_all()
        publisher.attach(replica)
        await replica.state.complete.wait()
        await asyncio.sleep(1.0)
        replica.kinds.clear()
        first, second, *_ = running.engine.inventory.guests("a")
        running.engine.inventory.note_dirty_rate(second.key, 12345.0)
        running.engine.inventory.gone(first, "a")
        while MessageKind.GUESTS not in replica.kinds:
            await asyncio.sleep(0.1)
        assert MessageKind.HOST not in replica.kinds
        assert list(replica.queries.guests()) == list(running.queries.guests())
