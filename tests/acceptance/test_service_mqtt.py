"""A maintenance scheduler empties a host over MQTT: real broker, real service, real guests."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, until
from tests.acceptance.service_site import MIB, SLOW, Board, LiveSite, Witness, at_broker, guest, served
from tests.acceptance.test_service_entrances import entrance_there
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import Peer, peer


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


@asynccontextmanager
async def at(broker: Broker, machines: list[GuestMachine], **how: Any) -> AsyncIterator[LiveSite]:
    async with served(machines, extra=at_broker(broker), **how) as site:
        yield site


def in_ten_minutes() -> str:
    return (datetime.now(UTC) + timedelta(minutes=10)).isoformat()


async def until_reply(scheduler: Peer, identifier: str, kind: str, within: float = 60) -> Any:
    def there() -> list[Any]:
        return [each for each in scheduler.replies(identifier) if each["kind"] == kind]

    try:
        await until(there, what=f"{kind} of {identifier}", within=within)
    except TimeoutError:
        raise AssertionError((kind, scheduler.replies(identifier))) from None
    return there()[-1]


def kinds(scheduler: Peer, identifier: str) -> list[str]:
    """Of replies in the order in which they came, repeated ones once."""
    return list(dict.fromkeys(each["kind"] for each in scheduler.replies(identifier)))


async def nothing_missing(site: LiveSite, board: Board, subject: str, identifier: str) -> list[Any]:
    """What the board has got of it is what the journal has, in the same order; all of it since the board is there."""
    wanted: list[Any] = []
    got: list[Any] = []

    async def same() -> bool:
        got[:] = [
            (each["event_id"], each["sequence"], each["kind"]) for each in board.about(subject, identifier)
        ]
        since = got[0][0] if subject == "host" and got else 0
        wanted[:] = [
            (each["event_id"], each["sequence"], each["kind"])
            for each in await site.events(subject, identifier)
            if each["kind"] in ("state", "decision") and each["event_id"] >= since
        ]
        return got == wanted

    try:
        await until(same, what="all of it", within=10)
    except TimeoutError:
        assert got == wanted
    first = wanted[0][1]
    assert subject == "host" or first == 1
    assert [sequence for _, sequence, _ in wanted] == list(range(first, first + len(wanted)))
    return board.about(subject, identifier)


#: As the lifecycle allows it for precopy; some states are too short to be seen.
_WAY = ("queued", "preparing", "precopy", "switchover", "postcopy", "finishing", "completed")


async def test_host_is_emptied_by_a_command_and_all_of_it_arrives_in_order(broker: Broker) -> None:
    machines = [guest("web"), guest("db", region=48 * MIB, speed=30 * MIB)]
    async with at(broker, machines) as site, peer(broker) as scheduler, Board(broker) as board:
        deadline = in_ten_minutes()
        await scheduler.command("evacuate", id="night-1", host="a", deadline=deadline)
        accepted = await until_reply(scheduler, "night-1", "accepted")
        assert (accepted["subject"], accepted["body"]["host"]) == ("evacuation", "a")
        assert datetime.fromisoformat(accepted["body"]["deadline"]) == datetime.fromisoformat(deadline)
        run = accepted["subject_id"]
        # Asked for again while it is under way: nothing more happens.
        await scheduler.command("evacuate", id="night-1", host="a", deadline=deadline)
        outcome = await until_reply(scheduler, "night-1", "outcome")
        assert (outcome["subject_id"], outcome["body"]["state"]) == (run, "completed")
        assert outcome["body"]["guests_left"] == 0
        assert kinds(scheduler, "night-1") == ["accepted", "outcome"]
        await site.everyone_at(machines, "b", "c")

        # And once more after its end: the same answer, and nobody is moved.
        before = len(scheduler.replies("night-1"))
        await scheduler.command("evacuate", id="night-1", host="a", deadline=deadline)
        await until(lambda: len(scheduler.replies("night-1")) > before, what="the reply again")
        assert scheduler.replies("night-1")[-1]["kind"] == "outcome"
        await scheduler.command("evacuate", id="night-1", host="b")
        refused = await until_reply(scheduler, "night-1", "refused")
        assert refused["code"] == "id-reused", refused
        assert [each["id"] for each in (await site.get("evacuations"))["items"]] == [run]
        assert len(await site.migrations()) == len(machines)

        states = [each["body"]["state"] for each in await nothing_missing(site, board, "evacuation", run)]
        assert (states[0], states[-1]) == ("running", "completed")
        assert set(states[:-1]) == {"running"}
        hosts = [each["body"]["state"] for each in await nothing_missing(site, board, "host", "a")]
        assert list(dict.fromkeys(hosts))[-2:] == ["draining", "maintenance"]
        for migration in await site.migrations():
            events = await nothing_missing(site, board, "migration", migration["id"])
            way = [_WAY.index(each["body"]["state"]) for each in events if each["kind"] == "state"]
            assert way == sorted(way)
            assert way[-1] == _WAY.index("completed")
            decisions = [each["body"]["action"] for each in events if each["kind"] == "decision"]
            assert decisions == [
                each["action"] for each in (await site.get(f"migrations/{migration['id']}"))["decisions"]
            ]
            assert decisions


@pytest.mark.matrix
async def test_service_killed_right_after_a_command_carries_it_out_once(broker: Broker) -> None:
    machines = [guest("one"), guest("two"), guest("three")]
    async with at(broker, machines) as site, peer(broker) as scheduler:
        async with Witness(site, machines):
            for number, machine in enumerate(machines):
                name = f"move-{number}"
                await scheduler.command("migrate", id=name, guest=str(machine.uuid), to="b")
                if number == 1:
                    await until_reply(scheduler, name, "accepted")
                elif number == 2:
                    await asyncio.sleep(
                        0.01
                    )  # an instant: it is being carried out, and nothing tells of that yet
                await site.restart()
            for number in range(len(machines)):
                outcome = await until_reply(scheduler, f"move-{number}", "outcome")
                assert outcome["body"]["state"] == "completed", (outcome, site.log()[-6000:])
                # The broker may keep a reply that a dead service did not see confirmed; it never contradicts.
                assert kinds(scheduler, f"move-{number}") == ["accepted", "outcome"]
        done = await site.migrations()
        assert sorted(each["guest"] for each in done) == sorted(str(machine.uuid) for machine in machines)
        await site.everyone_at(machines, "b")


async def test_what_happens_while_the_process_at_the_broker_is_away_is_published_afterwards(
    broker: Broker,
) -> None:
    machines = [guest("web", region=32 * MIB)]
    async with at(broker, machines, speed=SLOW) as site, peer(broker) as scheduler, Board(broker) as board:
        with site.crawling():
            await scheduler.command("evacuate", id="night-1", host="a")
            moving = await site.until_state("precopy")
            os.kill(await entrance_there(site), signal.SIGKILL)
        outcome = await until_reply(scheduler, "night-1", "outcome")
        assert outcome["body"]["state"] == "completed"
        for subject, identifier in (
            ("evacuation", outcome["subject_id"]),
            ("migration", moving["id"]),
            ("host", "a"),
        ):
            await nothing_missing(site, board, subject, identifier)
        assert kinds(scheduler, "night-1") == ["accepted", "outcome"]
        assert await site.is_at_broker()
        await site.everyone_at(machines, "b", "c")


async def test_whether_commands_are_carried_out_is_said_at_the_broker(broker: Broker) -> None:
    async with at(broker, []) as site, peer(broker, "dashboard") as dashboard:
        assert site.service is not None

        async def says(what: bytes) -> None:
            await until(
                lambda: [got.payload for got in dashboard.on("service/one")][-1:] == [what],
                what=what.decode(),
                within=20,
            )

        await says(b"online")
        os.kill(site.service.pid, signal.SIGSTOP)
        await says(b"offline")
        os.kill(site.service.pid, signal.SIGCONT)
        await says(b"online")
        entrance = await entrance_there(site)
        os.kill(entrance, signal.SIGKILL)
        await says(b"offline")
        await says(b"online")
        assert await entrance_there(site) != entrance
        assert await asyncio.to_thread(site.stop) == 0
        await says(b"offline")


async def to_and_fro(site: LiveSite, enough: asyncio.Event) -> list[str]:
    """Empty the host and fill it again until it is enough; at least once. The ids of what was begun."""
    begun: list[str] = []
    while not enough.is_set() or not begun:
        verb = "restore" if len(begun) % 2 else "evacuate"
        document = await site.post(f"hosts/a/{verb}")
        begun.append(document["id"])
        await site.ended(document["id"], "completed")
    return begun


@pytest.mark.matrix
@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.soak)], ids=["short", "long"])
async def test_broker_stopped_and_started_during_an_evacuation_and_nothing_is_lost(
    broker: Broker, times: int
) -> None:
    machines = [guest(f"vm-{number}", region=48 * MIB) for number in range(2)]
    enough = asyncio.Event()
    async with at(broker, machines, speed=SLOW) as site, Board(broker) as board:
        moving = asyncio.create_task(to_and_fro(site, enough), name="to and fro")
        for _ in range(times):
            with site.crawling():
                await site.until_state("precopy")
                await asyncio.to_thread(broker.stop)
            await goes_on(site)  # some of it happens while there is no broker
            await broker.started()
            await until(site.is_at_broker, what="the service at the broker", within=20)
        enough.set()
        begun = await asyncio.wait_for(moving, 60)
        for identifier in begun:
            await nothing_missing(site, board, "evacuation", identifier)
        for migration in await site.migrations():
            await nothing_missing(site, board, "migration", migration["id"])
        await nothing_missing(site, board, "host", "a")
        await site.everyone_at(machines, *(("a",) if len(begun) % 2 == 0 else ("b", "c")))


async def goes_on(site: LiveSite) -> None:
    """Wait until the journal has one more event than now."""
    before = len(await site.events())

    async def more() -> bool:
        return len(await site.events()) > before

    await until(more, what="an event without a broker", within=30)


@pytest.mark.parametrize(
    "times",
    [pytest.param(1, marks=pytest.mark.matrix), pytest.param(20, marks=pytest.mark.soak)],
    ids=["short", "long"],
)
async def test_broker_killed_has_the_true_state_within_five_seconds_and_gaps_are_in_the_journal(
    broker: Broker, times: int
) -> None:
    machines = [guest("vm", region=48 * MIB)]
    enough = asyncio.Event()
    async with at(broker, machines, speed=SLOW) as site, Board(broker) as board:
        moving = asyncio.create_task(to_and_fro(site, enough), name="to and fro")
        for _ in range(times):
            with site.crawling():
                await site.until_state("precopy")
                broker.kill()
            (broker.directory / "mosquitto.db").unlink(missing_ok=True)
            await goes_on(site)
            await broker.started()
            began = time.monotonic()

            async def true() -> bool:
                for migration in await site.migrations():
                    shown = board.last_state("migration", migration["id"])
                    if shown is None or shown["state"] != migration["state"]:
                        return False
                return True

            await until(true, what="the true state", within=5)
            assert time.monotonic() - began < 5
        enough.set()
        for identifier in await asyncio.wait_for(moving, 60):
            await until(partial(completed, board, identifier), what="the last state")
            journalled = [each["sequence"] for each in await site.events("evacuation", identifier)]
            assert journalled == list(range(1, len(journalled) + 1))
            got = [each["sequence"] for each in board.about("evacuation", identifier)]
            assert got == sorted(got)
            assert set(got) <= set(journalled)


async def completed(board: Board, identifier: str) -> bool:
    shown = board.last_state("evacuation", identifier)
    return shown is not None and shown["state"] == "completed"
