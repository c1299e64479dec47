"""Several controllers at one broker: each command goes to one of them, and one alone publishes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from migrator.core.model import State
from migrator.testing.lab import until
from migrator.testing.simulated_service import RunningEngine
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import PREFIX, peer, settings
from tests.mqtt_service import SLOW, MqttService, a_site
from tests.some_events import decision, migration_state


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[RunningEngine]:
    """Nothing that is begun there ends while a test lasts."""
    guests = [f"vm-{number}" for number in range(40)]
    async with a_site(tmp_path / "service", guests=guests, link=SLOW).running() as engine:
        yield engine


def pair(engine: RunningEngine, broker: Broker, **second: Any) -> tuple[MqttService, MqttService]:
    """One that acts and one that stands by, in front of one engine."""
    one = MqttService(engine, settings(broker, shared=True))
    return one, MqttService(engine, settings(broker, shared=True, instance="two"), acts=False, **second)


async def test_each_command_goes_to_one_of_them_which_replies(engine: RunningEngine, broker: Broker) -> None:
    one, two = pair(engine, broker)
    async with one.running(), two.running(), peer(broker) as scheduler:
        for number in range(20):
            await scheduler.command("migrate", id=f"c{number}", guest=f"vm-{number}")
        await until(
            lambda: all(scheduler.replies(f"c{number}") for number in range(20)), what="a reply to each"
        )
        assert (len(one.counted), len(two.counted)) == (10, 10)
        assert len(one.begun + two.begun) == len(engine.sessions()) == 20
        assert [len(scheduler.replies(f"c{number}")) for number in range(20)] == [1] * 20


async def test_only_the_one_that_acts_publishes_and_the_next_goes_on_where_it_was(
    engine: RunningEngine, broker: Broker
) -> None:
    published: list[int] = []

    async def until_where() -> int | None:
        return published[-1]

    one, two = pair(engine, broker, published_until=until_where)
    topics = (f"{PREFIX}/migration/#", f"{PREFIX}/reply/#")
    async with peer(broker, "dashboard", topics=topics) as dashboard, two.running():
        async with one.running():
            first = engine.bus.last_event_id + 1
            engine.bus.publish(migration_state("m1"))
            engine.bus.publish(decision("m1"))
            await until(lambda: len(dashboard.got) == 2, what="what is said")
            published.append(one.mqtt.published or 0)
        engine.bus.publish(decision("m1"))  # nobody acts
        engine.bus.publish(migration_state("m1", state=State.COMPLETED, ended_at=datetime.now(UTC)))
        two.mqtt.act(True)
        engine.bus.publish(migration_state("m2"))
        await until(lambda: dashboard.on("m2/state"), what="what is said then")
    assert [(got.json["event_id"] - first, got.json["kind"]) for got in dashboard.got] == [
        (0, "state"),
        (1, "decision"),
        (2, "decision"),
        (3, "state"),
        (4, "state"),
    ]


async def test_one_that_acts_no_more_publishes_no_more(engine: RunningEngine, broker: Broker) -> None:
    one, _ = pair(engine, broker)
    async with peer(broker, "dashboard") as dashboard, one.running():
        async with peer(broker) as scheduler:
            await scheduler.command("migrate", id="c1", guest="vm-1")
            await until(lambda: scheduler.replies("c1"), what="a reply")
            acting = scheduler.replies("c1")[0]["subject_id"]
            await until(lambda: dashboard.on(f"{acting}/state"), what="its state")
            one.mqtt.act(False)
            await scheduler.command("migrate", id="c2", guest="vm-2")
            await until(lambda: scheduler.replies("c2"), what="a reply all the same")
        identifier = scheduler.replies("c2")[0]["subject_id"]
        assert not dashboard.on(f"{identifier}/state")
        one.mqtt.act(True)
        await until(
            lambda: dashboard.on(f"{identifier}/state"), what="retained states are put right", within=20
        )


async def test_session_from_before_it_was_shared_gets_each_command_once(
    engine: RunningEngine, broker: Broker
) -> None:
    alone = MqttService(engine, settings(broker))
    async with alone.running():
        pass
    shared = MqttService(engine, settings(broker, shared=True))
    async with shared.running(), peer(broker) as scheduler:
        await scheduler.command("migrate", id="c1", guest="vm-1")
        await until(lambda: scheduler.replies("c1"), what="a reply")
        await scheduler.command("plan", id="c2", host="a")
        await until(lambda: scheduler.replies("c2"), what="a reply")
    assert len(scheduler.replies("c1")) == 1
    assert shared.counted == [("mqtt", "migrate", "accepted"), ("mqtt", "plan", "accepted")]


async def test_commands_that_the_broker_keeps_for_one_that_is_gone_are_carried_out_by_another(
    engine: RunningEngine, broker: Broker
) -> None:
    one, two = pair(engine, broker)
    identifiers = [f"c{number}" for number in range(40)]
    async with two.running(), peer(broker) as scheduler:
        async with one.running():
            pass
        for number, identifier in enumerate(identifiers):
            await scheduler.command("migrate", id=identifier, guest=f"vm-{number}")
        await until(lambda: len(two.begun) == 20, what="its own share")
        await two.mqtt.take_commands_of(f"migrator-site-one-{'0' * 32}")
        await until(
            lambda: all(scheduler.replies(each) for each in identifiers), what="a reply to each", within=20
        )
        assert len(two.begun) == len(engine.sessions()) == 40
        # From now on nothing more is kept for it, until it is there again.
        await scheduler.command("plan", id="c50", host="a")
        await scheduler.command("plan", id="c51", host="a")
        await until(lambda: scheduler.replies("c50") and scheduler.replies("c51"), what="both")
        again = MqttService(engine, settings(broker, shared=True))
        async with again.running():
            for number in range(60, 64):
                await scheduler.command("plan", id=f"c{number}", host="a")
            await until(lambda: all(scheduler.replies(f"c{number}") for number in range(60, 64)), what="all")
            assert [heard[1] for heard in again.counted] == ["plan", "plan"]
