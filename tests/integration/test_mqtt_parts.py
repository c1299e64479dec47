"""Parts of the MQTT entrance without a broker: queues within bounds and in order, topics, origins."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.api.events import Subject
from migrator.mqtt.inbound import ReplyTo
from migrator.mqtt.outbox import Outbox, Outgoing, Priority
from migrator.mqtt.topics import Topics
from migrator.testing.lab import until
from migrator.testing.simulated_service import SimulatedService
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import PREFIX, peer, settings
from tests.mqtt_service import a_site, serving
from tests.some_events import migration_state, progress

TOPICS = Topics("site", "one")


def message(priority: Priority, name: str, *, retain: bool = False) -> Outgoing:
    return Outgoing(priority=priority, topic=name, payload=name.encode(), retain=retain)


async def names(outbox: Outbox, count: int) -> list[str]:
    taken = [await outbox.get() for _ in range(count)]
    for each in taken:
        outbox.done(each)
    return [each.topic for each in taken]


async def test_replies_go_first_then_truth_then_events_each_in_order() -> None:
    outbox = Outbox(limit=10, interval=1)
    outbox.opened()
    for name in ("p1", "e1", "t1", "r1", "e2", "r2", "t2"):
        priority = {
            "p": Priority.PROGRESS,
            "e": Priority.EVENT,
            "t": Priority.CORRECTION,
            "r": Priority.REPLY,
        }[name[0]]
        outbox.put(message(priority, name))
    assert await names(outbox, 7) == ["r1", "r2", "t1", "t2", "e1", "e2", "p1"]


async def test_what_was_not_taken_goes_again_before_what_came_later() -> None:
    outbox = Outbox(limit=10, interval=1)
    outbox.opened()
    for number in range(4):
        outbox.put(message(Priority.EVENT, f"e{number}"))
    first = [await outbox.get(), await outbox.get(), await outbox.get()]
    outbox.done(first[0])
    outbox.put(message(Priority.EVENT, "e4"))
    outbox.put_back(first[1:])
    assert await names(outbox, 4) == ["e1", "e2", "e3", "e4"]
    assert outbox.dropped == 0


async def test_bound_holds_for_what_comes_back_too_and_the_oldest_go() -> None:
    outbox = Outbox(limit=3, interval=1)
    taken = []
    for number in range(3):
        outbox.put(message(Priority.EVENT, f"e{number}", retain=True))
        taken.append(await outbox.get())
    for number in range(3, 5):
        outbox.put(message(Priority.EVENT, f"e{number}", retain=True))
    outbox.put_back(taken)
    assert outbox.dropped == 2
    assert [outbox.waits(f"e{number}") for number in range(5)] == [False, False, True, True, True]
    assert await names(outbox, 3) == ["e2", "e3", "e4"]
    assert not outbox.waits("e4")


async def test_progress_is_only_the_latest_and_none_is_kept_for_a_broker_that_is_away() -> None:
    outbox = Outbox(limit=10, interval=0.2)
    outbox.put(message(Priority.PROGRESS, "early"))
    outbox.opened()
    outbox.put(message(Priority.PROGRESS, "p"))
    outbox.put(latest := message(Priority.PROGRESS, "p"))
    began = asyncio.get_running_loop().time()
    assert await outbox.get() is latest
    outbox.put(message(Priority.PROGRESS, "p"))
    await outbox.get()
    assert asyncio.get_running_loop().time() - began >= 0.19
    outbox.put(message(Priority.PROGRESS, "p"))
    outbox.closed()
    outbox.opened()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await outbox.get()


async def test_drained_waits_for_what_is_on_its_way_and_not_for_progress() -> None:
    outbox = Outbox(limit=10, interval=1)
    outbox.opened()
    outbox.put(message(Priority.EVENT, "e"))
    drained = asyncio.create_task(outbox.drained())
    taken = await outbox.get()
    await asyncio.sleep(0)
    assert not drained.done()
    outbox.put(message(Priority.PROGRESS, "p"))
    outbox.done(taken)
    async with asyncio.timeout(20):
        await drained


NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)


@given(user=NAMES, verb=NAMES, below=st.text(max_size=50), correlation=st.none() | st.binary(max_size=50))
def test_origin_tells_where_the_replies_went(
    user: str, verb: str, below: str, correlation: bytes | None
) -> None:
    topic = f"{TOPICS.prefix}/reply/{user}/{below}"
    if not TOPICS.may_reply(user, topic):
        return
    to = ReplyTo(topic=topic, correlation=correlation)
    found = ReplyTo.of(to.origin(f"{TOPICS.prefix}/command/{user}/{verb}"), topics=TOPICS, user=user)
    assert found is not None
    # A reply never goes to anybody else, whatever the origin looks like.
    assert TOPICS.may_reply(user, found.topic)
    if " " not in below:
        assert found == to


@given(user=NAMES, other=NAMES, origin=st.text())
def test_no_origin_leads_to_another_user(user: str, other: str, origin: str) -> None:
    for text in (origin, f" -> {TOPICS.reply(other, origin)}", f" -> {TOPICS.reply(other, origin)} AA=="):
        found = ReplyTo.of(text, topics=TOPICS, user=user)
        assert found is None or found.topic.startswith(f"{TOPICS.prefix}/reply/{user}/")


@given(subject=st.sampled_from(list(Subject)), identifier=st.text())
def test_no_id_breaks_out_of_its_topic(subject: Subject, identifier: str) -> None:
    topic = TOPICS.about(subject, identifier, "state")
    if topic is not None:
        assert topic.count("/") == 5
        assert not set(topic) & set("+#\0")
        assert TOPICS.whose_state(topic) == (subject, identifier)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def site(tmp_path: Path) -> SimulatedService:
    return a_site(tmp_path / "service")


def delays(port: int) -> list[bool]:
    """Of every connection of this process to that port: whether a packet waits until the one before is confirmed."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(fd.name))) as other:
            if other.family == socket.AF_INET and other.getpeername()[1] == port:
                found.append(not other.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return found


async def test_answer_does_not_wait_for_a_delayed_confirmation(
    broker: Broker, site: SimulatedService
) -> None:
    async with serving(site, settings(broker)):
        assert delays(broker.port) == [False]


async def test_answer_comes_amid_the_progress_of_a_hundred_migrations(
    broker: Broker, site: SimulatedService
) -> None:
    async with (
        serving(site, settings(broker)) as service,
        peer(broker, topics=(f"{PREFIX}/reply/scheduler/#",)) as scheduler,
    ):
        for number in range(100):
            service.bus.publish(migration_state(f"x{number}"))
        for number in range(3):
            for each in range(100):
                service.bus.publish(progress(f"x{each}"))
            await scheduler.command("check", id=f"c{number}", guest="web", to="b")
            await until(lambda: len(scheduler.got) > number, what="a reply")  # noqa: B023 - awaited here
