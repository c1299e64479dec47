"""A flood by MQTT while a process or the broker goes: each command once, each reply once at least."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from migrator.testing.lab import until
from tests.acceptance.service_site import LiveSite, at_broker, made
from tests.acceptance.test_service_entrances import answers, entrance_there, gone
from tests.broker import USERS, Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import PREFIX

HOSTS = ("a", "b", "c")
SOAK = (pytest.mark.soak, pytest.mark.timeout(3600))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


class Scheduler:
    """Gives many commands as fast as the broker takes them, each once, and hears every reply; whatever the broker does.

    Every fifth message is no command at all.
    """

    def __init__(self, broker: Broker, count: int) -> None:
        self._broker = broker
        self.ids = [f"c{number}" for number in range(count)]
        self.published = 0
        self.replies: dict[str, list[dict[str, Any]]] = {each: [] for each in self.ids}
        self._subscribed = asyncio.Event()

    @asynccontextmanager
    async def flooding(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(), name="scheduler")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def _run(self) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 600
        while True:
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                async with aiomqtt.Client(
                    "127.0.0.1",
                    self._broker.port,
                    username="scheduler",
                    password=USERS["scheduler"],
                    protocol=aiomqtt.ProtocolVersion.V5,
                    identifier="flood",
                    clean_start=False,
                    properties=properties,
                    timeout=5,
                ) as client:
                    await client.subscribe(f"{PREFIX}/reply/scheduler/#", qos=1)
                    publishing = asyncio.create_task(self._publish(client), name="publishing")
                    try:
                        async for message in client.messages:
                            assert isinstance(message.payload, bytes)
                            reply = json.loads(message.payload)
                            if reply["id"] in self.replies:
                                self.replies[reply["id"]].append(reply)
                    finally:
                        publishing.cancel()
                        await asyncio.gather(publishing, return_exceptions=True)
            await asyncio.sleep(0.05)

    async def _publish(self, client: aiomqtt.Client) -> None:
        while self.published < len(self.ids):
            number = self.published
            body = {
                "id": self.ids[number],
                "sent_at": datetime.now(UTC).isoformat(),
                "host": HOSTS[number % len(HOSTS)],
            }
            verb = "activate" if number // len(HOSTS) % 2 else "evacuate"
            if number % 5 == 0:
                await client.publish(f"{PREFIX}/command/scheduler/{verb}", b'{"id": "c', qos=number // 5 % 2)
            await client.publish(f"{PREFIX}/command/scheduler/{verb}", json.dumps(body), qos=1)
            self.published += 1

    def begun(self) -> list[tuple[str, str]]:
        """Every command that began something, and what."""
        return [
            (identifier, reply["subject_id"])
            for identifier, replies in self.replies.items()
            for reply in replies[:1]
            if reply["subject"] == "evacuation"
        ]

    def without_reply(self) -> list[str]:
        """Commands that have none yet."""
        return [identifier for identifier, replies in self.replies.items() if not replies]

    def without_outcome(self) -> list[str]:
        """Commands that have begun something, and have not been told what became of it."""
        return [
            identifier
            for identifier, _ in self.begun()
            if all(reply["kind"] != "outcome" for reply in self.replies[identifier])
        ]


async def evacuations(site: LiveSite) -> list[str]:
    """Each that the journal has."""
    found: list[str] = []
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        page = await site.get("evacuations", limit=100, **({"before": page["next"]} if page["next"] else {}))
        found += [each["id"] for each in page["items"]]
    return found


async def kill_entrance(site: LiveSite, _: Broker) -> None:
    os.kill(await entrance_there(site), signal.SIGKILL)


async def freeze_entrance(site: LiveSite, _: Broker) -> None:
    first = await entrance_there(site)
    os.kill(first, signal.SIGSTOP)
    await until(lambda: gone(first), what="the end of the process that does not answer", within=30)


async def kill_service(site: LiveSite, _: Broker) -> None:
    await site.restart()


async def restart_broker(site: LiveSite, broker: Broker) -> None:
    before = len(site.said("no broker"))
    await asyncio.to_thread(broker.stop)
    await until(lambda: len(site.said("no broker")) > before, what="the service misses its broker")
    await broker.started()


HAPPENINGS: dict[str, tuple[int, Callable[[LiveSite, Broker], Awaitable[None]]]] = {
    "entrance is killed": (2, kill_entrance),
    "entrance is frozen": (1, freeze_entrance),
    "service is killed": (1, kill_service),
    "broker is restarted": (1, restart_broker),
}


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("entrance is killed", 60),
        pytest.param("service is killed", 90, marks=pytest.mark.matrix),
        pytest.param("broker is restarted", 90, marks=pytest.mark.matrix),
        *(pytest.param(what, 10_000, marks=SOAK) for what in HAPPENINGS),
    ],
)
async def test_each_command_of_a_flood_is_carried_out_once_and_replied_to_while(
    broker: Broker, what: str, count: int
) -> None:
    times, happen = HAPPENINGS[what]
    async with made([], *HOSTS, extra=at_broker(broker)) as site:
        site.serve()
        await site.until_served()
        await site.known(0)
        scheduler = Scheduler(broker, count)
        async with scheduler.flooding():
            for number in range(times):
                part = count * (number + 1) // (times + 2)
                await until(lambda part=part: scheduler.published >= part, what="a part", within=60)  # type: ignore[misc]
                await happen(site, broker)
            try:
                await until(
                    lambda: not scheduler.without_reply() and not scheduler.without_outcome(),
                    what="a reply to each, and each outcome",
                    within=60 + count / 20,
                )
            except TimeoutError:
                missed = scheduler.without_reply(), scheduler.without_outcome()
                raise AssertionError((missed, site.log()[-6000:])) from None
        begun = scheduler.begun()
        journalled = await evacuations(site)
        assert sorted(subject for _, subject in begun) == sorted(journalled), "each once, and nothing else"
        for replies in scheduler.replies.values():
            # One that was asked for again after its end may have been told that alone.
            kinds = {reply["kind"] for reply in replies}
            assert kinds in ({"accepted"}, {"refused"}, {"accepted", "outcome"}, {"outcome"}), replies
            assert len({reply["subject_id"] for reply in replies}) == 1, replies
        refused = {
            reply["code"]
            for replies in scheduler.replies.values()
            for reply in replies
            if reply["kind"] == "refused"
        }
        assert refused <= {"conflict"}


@pytest.mark.matrix
@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=SOAK)], ids=["short", "long"])
async def test_flood_does_not_fill_the_channel_and_what_waits_stays_at_the_broker(
    broker: Broker, count: int
) -> None:
    async with made([], *HOSTS, extra=at_broker(broker)) as site:
        site.serve()
        await site.until_served()
        await site.known(0)
        assert site.service is not None
        site.service.send_signal(signal.SIGSTOP)
        scheduler = Scheduler(broker, count)
        try:
            async with scheduler.flooding():
                await until(lambda: scheduler.published == count, what="all of it", within=60)
                await until(lambda: answers(site, 503), what="that nobody drives", within=10)
                site.service.send_signal(signal.SIGCONT)
                await until(
                    lambda: not scheduler.without_reply(),
                    what="a reply to each",
                    within=60 + count / 20,
                )
        finally:
            site.service.send_signal(signal.SIGCONT)
        assert not site.said("entrances have ended")
        _, metrics = await site.probe("/metrics")
        assert 'commands_total{interface="mqtt",verb="unknown",result="refused"}' not in metrics
        refused = [
            line for line in metrics.splitlines() if 'interface="mqtt"' in line and 'result="refused"' in line
        ]
        assert sum(float(line.rsplit(" ", 1)[1]) for line in refused) >= count / 5
