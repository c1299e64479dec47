"""Brokers that stop, are killed or say nothing; services that are killed; versions that are not spoken."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from migrator.core.model import State
from migrator.testing.lab import until
from migrator.testing.simulated_service import SimulatedService
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_consumer import DiskLog
from tests.mqtt_peer import PREFIX, Peer, peer, settings
from tests.mqtt_service import MqttService, a_site, serving
from tests.some_events import decision, migration_state, progress


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker
        print(broker.log.read_text(errors="replace")[-5000:])  # noqa: T201 - pytest shows it with a failed test


@pytest.fixture
def nothing(tmp_path: Path) -> SimulatedService:
    """A service without hosts: it says nothing but what a test publishes."""
    return SimulatedService(tmp_path / "service")


async def connected_again(service: MqttService, broker: Broker) -> None:
    await broker.started()
    await until(lambda: service.connected, what="connected again")


@pytest.mark.parametrize(
    ("stops", "each"), [(3, 15), pytest.param(50, 20, marks=pytest.mark.soak)], ids=["short", "long"]
)
async def test_broker_stops_and_starts_and_every_state_and_decision_arrives_in_order(
    broker: Broker, nothing: SimulatedService, stops: int, each: int
) -> None:
    collected: list[Any] = []
    said = 0

    async def say(service: MqttService) -> None:
        nonlocal said
        while True:
            service.bus.publish(decision("m1", f"d{said}"))
            service.bus.publish(migration_state("m1", state=State.PRECOPY, round=said))
            said += 1
            await asyncio.sleep(0.02)

    async with peer(broker, "dashboard", topics=_ALL, session="collector"):
        pass
    async with serving(nothing, settings(broker)) as service:
        service.bus.publish(migration_state("m1"))
        saying = asyncio.create_task(say(service), name="a migration")
        try:
            for _ in range(stops):
                # A collector with a session of its own: what comes while it is away the broker keeps.
                async with peer(broker, "dashboard", topics=_ALL, session="collector") as dashboard:
                    enough = said + each
                    await until(
                        lambda enough=enough: said >= enough,  # type: ignore[misc]
                        what="some events",
                    )
                    await asyncio.to_thread(broker.stop)
                    # It has confirmed what it has not yet taken.
                    await until(lambda peer=dashboard: peer.ended, what="all taken")  # type: ignore[misc]
                    collected += dashboard.got
                await until(lambda: not service.connected, what="noticed")
                await connected_again(service, broker)
        finally:
            saying.cancel()
            await asyncio.wait({saying})
        last = service.bus.place
        async with peer(broker, "dashboard", topics=_ALL, session="collector") as dashboard:
            await until(
                lambda: any(got.json["event_id"] == last for got in dashboard.got[-20:] if not got.retain),
                what="the last event",
            )
            collected += dashboard.got
    assert service.mqtt.dropped == 0
    # At least once: what was not confirmed comes again, and a reader drops what it has. Nothing is missing.
    numbers, newest = [], 0
    for event in (got.json for got in collected if not got.retain):
        if event["event_id"] > newest:
            numbers.append(event["event_id"])
            newest = event["event_id"]
    assert numbers == list(range(1, last + 1))


_ALL = (f"{PREFIX}/migration/+/state", f"{PREFIX}/migration/+/decision")


@pytest.mark.parametrize("times", [2, pytest.param(30, marks=pytest.mark.soak)], ids=["short", "long"])
async def test_killed_broker_has_its_retained_state_right_within_five_seconds(
    broker: Broker, tmp_path: Path, times: int
) -> None:
    site = a_site(tmp_path / "service", hosts=["alpha"], guests=())
    async with serving(site, settings(broker)) as service:
        for number in range(5):
            service.bus.publish(migration_state(f"m{number}"))
        loop = asyncio.get_running_loop()
        for time in range(times):
            broker.kill()
            await until(lambda: not service.connected, what="noticed")
            (broker.directory / "mosquitto.db").unlink(missing_ok=True)
            service.bus.publish(migration_state("m3", state=State.PRECOPY, round=time))
            await broker.started()
            began = loop.time()
            async with peer(broker, "dashboard") as dashboard:
                await until(lambda: len(_states(dashboard)) == 6, what="all of it", within=5)
                await until(
                    lambda time=time: _states(dashboard)["m3"]["round"] == time,  # type: ignore[misc]
                    what="the newest",
                    within=5 - (loop.time() - began),
                )
            assert loop.time() - began < 5


def _states(client: Peer) -> dict[str, Any]:
    return {got.json["subject_id"]: got.json["body"] for got in client.on("/state") if got.payload}


async def test_beyond_the_bound_the_oldest_are_dropped_and_the_gap_shows(
    broker: Broker, nothing: SimulatedService
) -> None:
    async with serving(nothing, settings(broker, queue_limit=20)) as service:
        service.bus.publish(migration_state("m1"))
        async with peer(broker, "dashboard") as dashboard:
            await until(lambda: _events(dashboard), what="the first")
        await asyncio.to_thread(broker.stop)
        await until(lambda: not service.connected, what="noticed")
        for number in range(100):
            service.bus.publish(decision("m1", f"d{number}"))
            service.bus.publish(progress("m1", progress_ratio=number / 100))
        await service.heard()
        await broker.started()
        async with peer(broker, "dashboard", topics=_ALL) as dashboard:
            await until(lambda: any(e["sequence"] == 101 for e in _events(dashboard)), what="the newest")
            assert [got for got in dashboard.got if "progress" in got.topic] == []
        decisions = [event["sequence"] for event in _events(dashboard) if event["kind"] == "decision"]
        assert decisions == list(range(82, 102))
        assert service.mqtt.dropped == 80


def _events(client: Peer) -> list[Any]:
    return [got.json for got in client.got if "/m1/" in got.topic and got.payload]


async def test_black_hole_is_noticed_and_nothing_is_lost_in_it(
    broker: Broker, nothing: SimulatedService
) -> None:
    async with serving(nothing, settings(broker, timeout=1.0, keepalive=2)) as service:
        service.bus.publish(migration_state("m1"))
        broker.freeze()
        for number in range(30):
            service.bus.publish(decision("m1", f"d{number}"))
        await until(lambda: not service.connected, what="noticed", within=20)
        async with asyncio.timeout(15):
            await asyncio.sleep(1.5)  # it tries, in vain, and nothing else stands still
        broker.thaw()
        async with peer(broker, "dashboard") as dashboard:
            await until(lambda: service.connected, what="connected again")
            service.bus.publish(decision("m1", "last"))
            await until(lambda: any(e["sequence"] == 32 for e in _events(dashboard)), what="the newest")
    assert service.mqtt.dropped == 0


async def test_silent_black_hole_is_noticed_by_keepalive(broker: Broker, nothing: SimulatedService) -> None:
    async with serving(nothing, settings(broker, keepalive=1)) as service:
        broker.freeze()
        await until(lambda: not service.connected, what="noticed", within=20)
        broker.thaw()
        await until(lambda: service.connected, what="connected again")


async def test_it_ends_within_a_bound_in_a_black_hole(broker: Broker, nothing: SimulatedService) -> None:
    loop = asyncio.get_running_loop()
    async with serving(nothing, settings(broker, timeout=1.0, closing_seconds=1.0)) as service:
        service.bus.publish(migration_state("m1"))
        await service.heard()
        broker.freeze()
        began = loop.time()
    assert loop.time() - began < 4
    broker.thaw()


async def test_it_ends_within_a_bound_while_it_connects(broker: Broker, nothing: SimulatedService) -> None:
    broker.freeze()
    loop = asyncio.get_running_loop()
    configured = settings(broker, timeout=20.0, closing_seconds=0.5)
    async with nothing.running() as engine:
        async with MqttService(engine, configured).running(connects=False):
            await asyncio.sleep(0.3)
            began = loop.time()
        assert loop.time() - began < 10
    broker.thaw()


async def test_service_works_without_a_broker_and_finds_it_when_it_comes(
    broker: Broker, nothing: SimulatedService
) -> None:
    broker.stop()
    async with (
        nothing.running() as engine,
        MqttService(engine, settings(broker)).running(connects=False) as service,
    ):
        service.bus.publish(migration_state("m1"))
        service.bus.publish(migration_state("m1", state=State.COMPLETED, ended_at=datetime.now(UTC)))
        await asyncio.sleep(0.5)
        assert not service.connected
        await connected_again(service, broker)
        async with peer(broker, "dashboard") as dashboard:
            await until(lambda: "m1" in _states(dashboard), what="its state")


async def test_last_will_says_offline_when_the_service_is_killed(broker: Broker, tmp_path: Path) -> None:
    async with peer(broker, "dashboard") as dashboard, consumer(broker, tmp_path, "nowhere") as process:
        await until(lambda: dashboard.on("service/one"), what="online")
        process.kill()
        await until(lambda: dashboard.on("service/one")[-1].payload == b"offline", what="offline")


@pytest.mark.parametrize("where", ["received", "claimed", "begun", "answered"])
async def test_command_survives_a_service_that_is_killed_and_is_carried_out_once(
    broker: Broker, tmp_path: Path, where: str
) -> None:
    async with peer(broker) as scheduler:
        async with consumer(broker, tmp_path, where) as process:
            await until(lambda: scheduler.on("service/one"), what="online")
            await scheduler.command("migrate", id="c1", guest="web")
            await until((tmp_path / "there").exists, what=f"it hangs: {where}")
            process.kill()
            await process.wait()
            assert scheduler.replies("c1") == []
        async with consumer(broker, tmp_path, "nowhere"):
            await until(lambda: scheduler.replies("c1"), what="the reply")
            (reply,) = scheduler.replies("c1")
            assert (reply["kind"], reply["subject_id"]) == ("accepted", "m1")
            # And it was acknowledged now: it does not come a third time.
            await scheduler.command("plan", id="c2", host="a")
            await until(lambda: scheduler.replies("c2"), what="the next reply")
    assert (tmp_path / "begun").read_text().splitlines() == ["scheduler c1"]
    assert len(DiskLog(tmp_path / "journal").commands) == 2


async def test_commands_given_while_no_service_is_there_are_carried_out_in_time(
    broker: Broker, tmp_path: Path
) -> None:
    configured = settings(broker)
    async with a_site(tmp_path / "service").running() as engine, peer(broker) as scheduler:
        async with MqttService(engine, configured).running():
            pass
        await scheduler.command("migrate", id="c1", guest="web")
        await scheduler.command("migrate", id="c2", guest="db")
        async with MqttService(engine, configured).running() as service:
            await until(lambda: scheduler.replies("c1") and scheduler.replies("c2"), what="replies")
        assert len(service.begun) == 2


@asynccontextmanager
async def consumer(broker: Broker, directory: Path, where: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A service in a process of its own that hangs at a certain point of a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.mqtt_consumer", str(broker.port), str(directory), where),
        cwd=Path(__file__).parents[2],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()


# versions


async def test_broker_without_version_5_is_spoken_to_in_3_1_1(broker: Broker, tmp_path: Path) -> None:
    site = a_site(tmp_path / "service")
    async with old_broker(broker) as (port, levels), peer(broker) as scheduler:
        async with serving(site, settings(port)) as service:
            await scheduler.command("migrate", id="c1", guest="web")
            await until(lambda: scheduler.replies("c1"), what="a reply")
        assert len(service.begun) == 1
    assert levels[:2] == [5, 4]


@asynccontextmanager
async def old_broker(broker: Broker) -> AsyncIterator[tuple[int, list[int]]]:
    """Refuses version 5 as brokers did before there was one; hands everything else on."""
    levels: list[int] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        levels.append(first[first.index(b"MQTT") + 4])
        if levels[-1] == 5:
            writer.write(b"\x20\x02\x00\x01")
            await writer.drain()
            writer.close()
            return
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", broker.port)
        their_writer.write(first)
        await asyncio.gather(_copy(reader, their_writer), _copy(their_reader, writer))

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], levels
    finally:
        server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
