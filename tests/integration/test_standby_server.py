"""Two controllers on a real PostgreSQL: commands cross it at once, and in spite of what happens to the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from migrator.api.commands import Command, Evacuate
from migrator.api.replies import Reply
from migrator.api.requests import Envelope
from migrator.errors import JournalError
from migrator.ports.controllers import ControllerInfo, LiveDocument
from migrator.replica.follower import JournalFollower
from migrator.replica.state import ReplicaState
from migrator.service import forwarded_commands, waiting_commands
from migrator.service.forwarded_commands import TIMEOUT_SECONDS, ForwardedCommands
from migrator.service.waiting_commands import WaitingCommandRunner
from migrator.store.backend import Server
from migrator.store.journal import SqlJournal
from migrator.store.presence import Heartbeat
from migrator.testing.postgresql import Postgres
from migrator.testing.process import until
from migrator.testing.simulated_service import OPERATOR
from tests.conftest import missing
from tests.journals import postgresql_missing
from tests.some_events import host_state


@dataclass
class Carried:
    """A dispatcher that notes what it was given; the engine's own is tested in tests/unit/test_standby.py."""

    commands: list[tuple[str, bool]] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def carry_out_waiting(self, envelope: Envelope, *, begun_before: bool) -> Reply:
        self.commands.append((str(envelope.key), begun_before))
        if self.hold is not None:
            await self.hold.wait()
        return Reply(
            kind="accepted",
            id=envelope.id,
            verb=envelope.verb,
            subject="evacuation",
            subject_id="e1",
            body={},
        )


@asynccontextmanager
async def running(*work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each()) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def envelope(command: Command, key: str | None) -> Envelope:
    body = command.model_dump(mode="json", exclude_none=True)
    return Envelope(verb=command.verb, body=body, caller=OPERATOR, id=key)


@pytest.fixture
async def both(postgresql_place: Server) -> AsyncIterator[tuple[SqlJournal, SqlJournal]]:
    async with (
        await SqlJournal.open(postgresql_place) as one,
        await SqlJournal.open(replace(postgresql_place, beside=None)) as other,
    ):
        yield one, other


async def test_a_command_reaches_who_acts_and_its_answer_who_asked_without_a_poll(
    both: tuple[SqlJournal, SqlJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than anybody waits: what comes in time has come by a signal.
    for each in (forwarded_commands, waiting_commands):
        monkeypatch.setattr(each, "_POLL_SECONDS", 10 * TIMEOUT_SECONDS)
    acting, standby = both
    carried = Carried()
    forwarded = ForwardedCommands(standby, acting=lambda: "one")
    async with running(forwarded.run, WaitingCommandRunner(acting, carried, name="one").run):
        for number in range(20):
            reply = await forwarded.execute(envelope(Evacuate(host="a"), f"k{number}"))
            assert reply.kind == "accepted"
        assert len({key for key, _ in carried.commands}) == len(carried.commands) == 20


@pytest.fixture
def victim() -> Iterator[Postgres]:
    """A server of its own, which may be killed."""
    if why := postgresql_missing():
        missing(why)
    with Postgres("victim") as server:
        yield server


async def test_a_server_that_is_restarted_over_a_command_loses_nothing(victim: Postgres) -> None:
    place = replace(victim.place(victim.create()), beside=None)
    async with await SqlJournal.open(place) as acting, await SqlJournal.open(place) as standby:
        carried = Carried(hold=asyncio.Event())
        state = ReplicaState()
        follower = JournalFollower(state, standby)
        forwarded = ForwardedCommands(standby, acting=lambda: "one", timeout_seconds=120)
        runner = WaitingCommandRunner(acting, carried, name="one")
        async with running(forwarded.run, runner.run, follower.run):
            await until(state.complete.is_set, what="the follower has begun")
            asked = asyncio.create_task(forwarded.execute(envelope(Evacuate(host="a"), "k")), name="ask")
            await until(lambda: bool(carried.commands), what="it is carried out")
            await asyncio.to_thread(victim.kill)
            await until(lambda: bool(follower.complaint), what="the follower says that it is away", within=60)
            await asyncio.to_thread(victim.start)
            assert carried.hold is not None
            carried.hold.set()
            async with asyncio.timeout(60):
                assert (await asked).kind == "accepted"
            assert len(carried.commands) == 1
            # What is written now is followed again.
            await _written(lambda: acting.live.write([_host("h1")], writer="one"))
            await until(lambda: "h1" in state.hosts, what="the follower goes on", within=60)
            await until(lambda: not follower.complaint, what="it has nothing to complain of", within=60)


async def _written(write: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await write()
                return
            except JournalError:
                await asyncio.sleep(0.1)


def _host(name: str) -> LiveDocument:
    event: Any = host_state(name)
    text = f'{{"host":{event.host.model_dump_json()},"guests":[]}}'
    return LiveDocument(kind="host", id=name, text=text)


async def test_a_heartbeat_says_who_is_there_and_who_plans(both: tuple[SqlJournal, SqlJournal]) -> None:
    one, other = both
    lease = await one.leases.acquire("site", owner="one", seconds=60)
    assert lease is not None
    info = ControllerInfo(name="one", instance="machine-1", version="1.0", role="acting")
    async with Heartbeat(one, info=info, seconds=60) as first:
        assert not one.others
        second_info = replace(info, name="two", instance="machine-2", role="standby")
        async with Heartbeat(other, info=second_info, seconds=60) as second:
            await first.beat()
            assert one.others
            assert [each.info.instance for each in first.now.controllers] == ["machine-1", "machine-2"]
            acting = second.now.acting
            assert acting is not None
            assert acting.info.instance == "machine-1"
        await first.beat()
        assert [each.info.name for each in first.now.controllers] == ["one"]
        await one.leases.release(lease)
        await first.beat()
        assert first.now.planner is None
