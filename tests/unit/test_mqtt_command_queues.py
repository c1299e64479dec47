"""Nobody's command waits behind another's flood."""

from __future__ import annotations

import asyncio
from pathlib import Path

from migrator.mqtt import MqttConfig, client_id
from migrator.mqtt.command_queues import CommandQueues
from migrator.settings.models import MqttSettings


async def test_every_user_has_its_turn_however_many_wait_of_another() -> None:
    turns = CommandQueues(concurrency=2, concurrency_per_user=1, max_waiting_per_user=1000)
    begun: list[str] = []

    async def work(name: str) -> None:
        begun.append(name)
        await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(400):
            turns.put("viewer", f"v{number}", lambda number=number: work(f"v{number}"), group)  # type: ignore[misc]
        turns.put("operator", "o", lambda: work("o"), group)
    assert begun.index("o") <= 2
    assert len(begun) == 401
    assert [name for name in begun if name != "o"] == [f"v{number}" for number in range(400)]


async def test_no_more_than_may_be_are_carried_out_at_a_time() -> None:
    turns = CommandQueues(concurrency=5, concurrency_per_user=3, max_waiting_per_user=1000)
    now: dict[str, int] = {"a": 0, "b": 0}
    most: list[tuple[int, int]] = []

    async def work(user: str) -> None:
        now[user] += 1
        most.append((sum(now.values()), max(now.values())))
        await asyncio.sleep(0)
        now[user] -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(300):
            user = "ab"[number % 2]
            turns.put(user, user, lambda user=user: work(user), group)  # type: ignore[misc]
    assert (max(each[0] for each in most), max(each[1] for each in most)) == (5, 3)


async def test_of_one_user_only_so_many_wait() -> None:
    turns = CommandQueues(concurrency=1, concurrency_per_user=1, max_waiting_per_user=2)
    going_on = asyncio.Event()

    async def work() -> None:
        await going_on.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            assert not turns.full("a")
            turns.put("a", "a", work, group)
        assert turns.full("a")
        assert not turns.full("b")
        turns.drop_waiting()
        assert not turns.full("a")
        going_on.set()


async def test_those_that_the_broker_delivers_again_go_with_the_connection() -> None:
    turns = CommandQueues(concurrency=1, concurrency_per_user=1, max_waiting_per_user=2)
    going_on = asyncio.Event()
    begun: list[str] = []

    async def work(name: str) -> None:
        begun.append(name)
        await going_on.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            turns.put("a", "held", lambda number=number: work(f"held {number}"), group, held=1 << 20)  # type: ignore[misc]
        turns.put("a", "received", lambda: work("received"), group)
        assert not turns.full("a"), "those that the broker has do not count"
        assert turns.holds_too_much(28 << 20)
        await asyncio.sleep(0)
        turns.drop_held()
        assert not turns.holds_too_much(28 << 20)
        going_on.set()
    assert begun == ["held 0", "received"]


def test_client_id_is_kept_for_the_service_alone_and_cannot_be_guessed(tmp_path: Path) -> None:
    settings = MqttConfig(section=MqttSettings(host="b"), site="s", instance="i")
    one, other = settings.new_client_id(), settings.new_client_id()
    assert one != other
    assert settings.is_client_id(one)
    assert not settings.is_client_id("migrator-s-i")
    assert not settings.is_client_id(
        MqttConfig(section=MqttSettings(host="b"), site="s", instance="j").new_client_id()
    )
    assert client_id.read(tmp_path) == ""
    client_id.keep(tmp_path, one)
    client_id.keep(tmp_path, other)
    assert client_id.read(tmp_path) == other
    assert [file.name for file in tmp_path.iterdir()] == [client_id.NAME]
    assert (tmp_path / client_id.NAME).stat().st_mode & 0o777 == 0o600
