"""Events over HTTP: first the journal, then live, none lost and none twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from migrator.api.commands import Migrate
from migrator.http.limits import Limits
from migrator.testing.lab import until
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady
from tests.http_service import OPERATOR, VIEWER, MemoryTokens, Place, serving, two_hosts
from tests.some_events import decision, migration_state, progress


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    return two_hosts(tmp_path / "records")


@pytest.fixture
async def running(service: SimulatedService) -> AsyncIterator[RunningEngine]:
    async with service.running(killed=True) as running:
        await journalled(running)
        yield running


@pytest.fixture
async def place(running: RunningEngine, tmp_path: Path) -> AsyncIterator[Place]:
    async with serving(running.dispatcher, running.queries, tmp_path) as place:
        yield place


async def journalled(running: RunningEngine) -> int:
    """Wait until the journal has all that was published; return the number of the last event."""
    await until(lambda: running.bus.last_event_id == running.bus.place, what="events in the journal")
    return running.bus.last_event_id


async def streams(running: RunningEngine, count: int) -> None:
    """Wait until so many listen."""
    await until(lambda: running.bus.listening() == count, what=f"{count} streams")


def write_slowly(service: SimulatedService, seconds: float) -> None:
    """Have the journal take so long for what it writes."""
    pause = service.journal.pause

    async def slow(call: str) -> None:
        await (asyncio.sleep(seconds) if call == "save" else pause(call))

    service.journal.pause = slow


def client_of(place: Place) -> httpx2.AsyncClient:
    transport = httpx2.AsyncHTTPTransport(uds=str(place.socket), verify=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://migrator/api/v1/", timeout=60)


async def frames(
    place: Place, path: str = "events", *, last: str | None = None
) -> AsyncIterator[dict[str, str]]:
    """The fields of every frame, as a browser would take them apart; comments as ``comment``."""
    headers = {} if last is None else {"Last-Event-ID": last}
    async with client_of(place) as client, client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        frame: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if not line:
                yield frame
                frame = {}
            elif line.startswith(":"):
                frame["comment"] = line
            else:
                name, _, value = line.partition(": ")
                frame[name] = value


async def events(
    place: Place, path: str = "events", *, last: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    async with aclosing(frames(place, path, last=last)) as found:  # type: ignore[type-var]
        async for frame in found:
            if "data" in frame:
                event = json.loads(frame["data"])
                assert frame["event"] == event["kind"]
                assert frame.get("id") == (None if event["kind"] == "progress" else str(event["event_id"]))
                yield event


async def take(
    count: int, place: Place, path: str = "events", *, last: str | None = None, within: float = 10
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(within), aclosing(events(place, path, last=last)) as coming:  # type: ignore[type-var]
        async for event in coming:
            found.append(event)
            if len(found) == count:
                break
    return found


def say(running: RunningEngine, count: int) -> None:
    for _ in range(count):
        running.bus.publish(migration_state("m1"))


async def test_without_a_place_to_begin_only_what_comes(place: Place, running: RunningEngine):
    say(running, 5)
    past = await journalled(running)
    coming = asyncio.create_task(take(2, place))
    await streams(running, 1)
    say(running, 2)
    assert [event["event_id"] for event in await coming] == [past + 1, past + 2]


@pytest.mark.parametrize("by", ["token", "session"])
async def test_a_stream_ends_soon_after_its_token_was_revoked(
    running: RunningEngine, tmp_path: Path, by: str
):
    tokens = MemoryTokens()
    async with (
        serving(running.dispatcher, running.queries, tmp_path, tokens=tokens) as place,
        httpx2.AsyncClient(base_url=f"{place.url}/api/v1/", verify=False) as client,
    ):
        headers = {"Origin": place.url}
        if by == "session":
            await client.post("session", json={"token": OPERATOR}, headers=headers)
        else:
            headers["Authorization"] = f"Bearer {OPERATOR}"
        async with client.stream("GET", "events", headers=headers) as revoked:
            viewers = {"Authorization": f"Bearer {VIEWER}"}
            async with (
                httpx2.AsyncClient(base_url=f"{place.url}/api/v1/", headers=viewers, verify=False) as other,
                other.stream("GET", "events") as goes_on,
            ):
                await streams(running, 2)
                tokens.revoked.add("olga")
                async with asyncio.timeout(10):
                    async for _ in revoked.aiter_lines():
                        pass
                await streams(running, 1)
                say(running, 1)
                async with asyncio.timeout(10):
                    async for line in goes_on.aiter_lines():
                        if line.startswith("data"):
                            break
        assert (await client.get("hosts", headers=headers)).status_code == 401


async def test_the_journal_first_and_then_what_comes(place: Place, running: RunningEngine):
    say(running, 5)
    past = await journalled(running)
    coming = asyncio.create_task(take(5, place, f"events?after={past - 3}"))
    await streams(running, 1)
    say(running, 2)
    assert [event["event_id"] for event in await coming] == list(range(past - 2, past + 3))


async def test_what_a_browser_saw_last_counts_more_than_the_address(place: Place, running: RunningEngine):
    say(running, 6)
    past = await journalled(running)
    found = await take(2, place, f"events?after={past - 5}", last=str(past - 2))
    assert [event["event_id"] for event in found] == [past - 1, past]


async def test_ids_of_another_journal(place: Place, running: RunningEngine):
    """After its journal was lost a service counts from 1 again; who listens must not be deaf until it caught up."""
    say(running, 2)
    past = await journalled(running)
    coming = asyncio.create_task(take(1, place, "events?after=5000"))
    await streams(running, 1)
    say(running, 1)
    assert [event["event_id"] for event in await coming] == [past + 1]


@pytest.mark.parametrize("lag", [0.002, 0.05], ids=["journal at once", "journal late"])
async def test_no_gap_and_none_twice_while_much_is_published(
    service: SimulatedService, running: RunningEngine, place: Place, lag: float
):
    write_slowly(service, lag)
    first = running.bus.last_event_id
    say(running, 100)
    # Nobody has heard of an event that the journal does not have.
    assert await journalled(running) == first + 100
    published = asyncio.Event()

    async def publish() -> None:
        for _ in range(300):
            say(running, 3)
            running.bus.publish(progress())
            await asyncio.sleep(0)
            if running.bus.last_event_id % 60 == 0:
                await asyncio.sleep(0.01)
        published.set()

    publishing = asyncio.create_task(publish())
    places = [first + 10 * n for n in range(8)]
    found = [asyncio.create_task(_all_of(place, first + 1000, after=after)) for after in places]
    for after, stream in zip(places, found, strict=True):
        assert await stream == list(range(after + 1, first + 1001))
    await publishing
    assert published.is_set()


async def _all_of(place: Place, upto: int, *, after: int) -> list[int]:
    """Ids up to `upto`, over as many streams as it takes: each is broken off after some."""
    seen: list[int] = []
    last = after
    async with asyncio.timeout(60):
        while last < upto:
            async with aclosing(events(place, "events?after=0", last=str(last))) as coming:  # type: ignore[type-var]
                taken = 0
                async for event in coming:
                    if event["kind"] == "progress":
                        continue
                    last = event["event_id"]
                    seen.append(last)
                    taken += 1
                    if taken == 137 or last == upto:
                        break
    return seen


async def test_events_of_one_migration_from_its_first(
    service: SimulatedService, running: RunningEngine, place: Place
):
    # One that writes nothing is at its switch at once, however slow its link: its memory is not sent.
    for machine in service.site.machines.values():
        machine.workload = steady(128 * MIB, 0.1 * MIB)
    out = service.site.hosts["alpha"].out
    out.bytes_per_second = 1.0 * MIB
    one, other = [await running.ask(Migrate(guest=name, to="beta")) for name in ("db", "alpha/web")]
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(20), aclosing(events(place, f"migrations/{one.id}/events")) as coming:  # type: ignore[type-var]
        async for event in coming:
            found.append(event)
            if event["kind"] == "progress":
                out.bytes_per_second = 1000.0 * MIB
            if event["kind"] == "state" and event["body"]["state"] == "completed":
                break
    await until(lambda: not running.queries.active_migrations(), what=f"the end of {other.id}")
    assert {event["subject_id"] for event in found} == {one.id}
    assert {event["kind"] for event in found} == {"state", "decision", "progress"}
    assert found[0]["kind"] == "state"
    counted = [event["sequence"] for event in found if event["kind"] != "progress"]
    assert counted == list(range(1, len(counted) + 1))


async def test_a_page_of_past_events(place: Place, running: RunningEngine):
    say(running, 7)
    past = await journalled(running)
    async with client_of(place) as client:
        ask = {"Accept": "application/json"}
        page = (await client.get(f"events?after={past - 5}&limit=3", headers=ask)).json()
        assert [event["event_id"] for event in page["items"]] == [past - 4, past - 3, past - 2]
        rest = (await client.get(f"events?after={page['next']}&limit=3", headers=ask)).json()
        assert [event["event_id"] for event in rest["items"]] == [past - 1, past]
        assert rest["next"] is None
        none = await client.get("migrations/nobody/events", headers=ask)
        assert none.status_code == 404


async def test_a_stream_that_has_nothing_to_say_says_that_it_lives(running: RunningEngine, tmp_path: Path):
    comments = 0
    limits = Limits(heartbeat_seconds=0.05)
    async with (
        asyncio.timeout(5),
        serving(running.dispatcher, running.queries, tmp_path, limits=limits) as place,
    ):
        async for frame in frames(place):
            comments += "comment" in frame
            if comments == 2:
                break


async def test_a_client_that_does_not_read_is_let_go_and_harms_nobody(running: RunningEngine, tmp_path: Path):
    limits = Limits(send_seconds=0.3)
    async with serving(running.dispatcher, running.queries, tmp_path, limits=limits) as place:
        reader, writer = await asyncio.open_unix_connection(str(place.socket), limit=1024)
        writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        first = running.bus.last_event_id
        coming = asyncio.create_task(_all_of(place, first + 4000, after=first))
        await streams(running, 2)
        for _ in range(40):
            for _ in range(100):
                running.bus.publish(decision(reason="x" * 1000))
            await asyncio.sleep(0)
        assert await coming == list(range(first + 1, first + 4001))
        await streams(running, 0)
        writer.close()


async def test_more_than_the_queue_holds_is_read_back_from_the_journal(
    running: RunningEngine, place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("migrator.ports.event_queue._QUEUE_EVENTS", 500)
    first = running.bus.last_event_id
    seen: list[int] = []
    async with asyncio.timeout(90), aclosing(events(place, f"events?after={first}")) as coming:  # type: ignore[type-var]
        say(running, 1)
        seen.append((await anext(coming))["event_id"])
        say(running, 3000)  # while it is not read: the queue keeps the last of them
        await journalled(running)
        async for event in coming:
            seen.append(event["event_id"])
            if len(seen) == 3001:
                break
    assert seen == list(range(first + 1, first + 3002))


async def test_a_journal_that_cannot_be_read_ends_the_stream(
    service: SimulatedService, running: RunningEngine, place: Place
):
    say(running, 3)
    past = await journalled(running)
    service.journal.unreadable = "the disk is gone"
    seen: list[int] = []
    async with asyncio.timeout(10):
        await _to_its_end(place, seen, after=past - 3)
    assert seen == []
    async with client_of(place) as client:
        answer = await client.get("events", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    service.journal.unreadable = ""
    found = await take(3, place, f"events?after={past - 3}")
    assert [event["event_id"] for event in found] == [past - 2, past - 1, past]


async def test_streams_end_with_the_service(running: RunningEngine, tmp_path: Path):
    loop = asyncio.get_running_loop()
    first = running.bus.last_event_id
    seen: list[list[int]] = [[], [], []]
    async with serving(running.dispatcher, running.queries, tmp_path, timeout_seconds=5) as place:
        say(running, 1)
        open_streams = [asyncio.create_task(_to_its_end(place, mine, after=first)) for mine in seen]
        await until(lambda: seen == [[first + 1]] * 3, what="3 streams that have the past")
        say(running, 2)
        await journalled(running)
        began = loop.time()
    assert loop.time() - began < 4.5
    await asyncio.gather(*open_streams)
    assert seen == [[first + 1, first + 2, first + 3]] * 3
    assert running.bus.listening() == 0


async def test_a_stream_that_ends_amid_the_past_leaves_no_gap_behind(
    service: SimulatedService, running: RunningEngine, tmp_path: Path
):
    write_slowly(service, 0.3)
    first = running.bus.last_event_id
    seen: list[int] = []
    async with serving(running.dispatcher, running.queries, tmp_path) as place:
        say(running, 5)
        stream = asyncio.create_task(_to_its_end(place, seen, after=first))
        await streams(running, 1)
        say(running, 5)
    await stream
    assert seen == list(range(first + 1, first + len(seen) + 1))


async def _to_its_end(place: Place, seen: list[int], *, after: int) -> None:
    async with aclosing(events(place, f"events?after={after}")) as coming:  # type: ignore[type-var]
        async for event in coming:
            seen.append(event["event_id"])  # noqa: PERF401 - looked at while it grows
