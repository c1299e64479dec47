"""What the service says over MQTT: retained state that is true after every connect, decisions, progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.api.documents import MigrationDocument
from migrator.core.inventory import HostState
from migrator.core.model import State
from migrator.engine.event_bus import EventBus
from migrator.testing.lab import until
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_fakes import FakeController, FakeQueries, Service
from tests.mqtt_peer import PREFIX, Peer, peer, settings

DAY = timedelta(days=1)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker
        print(broker.log.read_text(errors="replace")[-5000:])  # noqa: T201 - pytest shows it with a failed test


async def retained(broker: Broker) -> dict[str, Any]:
    """What a dashboard that comes now is given, by topic without the prefix."""
    async with peer(broker, "dashboard") as dashboard:
        # Asked for once more it comes once more, after all the others.
        await dashboard.client.subscribe(f"{PREFIX}/service/one", qos=1, timeout=20)
        last = f"{PREFIX}/service/one"
        await until(lambda: [got.topic for got in dashboard.got if got.retain].count(last) == 2, what="all")
        return {
            got.topic.removeprefix(f"{PREFIX}/"): (
                got.json if got.payload.startswith(b"{") else got.payload.decode()
            )
            for got in dashboard.got
            if got.retain
        }


async def test_states_and_decisions_come_in_order_and_the_last_state_is_retained(broker: Broker) -> None:
    async with Service(settings(broker)).running() as service, peer(broker, "dashboard") as dashboard:
        service.controller.migration("m1")
        for number in range(50):
            service.controller.decide("m1", f"throttle-{number}")
            service.controller.change("m1", state=State.PRECOPY, round=number)
        await until(lambda: len(_about(dashboard, "m1")) >= 101, what="all of them")
        there = await retained(broker)
    # The last state may come once more: where the service did not see in time that the broker has it.
    events = list({event["event_id"]: event for event in _about(dashboard, "m1")}.values())
    assert [event["sequence"] for event in events] == list(range(1, 102))
    assert [event["event_id"] for event in events] == list(range(1, 102))
    assert {event["kind"] for event in events} == {"state", "decision"}
    assert all(datetime.fromisoformat(event["time"]) for event in events)
    assert there["migration/m1/state"] == events[-1]
    assert there["migration/m1/state"]["body"]["round"] == 49
    assert [topic for topic in there if "decision" in topic] == []


def _about(client: Peer, identifier: str) -> list[Any]:
    return [
        got.json
        for got in client.got
        if f"/{identifier}/" in got.topic and got.payload and "progress" not in got.topic
    ]


async def test_progress_is_at_most_once_a_second_and_the_last_of_it_is_said(broker: Broker) -> None:
    configured = settings(broker, progress_interval=0.4)
    async with Service(configured).running() as service, peer(broker, "dashboard") as dashboard:
        service.controller.migration("m1")
        began = asyncio.get_running_loop().time()
        for number in range(100):
            service.controller.progress("m1", number / 100)
            await asyncio.sleep(0.01)
        await until(
            lambda: dashboard.on("m1/progress")[-1].json["body"]["progress_ratio"] == 0.99, what="the last"
        )
        took = asyncio.get_running_loop().time() - began
    got = dashboard.on("m1/progress")
    assert 3 <= len(got) <= took / 0.4 + 1
    assert not any(each.retain for each in got)
    ratios = [each.json["body"]["progress_ratio"] for each in got]
    assert ratios == sorted(ratios)
    assert {each.json["sequence"] for each in got} == {1}


async def test_online_while_it_is_there_offline_when_it_goes(broker: Broker) -> None:
    async with Service(settings(broker)).running():
        assert (await retained(broker))["service/one"] == "online"
    assert (await retained(broker))["service/one"] == "offline"


async def test_what_waits_is_sent_before_the_service_goes(broker: Broker) -> None:
    async with peer(broker, "dashboard") as dashboard:
        async with Service(settings(broker)).running() as service:
            service.controller.migration("m1")
            for number in range(100):
                service.controller.decide("m1", f"d{number}")
        # The broker has it all: the service waited for that. Whoever listens there may take a moment longer.
        await until(lambda: dashboard.on("service/one")[-1].payload == b"offline", what="the farewell")
        assert [event["sequence"] for event in _about(dashboard, "m1")] == list(range(1, 102))


async def test_state_of_what_ended_is_cleared_in_time(broker: Broker) -> None:
    configured = settings(broker, keep_ended=1.0)
    async with Service(configured).running() as service:
        service.controller.migration("m1")
        service.controller.migration("m2")
        service.controller.end("m1")
        await until(lambda: _is(broker, "migration/m1/state", there=True), what="retained")
        await until(lambda: _is(broker, "migration/m1/state", there=False), what="cleared")
        assert "migration/m2/state" in await retained(broker)


async def _is(broker: Broker, topic: str, *, there: bool) -> bool:
    return (topic in await retained(broker)) is there


async def test_after_a_restart_what_is_stale_goes_and_what_is_not_stays(broker: Broker) -> None:
    now = datetime.now(UTC)
    queries = FakeQueries()
    async with Service(settings(broker), queries=queries).running() as service:
        for name in ("active", "unknown", "long-ago", "lately"):
            service.controller.migration(name)
        service.controller.end("long-ago", at=now - timedelta(hours=23, minutes=59, seconds=59))
        service.controller.end("lately", at=now - timedelta(hours=1))
        service.controller.host("alpha")
        service.controller.host("beta")
        await until(lambda: _is(broker, "host/beta/state", there=True), what="retained")
        before = await retained(broker)
        assert len(before) == 7
    # Meanwhile time goes by, and somebody edits the configuration and the journal.
    del queries.all_hosts["beta"], queries.all_migrations["unknown"]
    again = Service(
        settings(broker), queries=_restarted(queries), now=lambda: datetime.now(UTC) + timedelta(seconds=2)
    )
    async with peer(broker, "dashboard") as dashboard, again.running():
        for gone in ("migration/unknown", "migration/long-ago", "host/beta"):
            topic = f"{gone}/state"
            await until(lambda t=topic: any(not got.payload for got in dashboard.on(t)), what=gone)  # type: ignore[misc]
        after = await retained(broker)
    assert set(before) - set(after) == {
        "migration/unknown/state",
        "migration/long-ago/state",
        "host/beta/state",
    }
    for topic in after:
        if not topic.startswith("service"):
            assert after[topic] == before[topic], topic


def _restarted(queries: FakeQueries) -> FakeQueries:
    """The same journal with a new bus, which knows no sequence of what has ended."""
    active = {document.id for document in queries.active_migrations()} | set(queries.all_hosts)
    bus = queries.bus
    return FakeQueries(
        bus=EventBus(
            last_event_id=bus.last_event_id,
            sequences={key: last for key, last in bus._sequences.items() if key[1] in active},
        ),
        all_migrations=queries.all_migrations,
        all_evacuations=queries.all_evacuations,
        all_hosts=queries.all_hosts,
        journalled=queries.journalled,
    )


async def test_a_broker_that_lost_everything_is_told_all_again_after_a_restart(broker: Broker) -> None:
    queries = FakeQueries()
    async with Service(settings(broker), queries=queries).running() as service:
        service.controller.migration("m1")
        service.controller.decide("m1", "d")
        service.controller.migration("m2")
        service.controller.end("m2")
        service.controller.host("alpha", HostState.DRAINING)
        await until(lambda: _is(broker, "host/alpha/state", there=True), what="retained")
    broker.stop()
    (broker.directory / "mosquitto.db").unlink()
    broker.start()
    async with Service(settings(broker), queries=_restarted(queries)).running() as service:
        service.controller.host("alpha", HostState.DRAINING)  # as the engine does once it has looked there
        await until(lambda: _is(broker, "host/alpha/state", there=True), what="retained again")
        await until(lambda: _is(broker, "migration/m1/state", there=True), what="retained again")
        await until(lambda: _is(broker, "migration/m2/state", there=True), what="retained again")
        there = await retained(broker)
    assert there["migration/m1/state"]["body"]["state"] == "queued"
    assert (there["migration/m2/state"]["body"]["state"], there["migration/m2/state"]["sequence"]) == (
        "completed",
        2,
    )
    assert there["host/alpha/state"]["body"]["state"] == "draining"


async def test_retained_state_that_is_wrong_is_put_right(broker: Broker) -> None:
    queries = FakeQueries()
    async with Service(settings(broker), queries=queries).running() as service:
        service.controller.migration("m1")
        await until(lambda: _is(broker, "migration/m1/state", there=True), what="retained")
    async with peer(broker, "migrator", topics=()) as somebody:
        wrong = json.dumps({"event_id": 1, "sequence": 1, "body": {"state": "failed"}})
        await somebody.client.publish(f"{PREFIX}/migration/m1/state", wrong, qos=1, retain=True)
    async with Service(settings(broker), queries=_restarted(queries)).running():

        async def right() -> bool:
            state = (await retained(broker))["migration/m1/state"]["body"]
            return bool(state["state"] == "queued")

        await until(right, what="the true state")


class _SlowQueries(FakeQueries):
    """Has the journal answer for a migration that is not known only when it may."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def migration(self, identifier: str) -> MigrationDocument | None:
        self.asked.set()
        await self.may.wait()
        return await super().migration(identifier)


async def test_state_that_comes_while_retained_ones_are_checked_is_not_put_back(broker: Broker) -> None:
    async with peer(broker, "migrator", topics=()) as somebody:
        for name in ("m1", "unknown"):
            wrong = json.dumps({"event_id": 1, "sequence": 1, "body": {"state": "failed"}})
            await somebody.client.publish(f"{PREFIX}/migration/{name}/state", wrong, qos=1, retain=True)
    queries = _SlowQueries()
    FakeController(queries).migration("m1")
    async with (
        Service(settings(broker), queries=queries).running() as service,
        peer(broker, "dashboard") as dashboard,
    ):
        await asyncio.wait_for(queries.asked.wait(), 20)
        service.controller.change("m1", state=State.PRECOPY)
        await until(
            lambda: dashboard.on("m1/state")[-1].json["body"]["state"] == "precopy", what="the new state"
        )
        queries.may.set()
        await until(lambda: _is(broker, "migration/unknown/state", there=False), what="cleared")
    assert (await retained(broker))["migration/m1/state"]["body"]["state"] == "precopy"


async def test_thousands_of_retained_states_are_seen_whole(broker: Broker) -> None:
    count = 2000  # more than a broker keeps in a client's queue
    async with peer(broker, "migrator", topics=()) as somebody:
        for number in range(count):
            await somebody.client.publish(
                f"{PREFIX}/host/h{number}/state", b'{"body": {}}', retain=True, qos=int(number == count - 1)
            )
    async with Service(settings(broker)).running():
        last = f"host/h{count - 1}/state"
        await until(lambda: _is(broker, last, there=False), what="all cleared", within=60)
        assert set(await retained(broker)) == {"service/one"}
