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

from migrator.core.model import State
from migrator.errors import JournalError
from migrator.http.limits import Limits
from migrator.testing.lab import until
from tests.http_service import OPERATOR, VIEWER, MemoryTokens, Place
from tests.service_fakes import ScriptedService, serving
from tests.some_events import decision, migration_state, progress


@pytest.fixture
async def world() -> ScriptedService:
    return ScriptedService(steps=None)


@pytest.fixture
async def place(world: ScriptedService, tmp_path: Path) -> AsyncIterator[Place]:
    async with serving(world, tmp_path) as place:
        yield place


def client_of(place: Place) -> httpx2.AsyncClient:
    transport = httpx2.AsyncHTTPTransport(uds=str(place.socket))
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


def say(world: ScriptedService, count: int, *, subject_id: str = "m1") -> None:
    for _ in range(count):
        world.bus.publish(migration_state(subject_id))


async def test_without_a_place_to_begin_only_what_comes(place: Place, world: ScriptedService):
    say(world, 5)
    coming = asyncio.create_task(take(2, place))
    await until(lambda: world.bus.listening() == 1, what="1 streams")
    say(world, 2)
    assert [event["event_id"] for event in await coming] == [6, 7]


@pytest.mark.parametrize("by", ["token", "session"])
async def test_a_stream_ends_soon_after_its_token_was_revoked(tmp_path: Path, by: str):
    tokens, world = MemoryTokens(), ScriptedService(steps=None)
    async with (
        serving(world, tmp_path, tokens=tokens) as place,
        httpx2.AsyncClient(base_url=f"{place.url}/api/v1/") as client,
    ):
        headers = {"Origin": place.url}
        if by == "session":
            await client.post("session", json={"token": OPERATOR}, headers=headers)
        else:
            headers["Authorization"] = f"Bearer {OPERATOR}"
        async with client.stream("GET", "events", headers=headers) as revoked:
            viewers = {"Authorization": f"Bearer {VIEWER}"}
            async with (
                httpx2.AsyncClient(base_url=f"{place.url}/api/v1/", headers=viewers) as other,
                other.stream("GET", "events") as goes_on,
            ):
                await until(lambda: world.bus.listening() == 2, what="2 streams")
                tokens.revoked.add("olga")
                async with asyncio.timeout(10):
                    async for _ in revoked.aiter_lines():
                        pass
                await until(lambda: world.bus.listening() == 1, what="1 stream")
                say(world, 1)
                async with asyncio.timeout(10):
                    async for line in goes_on.aiter_lines():
                        if line.startswith("data"):
                            break
        assert (await client.get("hosts", headers=headers)).status_code == 401


async def test_the_journal_first_and_then_what_comes(place: Place, world: ScriptedService):
    say(world, 5)
    coming = asyncio.create_task(take(5, place, "events?after=2"))
    await until(lambda: world.bus.listening() == 1, what="1 streams")
    say(world, 2)
    assert [event["event_id"] for event in await coming] == [3, 4, 5, 6, 7]


async def test_what_a_browser_saw_last_counts_more_than_the_address(place: Place, world: ScriptedService):
    say(world, 6)
    assert [e["event_id"] for e in await take(2, place, "events?after=1", last="4")] == [5, 6]


async def test_ids_of_another_journal(place: Place, world: ScriptedService):
    """After its journal was lost a service counts from 1 again; who listens must not be deaf until it caught up."""
    say(world, 2)
    coming = asyncio.create_task(take(1, place, "events?after=5000"))
    await until(lambda: world.bus.listening() == 1, what="1 streams")
    say(world, 1)
    assert [event["event_id"] for event in await coming] == [3]


@pytest.mark.parametrize("lag", [0.0, 0.15], ids=["journal at once", "journal late"])
async def test_no_gap_and_none_twice_while_much_is_published(tmp_path: Path, lag: float):
    world = ScriptedService(steps=None, journal_lag=lag)
    async with serving(world, tmp_path) as place:
        say(world, 100)
        # Nobody has heard of an event that the journal does not have.
        await until(lambda: world.bus.last_event_id == 100, what="a hundred in the journal")
        published = asyncio.Event()

        async def publish() -> None:
            for _ in range(300):
                say(world, 3)
                world.bus.publish(progress())
                await asyncio.sleep(0)
                if world.bus.last_event_id % 60 == 0:
                    await asyncio.sleep(0.01)
            published.set()

        publishing = asyncio.create_task(publish())
        streams = [asyncio.create_task(_all_of(place, 1000, after=10 * n)) for n in range(8)]
        for n, stream in enumerate(streams):
            assert await stream == list(range(10 * n + 1, 1001))
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


async def test_events_of_one_migration_from_its_first(place: Place, world: ScriptedService):
    guest = world.guest("db")
    assert guest is not None
    one, other = world.migrate(guest), world.migrate(guest)
    coming = asyncio.create_task(take(6, place, f"migrations/{one.id}/events"))
    await until(lambda: world.bus.listening() == 1, what="1 streams")
    world.progress(other.id, 0.5)
    world.progress(one.id, 0.5)
    world.finish(other.id)
    world.finish(one.id, State.COMPLETED)
    world.decide(one.id, "note", "after the end")
    found = await coming
    assert {event["subject_id"] for event in found} == {one.id}
    assert [event["kind"] for event in found] == [
        "state",
        "state",
        "decision",
        "progress",
        "state",
        "decision",
    ]
    counted = [event["sequence"] for event in found if event["kind"] != "progress"]
    assert counted == [1, 2, 3, 4, 5]


async def test_a_page_of_past_events(place: Place, world: ScriptedService):
    say(world, 7)
    async with client_of(place) as client:
        ask = {"Accept": "application/json"}
        page = (await client.get("events?after=2&limit=3", headers=ask)).json()
        assert [event["event_id"] for event in page["items"]] == [3, 4, 5]
        rest = (await client.get(f"events?after={page['next']}&limit=3", headers=ask)).json()
        assert ([event["event_id"] for event in rest["items"]], rest["next"]) == ([6, 7], None)
        none = await client.get("migrations/nobody/events", headers=ask)
        assert none.status_code == 404


async def test_a_stream_that_has_nothing_to_say_says_that_it_lives(world: ScriptedService, tmp_path: Path):
    comments = 0
    async with asyncio.timeout(5), serving(world, tmp_path, limits=Limits(heartbeat_seconds=0.05)) as place:
        async for frame in frames(place):
            comments += "comment" in frame
            if comments == 2:
                break


async def test_a_client_that_does_not_read_is_let_go_and_harms_nobody(world: ScriptedService, tmp_path: Path):
    async with serving(world, tmp_path, limits=Limits(send_seconds=0.3)) as place:
        reader, writer = await asyncio.open_unix_connection(str(place.socket), limit=1024)
        writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        coming = asyncio.create_task(_all_of(place, 4000, after=0))
        await until(lambda: world.bus.listening() == 2, what="2 streams")
        for _ in range(40):
            for _ in range(100):
                world.bus.publish(decision(reason="x" * 1000))
            await asyncio.sleep(0)
        assert await coming == list(range(1, 4001))
        await until(lambda: world.bus.listening() == 0, what="0 streams")
        writer.close()


async def test_more_than_the_queue_holds_is_read_back_from_the_journal(
    world: ScriptedService, place: Place, monkeypatch: pytest.MonkeyPatch
):
    coming = asyncio.create_task(take(12_000, place, within=90))
    await until(lambda: world.bus.listening() == 1, what="1 streams")
    say(world, 12_000)  # at once: the queue keeps the last 10,000
    assert [event["event_id"] for event in await coming] == list(range(1, 12_001))


async def test_a_journal_that_cannot_be_read_ends_the_stream(
    world: ScriptedService, place: Place, monkeypatch: pytest.MonkeyPatch
):
    say(world, 3)

    async def unreadable(**_: Any) -> list[dict[str, Any]]:
        raise JournalError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(world, "_rows", unreadable)
        seen: list[int] = []
        async with asyncio.timeout(10):
            await _to_its_end(place, seen)
        assert seen == []
        async with client_of(place) as client:
            answer = await client.get("events", headers={"Accept": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert [event["event_id"] for event in await take(3, place, "events?after=0")] == [1, 2, 3]


async def test_streams_end_with_the_service(world: ScriptedService, tmp_path: Path):
    loop = asyncio.get_running_loop()
    seen: list[list[int]] = [[], [], []]
    async with serving(world, tmp_path, timeout_seconds=5) as place:
        say(world, 1)
        streams = [asyncio.create_task(_to_its_end(place, mine)) for mine in seen]
        await until(lambda: seen == [[1]] * 3, what="3 streams that have the past")
        say(world, 2)
        began = loop.time()
    assert loop.time() - began < 2
    await asyncio.gather(*streams)
    assert seen == [[1, 2, 3]] * 3
    assert world.bus.listening() == 0


async def test_a_stream_that_ends_amid_the_past_leaves_no_gap_behind(tmp_path: Path):
    world = ScriptedService(steps=None, journal_lag=0.3)
    seen: list[int] = []
    async with serving(world, tmp_path) as place:
        say(world, 5)
        stream = asyncio.create_task(_to_its_end(place, seen))
        await until(lambda: world.bus.listening() == 1, what="1 stream")
        say(world, 5)
    await stream
    assert seen == list(range(1, len(seen) + 1))


async def _to_its_end(place: Place, seen: list[int]) -> None:
    async with aclosing(events(place, "events?after=0")) as coming:  # type: ignore[type-var]
        async for event in coming:
            seen.append(event["event_id"])  # noqa: PERF401 - looked at while it grows
