"""Several controllers at one broker: each command goes to one of them, and one alone publishes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.testing.lab import until
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_fakes import Service
from tests.mqtt_peer import PREFIX, peer, settings


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


def pair(broker: Broker, **second: Any) -> tuple[Service, Service]:
    """One that acts and one that stands by, on one journal."""
    one = Service(settings(broker, shared=True))
    shared: Any = {"log": one.log, "queries": one.queries, "controller": one.controller}
    return one, Service(settings(broker, shared=True, instance="two"), **shared, acts=False, **second)


async def test_each_command_goes_to_one_of_them_which_replies(broker: Broker) -> None:
    one, two = pair(broker)
    async with one.running(), two.running(), peer(broker) as scheduler:
        for number in range(20):
            await scheduler.command("migrate", id=f"c{number}", guest="web")
        await until(
            lambda: all(scheduler.replies(f"c{number}") for number in range(20)), what="a reply to each"
        )
        assert (len(one.heard), len(two.heard)) == (10, 10)
        assert len(one.controller.begun) == 20
        assert [len(scheduler.replies(f"c{number}")) for number in range(20)] == [1] * 20


async def test_only_the_one_that_acts_publishes_and_the_next_goes_on_where_it_was(broker: Broker) -> None:
    published: list[int] = []

    async def until_where() -> int | None:
        return published[-1]

    one, two = pair(broker, published_until=until_where)
    topics = (f"{PREFIX}/migration/#", f"{PREFIX}/reply/#")
    async with peer(broker, "dashboard", topics=topics) as dashboard, two.running():
        async with one.running():
            one.controller.migration("m1")
            one.controller.decide("m1", "d1")
            await until(lambda: len(dashboard.got) == 2, what="what is said")
            published.append(one.mqtt.published or 0)
        one.controller.decide("m1", "d2")  # nobody acts
        one.controller.end("m1")
        two.mqtt.act(True)
        one.controller.migration("m2")
        await until(lambda: dashboard.on("m2/state"), what="what is said then")
    assert [(got.json["event_id"], got.json["kind"]) for got in dashboard.got] == [
        (1, "state"),
        (2, "decision"),
        (3, "decision"),
        (4, "state"),
        (5, "state"),
    ]


async def test_one_that_acts_no_more_publishes_no_more(broker: Broker) -> None:
    one, _ = pair(broker)
    async with peer(broker, "dashboard") as dashboard, one.running():
        one.controller.migration("m1")
        await until(lambda: dashboard.on("m1/state"), what="its state")
        one.mqtt.act(False)
        one.controller.migration("m2")
        async with peer(broker) as scheduler:
            await scheduler.command("migrate", id="c1", guest="web")
            await until(lambda: scheduler.replies("c1"), what="a reply all the same")
        assert not dashboard.on("m2/state")
        one.mqtt.act(True)
        await until(lambda: dashboard.on("m2/state"), what="retained states are put right", within=20)


async def test_session_from_before_it_was_shared_gets_each_command_once(broker: Broker) -> None:
    alone = Service(settings(broker))
    async with alone.running():
        pass
    shared = Service(settings(broker, shared=True), log=alone.log, queries=alone.queries)
    async with shared.running(), peer(broker) as scheduler:
        await scheduler.command("migrate", id="c1", guest="web")
        await until(lambda: scheduler.replies("c1"), what="a reply")
        await scheduler.command("plan", id="c2", host="a")
        await until(lambda: scheduler.replies("c2"), what="a reply")
    assert len(scheduler.replies("c1")) == 1
    assert shared.heard == [("mqtt", "migrate", "accepted"), ("mqtt", "plan", "accepted")]


async def test_commands_that_the_broker_keeps_for_one_that_is_gone_are_carried_out_by_another(
    broker: Broker,
) -> None:
    one, two = pair(broker)
    identifiers = [f"c{number}" for number in range(40)]
    async with two.running(), peer(broker) as scheduler:
        async with one.running():
            pass
        for identifier in identifiers:
            await scheduler.command("migrate", id=identifier, guest="web")
        await until(lambda: len(two.controller.begun) == 20, what="its own share")
        await two.mqtt.take_commands_of(f"migrator-site-one-{'0' * 32}")
        await until(
            lambda: all(scheduler.replies(each) for each in identifiers), what="a reply to each", within=20
        )
        assert len(two.controller.begun) == 40
        # From now on nothing more is kept for it, until it is there again.
        await scheduler.command("plan", id="c50", host="a")
        await scheduler.command("plan", id="c51", host="a")
        await until(lambda: scheduler.replies("c50") and scheduler.replies("c51"), what="both")
        again = Service(
            settings(broker, shared=True), log=one.log, queries=one.queries, controller=one.controller
        )
        async with again.running():
            for number in range(60, 64):
                await scheduler.command("plan", id=f"c{number}", host="a")
            await until(lambda: all(scheduler.replies(f"c{number}") for number in range(60, 64)), what="all")
            assert [heard[1] for heard in again.heard] == ["plan", "plan"]
