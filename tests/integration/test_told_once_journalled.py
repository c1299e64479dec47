"""MQTT and HTTP tell only what is on disk: a real journal whose disk is busy, a real broker, real streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from migrator.engine.event_bus import EventBus
from migrator.http.limits import Limits
from migrator.store.journal import SqlJournal
from migrator.testing.lab import until
from migrator.testing.simulated_service import SimulatedService
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.http_service import Place, serving
from tests.mqtt_peer import Peer, peer, settings
from tests.mqtt_service import MqttService
from tests.some_events import migration_state, progress


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


class Everything:
    """A service, and who listens to it by MQTT and over HTTP."""

    def __init__(self, path: Path, bus: EventBus, place: Place, dashboard: Peer) -> None:
        self.path, self._bus, self._place, self._dashboard = path, bus, place, dashboard
        self._streamed: list[dict[str, Any]] = []
        self._comments = 0
        #: The stream is there: later events come by it.
        self.listens = asyncio.Event()
        self.at_once = 0
        bus.subscribe(lambda event: setattr(self, "at_once", event.event_id))

    async def listen(self) -> None:
        transport = httpx2.AsyncHTTPTransport(uds=str(self._place.socket), verify=False)
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://migrator/api/v1/", timeout=30) as client,
            client.stream("GET", "events?after=0") as answer,
        ):
            async for line in answer.aiter_lines():
                self.listens.set()
                self._comments += line.startswith(":")
                if line.startswith("data: "):
                    self._streamed.append(json.loads(line.removeprefix("data: ")))

    def say(self, count: int) -> None:
        for _ in range(count):
            self._bus.publish(migration_state())
            self._bus.publish(progress())

    @property
    def told(self) -> tuple[list[int], list[int]]:
        """What came by MQTT and over HTTP, progress left out. What came by MQTT once more is, too."""
        by_mqtt: list[int] = []
        for each in self._dashboard.on("m1/state"):
            if not each.retain and each.json["event_id"] > max(by_mqtt, default=0):
                by_mqtt.append(each.json["event_id"])
        return by_mqtt, [each["event_id"] for each in self._streamed if each["kind"] != "progress"]

    @property
    def progress(self) -> int:
        """The last state that progress was seen to follow."""
        found = [each.json for each in self._dashboard.on("progress")]
        found += [each for each in self._streamed if each["kind"] == "progress"]
        return max((each["sequence"] for each in found), default=0)

    async def both_are_heard(self) -> None:
        """Whatever was sent until now has arrived: something else has by the same ways, after it."""
        beats, status = self._comments, len(self._dashboard.on("service/one"))
        await self._dashboard.client.subscribe(f"{self._dashboard.on('service/one')[0].topic}", qos=1)
        await until(lambda: len(self._dashboard.on("service/one")) > status, what="a word by MQTT")
        await until(lambda: self._comments > beats + 2, what="a word over HTTP")

    def on_disk(self) -> list[int]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return [number for (number,) in connection.execute("SELECT event_id FROM events")]


@asynccontextmanager
async def everything(
    tmp_path: Path, broker: Broker, *, max_event_delay: float = 60.0
) -> AsyncIterator[Everything]:
    """Have the engine of a site without hosts tell what a test publishes, by both entrances.

    :param max_event_delay: seconds that an event waits for the journal.
    """
    path = tmp_path / "journal.db"
    service = SimulatedService(tmp_path / "records")
    service.max_event_delay = max_event_delay
    async with (
        await SqlJournal.open(path) as journal,
        service.running(outside=lambda inner, name: journal if name == "journal" else inner) as engine,
        MqttService(engine, settings(broker, progress_interval=0.01)).running() as entrance,
        serving(
            entrance.dispatcher, entrance.queries, tmp_path, limits=Limits(heartbeat_seconds=0.05)
        ) as place,
        peer(broker, "dashboard") as dashboard,
    ):
        told = Everything(path, engine.bus, place, dashboard)
        listening = asyncio.create_task(told.listen(), name="the stream")
        try:
            await until(lambda: dashboard.on("service/one"), what="mqtt")
            await until(told.listens.is_set, what="the stream")
            yield told
        finally:
            listening.cancel()
            await asyncio.wait({listening})


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Nothing can be written there."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


async def test_nothing_is_told_before_it_is_on_disk(tmp_path: Path, broker: Broker) -> None:
    async with everything(tmp_path, broker) as service:
        service.say(3)
        await until(lambda: service.told == ([1, 2, 3],) * 2, what="what is said every day")
        await until(lambda: service.progress == 3, what="and its progress")
        with held(service.path):
            service.say(20)
            assert service.at_once == 23
            await service.both_are_heard()
            assert service.told == ([1, 2, 3],) * 2
            assert service.progress == 3
            assert service.on_disk() == [1, 2, 3]
        await until(lambda: service.told == (list(range(1, 24)),) * 2, what="all of it")
        assert service.on_disk() == list(range(1, 24))
        await until(lambda: service.progress == 23, what="the progress of now")


async def test_every_one_is_on_disk_when_it_arrives(tmp_path: Path, broker: Broker) -> None:
    async with everything(tmp_path, broker) as service:
        early: list[int] = []

        def all_there() -> bool:
            told = {number for way in service.told for number in way}  # and then what is on disk, not before
            early.extend(told - set(service.on_disk()))
            return min(map(len, service.told)) == 200

        for _ in range(40):
            service.say(5)
            await asyncio.sleep(0)
            all_there()
        await until(all_there, what="all of them")
        assert early == []
        assert service.told == (list(range(1, 201)),) * 2


async def test_a_disk_that_stays_away_holds_nothing_back_for_long(tmp_path: Path, broker: Broker) -> None:
    async with everything(tmp_path, broker, max_event_delay=0.3) as service:
        service.say(1)
        await until(lambda: service.told == ([1],) * 2, what="the first")
        with held(service.path):
            service.say(2)
            await until(lambda: service.told == ([1, 2, 3],) * 2, what="all the same")
            service.say(1)
            await until(lambda: service.told == ([1, 2, 3, 4],) * 2, what="at once by now")
            assert service.on_disk() == [1]
        await until(lambda: service.on_disk() == [1, 2, 3, 4], what="all of it, later")
        with held(service.path):
            service.say(1)
            assert service.told == ([1, 2, 3, 4],) * 2
        await until(lambda: service.told == ([1, 2, 3, 4, 5],) * 2, what="the next one")
        assert service.on_disk() == [1, 2, 3, 4, 5]
