"""kill -9 while people listen: whatever they were ever told is in the journal, the same; no number is given twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from migrator.testing import network
from migrator.testing.lab import until
from tests.acceptance.service_site import MIB, SLOW, Board, LiveSite, at_broker, guest, served
from tests.broker import Broker, mosquitto
from tests.conftest import missing


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
async def streaming(site: LiveSite) -> AsyncIterator[list[dict[str, Any]]]:
    """Everything that comes over HTTP, of one service after the other: live only, what was missed is not asked for."""
    found: list[dict[str, Any]] = []

    async def listen() -> None:
        transport = httpx2.AsyncHTTPTransport(uds=str(site.directory / "api.sock"), verify=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://migrator", timeout=30) as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    async with client.stream("GET", "/api/v1/events") as answer:
                        async for line in answer.aiter_lines():
                            if line.startswith("data: "):
                                found.append(json.loads(line.removeprefix("data: ")))  # noqa: PERF401 - looked at
                await asyncio.sleep(0.01)  # it is being started again

    task = asyncio.create_task(listen(), name="stream")
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.matrix
@pytest.mark.parametrize("times", [1, pytest.param(50, marks=pytest.mark.soak)], ids=["short", "long"])
async def test_what_was_told_is_in_the_journal_after_any_kill(broker: Broker, times: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failed test
    chance = random.Random(seed)
    machines = [guest("calm"), guest("busy", region=48 * MIB, speed=20 * MIB)]
    places = {"evacuate": ("b", "c"), "restore": ("a",)}
    async with (
        served(machines, speed=SLOW, extra=at_broker(broker)) as site,
        Board(broker) as board,
        streaming(site) as streamed,
    ):
        for begun in range(times):
            verb = "restore" if begun % 2 else "evacuate"
            run = await site.post(f"hosts/a/{verb}", key=f"{verb}-{begun}")
            for _ in range(2 if times == 1 else 3):
                # Events come in bursts: most often it is killed within one.
                seen = len(streamed) + len(board.got)
                with contextlib.suppress(TimeoutError):
                    await until(lambda: len(streamed) + len(board.got) > seen, what="news", within=1.0)  # noqa: B023
                await asyncio.sleep(chance.choice((0.0, chance.uniform(0.0, 0.02), chance.uniform(0.0, 0.5))))
                await site.restart()
            await site.ended(run["id"], "completed", within=120)
            await site.everyone_at(machines, *places[verb])
            last = (await site.events("evacuation", run["id"]))[-1]
            assert last["body"]["state"] == "completed"

            def told(name: str = run["id"], body: Any = last["body"]) -> bool:
                return bool(board.last_state("evacuation", name) == body)

            await until(told, what="the end, by MQTT")
        journalled = {each["event_id"]: each for each in await site.events()}
        everything = [
            *(each.json for each in board.got if each.payload),
            *(each for each in streamed if each["kind"] != "progress"),
        ]
        assert len(everything) > 10 * times
        for event in everything:
            assert event == journalled.get(event["event_id"]), (event, journalled.get(event["event_id"]))
        # What the journal has of one subject has no gap: nobody was told of anything that is not in it.
        sequences: dict[tuple[str, str], list[int]] = {}
        for _, event in sorted(journalled.items()):
            sequences.setdefault((event["subject"], event["subject_id"]), []).append(event["sequence"])
        for key, numbers in sequences.items():
            assert numbers == list(range(1, len(numbers) + 1)), key
        # And whatever has ended was told to have.
        for migration in await site.migrations():
            assert board.last_state("migration", migration["id"])["state"] == migration["state"]
