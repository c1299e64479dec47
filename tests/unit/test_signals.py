"""What every journal promises of signals: on a server between processes, in a process otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migrator.ports import Signal, Signals
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.store.signals import LocalSignals
from migrator.testing.postgresql import Postgres


@pytest.fixture(params=["local", "postgresql"])
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Signals, Signals]]:
    """Who tells, and who listens."""
    if request.param == "local":
        local = LocalSignals()
        yield local, local
        return
    place: Place = request.getfixturevalue("postgresql_place")
    async with await SqlJournal.open(place) as one, await SqlJournal.open(place) as other:
        yield one.signals, other.signals


async def payloads(signals: AsyncIterator[Signal], count: int) -> list[str]:
    """The next so many that say something."""
    found = []
    async with asyncio.timeout(30):
        async for signal in signals:
            if signal.payload:
                found.append(signal.payload)
            if len(found) == count:
                break
    return found


async def test_are_heard_in_order_by_all_who_listen_to_their_channel(both: tuple[Signals, Signals]) -> None:
    telling, hearing = both
    async with hearing.listen("command") as commands, hearing.listen("event", "command") as all_of_them:
        for payload in ("a", "b \u2603", "c"):
            await telling.notify("command", payload)
            await telling.notify("event", f"e{payload}")
        assert await payloads(commands, 3) == ["a", "b \u2603", "c"]
        assert await payloads(all_of_them, 6) == ["a", "ea", "b \u2603", "eb \u2603", "c", "ec"]


async def test_are_heard_soon(both: tuple[Signals, Signals]) -> None:
    telling, hearing = both
    async with hearing.listen("command") as signals:
        took = []
        for number in range(20):
            began = time.monotonic()
            await telling.notify("command", f"{number}")
            await payloads(signals, 1)
            took.append(time.monotonic() - began)
    assert sorted(took)[10] < 1.0, "not only when it looks by itself, every five seconds"


async def test_that_do_not_come_are_no_reason_not_to_look(both: tuple[Signals, Signals]) -> None:
    _, hearing = both
    async with hearing.listen("command", "event", poll_seconds=0.05) as signals, asyncio.timeout(10):
        found = [await anext(signals) for _ in range(6)]
    assert {each.channel for each in found} == {"command", "event"}
    assert {each.payload for each in found} == {""}


async def test_of_which_nobody_takes_any_are_not_kept_for_ever() -> None:
    local = LocalSignals()
    async with local.listen("command") as signals:
        for number in range(2500):
            await local.notify("command", f"{number}")
        first = await anext(signals)
        assert first == Signal(channel="command")
        assert len(await payloads(signals, 400)) == 400


async def test_go_on_after_a_connection_was_lost_and_say_that_some_may_be_missing(
    postgresql_place: Place, postgresql: Postgres, shared_database: str
) -> None:
    async with (
        await SqlJournal.open(postgresql_place) as journal,
        journal.signals.listen("command", poll_seconds=60) as signals,
    ):
        await journal.signals.notify("command", "before")
        assert await payloads(signals, 1) == ["before"]
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
        postgresql.sql(f"{kill}'{shared_database}'")
        async with asyncio.timeout(15):
            assert await anext(signals) == Signal(channel="command")
        await journal.signals.notify("command", "after")
        assert await payloads(signals, 1) == ["after"]
