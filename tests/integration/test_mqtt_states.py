"""What the service says over MQTT: retained state that is true after every connect, decisions, progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Cordon, Migrate
from migrator.core.model import State
from migrator.testing.lab import until
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import PREFIX, Peer, peer, settings
from tests.mqtt_service import FAST, SLOW, MqttService, a_site, serving, set_link
from tests.some_events import decision, migration_state, progress

DAY = timedelta(days=1)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker
        print(broker.log.read_text(errors="replace")[-5000:])  # noqa: T201 - pytest shows it with a failed test


@pytest.fixture
def site(tmp_path: Path) -> SimulatedService:
    """A service with two hosts, which says nothing by itself; `web` and `db` are on the first."""
    return a_site(tmp_path / "service")


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


async def test_states_and_decisions_come_in_order_and_the_last_state_is_retained(
    broker: Broker, site: SimulatedService
) -> None:
    async with serving(site, settings(broker)) as service, peer(broker, "dashboard") as dashboard:
        first = service.bus.place + 1
        service.bus.publish(migration_state("m1"))
        for number in range(50):
            service.bus.publish(decision("m1", f"throttle-{number}"))
            service.bus.publish(migration_state("m1", state=State.PRECOPY, round=number))
        await until(lambda: len(_about(dashboard, "m1")) >= 101, what="all of them")
        there = await retained(broker)
    # The last state may come once more: where the service did not see in time that the broker has it.
    events = list({event["event_id"]: event for event in _about(dashboard, "m1")}.values())
    assert [event["sequence"] for event in events] == list(range(1, 102))
    assert [event["event_id"] for event in events] == list(range(first, first + 101))
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


async def test_progress_is_at_most_once_a_second_and_the_last_of_it_is_said(
    broker: Broker, site: SimulatedService
) -> None:
    configured = settings(broker, progress_interval=0.4)
    async with serving(site, configured) as service, peer(broker, "dashboard") as dashboard:
        service.bus.publish(migration_state("m1"))
        began = asyncio.get_running_loop().time()
        for number in range(100):
            service.bus.publish(progress("m1", progress_ratio=number / 100))
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


async def test_online_while_it_is_there_offline_when_it_goes(broker: Broker, site: SimulatedService) -> None:
    async with serving(site, settings(broker)):
        assert (await retained(broker))["service/one"] == "online"
    assert (await retained(broker))["service/one"] == "offline"


async def test_what_waits_is_sent_before_the_service_goes(broker: Broker, site: SimulatedService) -> None:
    async with peer(broker, "dashboard") as dashboard:
        async with serving(site, settings(broker)) as service:
            service.bus.publish(migration_state("m1"))
            for number in range(100):
                service.bus.publish(decision("m1", f"d{number}"))
            await service.heard()
        # The broker has it all: the service waited for that. Whoever listens there may take a moment longer.
        await until(lambda: dashboard.on("service/one")[-1].payload == b"offline", what="the farewell")
        assert [event["sequence"] for event in _about(dashboard, "m1")] == list(range(1, 102))


async def test_state_of_what_ended_is_cleared_in_time(broker: Broker, site: SimulatedService) -> None:
    configured = settings(broker, keep_ended=1.0)
    async with serving(site, configured) as service:
        service.bus.publish(migration_state("m1"))
        service.bus.publish(migration_state("m2"))
        service.bus.publish(migration_state("m1", state=State.COMPLETED, ended_at=datetime.now(UTC)))
        await until(lambda: _is(broker, "migration/m1/state", there=True), what="retained")
        await until(lambda: _is(broker, "migration/m1/state", there=False), what="cleared")
        assert "migration/m2/state" in await retained(broker)


async def _is(broker: Broker, topic: str, *, there: bool) -> bool:
    return (topic in await retained(broker)) is there


async def moved(engine: RunningEngine, guest: str, to: str) -> Any:
    """Move a guest, and return the document of the migration that has ended."""
    return await reached(engine, await engine.ask(Migrate(guest=guest, to=to)), State.COMPLETED)


async def moving(service: SimulatedService, engine: RunningEngine, guest: str, to: str) -> Any:
    """Begin to move a guest, which takes long from then on; return the document of the migration in precopy."""
    set_link(service, SLOW)
    return await reached(engine, await engine.ask(Migrate(guest=guest, to=to)), State.PRECOPY)


async def reached(engine: RunningEngine, migration: Any, state: State) -> Any:
    async def there() -> bool:
        return bool((await engine.queries.migration(migration.id)).state is state)

    await until(there, what=f"{migration.id} in {state}")
    return await engine.queries.migration(migration.id)


async def say_wrongly(broker: Broker, *subjects: str) -> None:
    """Have the broker retain a state of each of these that is not so."""
    wrong = json.dumps({"event_id": 1, "sequence": 1, "body": {"state": "failed"}})
    async with peer(broker, "migrator", topics=()) as somebody:
        for subject in subjects:
            await somebody.client.publish(f"{PREFIX}/{subject}/state", wrong, qos=1, retain=True)


async def test_after_a_restart_what_is_stale_goes_and_what_is_not_stays(
    broker: Broker, site: SimulatedService
) -> None:
    async with site.running() as engine:
        async with MqttService(engine, settings(broker)).running():
            long_ago = await moved(engine, "web", "b")
            lately = await moved(engine, "web", "a")
            active = await moving(site, engine, "db", "b")
            stay = {f"migration/{each.id}/state" for each in (lately, active)} | {
                "host/a/state",
                "host/b/state",
            }
            await until(lambda: _are(broker, {*stay, f"migration/{long_ago.id}/state"}), what="retained")
        # Meanwhile time goes by, and somebody edits the configuration and the journal.
        await say_wrongly(broker, "migration/unknown", "host/gone")
        then = long_ago.ended_at + (lately.ended_at - long_ago.ended_at) / 2 + DAY
        before = await retained(broker)
        again = MqttService(engine, settings(broker), now=lambda: then)
        async with peer(broker, "dashboard") as dashboard, again.running():
            for gone in (f"migration/{long_ago.id}", "migration/unknown", "host/gone"):
                topic = f"{gone}/state"
                await until(lambda t=topic: any(not got.payload for got in dashboard.on(t)), what=gone)  # type: ignore[misc]
            after = await retained(broker)
    assert {topic for topic in after if not topic.startswith("service")} == stay
    for topic in stay:
        assert after[topic] == before[topic], topic


async def _are(broker: Broker, topics: set[str]) -> bool:
    return topics <= set(await retained(broker))


async def test_a_broker_that_lost_everything_is_told_all_again_after_a_restart(
    broker: Broker, site: SimulatedService
) -> None:
    async with site.running() as engine:
        async with MqttService(engine, settings(broker)).running():
            ended = await moved(engine, "web", "b")
            active = await moving(site, engine, "db", "b")
            await engine.ask(Cordon(host="b"))
            topics = {f"migration/{each.id}/state" for each in (ended, active)} | {"host/b/state"}
            await until(lambda: _are(broker, topics), what="retained")
            before = await retained(broker)
        broker.stop()
        (broker.directory / "mosquitto.db").unlink()
        broker.start()
        async with MqttService(engine, settings(broker)).running():
            await until(lambda: _are(broker, topics), what="retained again")
            there = await retained(broker)
    assert {topic: there[topic] for topic in topics} == {topic: before[topic] for topic in topics}
    assert there[f"migration/{active.id}/state"]["body"]["state"] == "precopy"
    assert there[f"migration/{ended.id}/state"]["body"]["state"] == "completed"
    assert there["host/b/state"]["body"]["cordoned"]


async def test_retained_state_that_is_wrong_is_put_right(broker: Broker, site: SimulatedService) -> None:
    async with site.running() as engine:
        async with MqttService(engine, settings(broker)).running():
            topic = f"migration/{(await moving(site, engine, 'web', 'b')).id}"
            await until(lambda: _is(broker, f"{topic}/state", there=True), what="retained")
        await say_wrongly(broker, topic)
        async with MqttService(engine, settings(broker)).running():

            async def right() -> bool:
                return bool((await retained(broker))[f"{topic}/state"]["body"]["state"] == "precopy")

            await until(right, what="the true state")


async def test_state_that_comes_while_retained_ones_are_checked_is_not_put_back(
    broker: Broker, site: SimulatedService
) -> None:
    asked, may, find = asyncio.Event(), asyncio.Event(), site.journal.find

    async def find_late(kind: str, identifier: str) -> dict[str, Any] | None:
        if identifier == "unknown":
            asked.set()
            await may.wait()
        return await find(kind, identifier)

    site.journal.find = find_late  # type: ignore[method-assign]
    async with site.running() as engine:
        topic = f"migration/{(await moving(site, engine, 'web', 'b')).id}"
        await say_wrongly(broker, topic, "migration/unknown")
        async with (
            MqttService(engine, settings(broker)).running(),
            peer(broker, "dashboard") as dashboard,
        ):
            await asyncio.wait_for(asked.wait(), 20)
            set_link(site, FAST)
            await until(
                lambda: dashboard.on(f"{topic}/state")[-1].json["body"]["state"] == "completed",
                what="the new state",
            )
            may.set()
            await until(lambda: _is(broker, "migration/unknown/state", there=False), what="cleared")
    assert (await retained(broker))[f"{topic}/state"]["body"]["state"] == "completed"


async def test_thousands_of_retained_states_are_seen_whole(broker: Broker, site: SimulatedService) -> None:
    count = 1200  # more than a broker keeps in a client's queue
    async with peer(broker, "migrator", topics=()) as somebody:
        for number in range(count):
            await somebody.client.publish(
                f"{PREFIX}/host/h{number}/state", b'{"body": {}}', retain=True, qos=int(number == count - 1)
            )
    async with serving(site, settings(broker)):
        last = f"host/h{count - 1}/state"
        await until(lambda: _is(broker, last, there=False), what="all cleared", within=60)
        assert set(await retained(broker)) == {"service/one", "host/a/state", "host/b/state"}
