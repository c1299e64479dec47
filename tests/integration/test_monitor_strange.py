"""A QEMU that is none, or was broken into: whatever it says costs its own session, and is told in words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from migrator.errors import QemuError, StrangeAnswer, Unreachable
from migrator.qemu.address import Address
from migrator.qemu.client import EVENTS_AT_ONCE, MESSAGE_BYTES
from migrator.qemu.monitor import Monitor
from migrator.testing.lab import until
from tests.scripted import ScriptedQmp, Session, replies, says


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory(prefix="qmp-") as directory:
        yield Path(directory) / "monitor"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[ScriptedQmp]:
    async with ScriptedQmp(path) as server:
        server.on("query-uuid", replies({"UUID": "00000000-0000-0000-0000-000000000007"}))
        yield server


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
async def monitor(server: ScriptedQmp, path: Path, heard: list[str]) -> AsyncIterator[Monitor]:
    def note(event: Mapping[str, Any]) -> None:
        heard.append(event["event"])

    address = Address(kind="unix", path=str(path))
    monitor = Monitor(address, name="guest", on_event=note, on_break=lambda: None)
    await monitor.connect()
    yield monitor
    await monitor.close()


async def test_an_answer_that_is_none_says_what_and_the_session_goes_on(
    server: ScriptedQmp, monitor: Monitor
) -> None:
    server.on("query-status", replies(5))
    with pytest.raises(
        StrangeAnswer, match=r"^guest: what it answers to query-status is no answer: .*, not 5$"
    ):
        await monitor.execute("query-status")
    assert await monitor.execute("query-uuid")


DEEP = b'{"return": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\r\n"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"return": {}, "id": [1]}\r\n', r"an answer to what was never asked \(id \[1\]\)"),
        (b'{"return": {}, "id": {"a": 2}}\r\n', "an answer to what was never asked"),
        (b'{"return": {}, "id": 7}\r\n', "an answer to what was never asked"),
        (DEEP, "no JSON .recursion limit"),
        (b"[" * 20_000 + b"\r\n", "no JSON"),
        (b'{"return": ' + b"9" * 5_000 + b"}\r\n", "no JSON .number out of range"),
        (b'{"return": NaN}\r\n', "no JSON"),
        (b'{"return": "\\ud800"}\r\n', "no JSON"),
        (b'{"return": "\xff\xfe"}\r\n', "no JSON"),
        (b'{"event": 5}\r\n', r"no event \(event: Input should be a valid string, not 5\)"),
        (b'{"event": "STOP", "data": [1]}\r\n', "no event"),
        (b"5\r\n", "no message"),
        (b"x" * (MESSAGE_BYTES + 10) + b"\r\n", "a message of more than"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
async def test_what_is_no_qmp_ends_its_session_which_can_be_opened_again(
    server: ScriptedQmp, monitor: Monitor, said: bytes, words: str
) -> None:
    server.on("query-name", says(said))
    with pytest.raises(Unreachable, match=f"broke before it was answered: it sent {words}") as caught:
        await monitor.execute("query-name")
    assert len(str(caught.value)) < 700
    await monitor.connect()
    assert await monitor.execute("query-uuid")


@pytest.mark.parametrize(
    "greeting",
    [
        b"[" * 20_000 + b"\r\n",
        b'{"QMP": 5}\r\n',
        b"\xff\r\n",
        b"x" * (MESSAGE_BYTES + 10),
        b'{"QMP": {"version": {}, "capabilities": 1}}\r\n',
    ],
    ids=["deep", "a number", "no text", "endless", "capabilities"],
)
async def test_a_greeting_that_is_none_is_somebody_who_cannot_be_reached(path: Path, greeting: bytes) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(greet, path)
    address = Address(kind="unix", path=str(path))
    monitor = Monitor(address, name="guest", on_event=lambda event: None, on_break=lambda: None)
    with pytest.raises(QemuError) as caught:
        await monitor.connect(timeout=2.0)
    assert len(str(caught.value)) < 700
    await monitor.close()
    server.close()
    await server.wait_closed()


async def test_two_answers_to_one_command_do_no_harm(server: ScriptedQmp, monitor: Monitor) -> None:
    async def twice(session: Session, message: dict[str, Any]) -> None:
        for _ in range(50):
            await session.reply(message, {})

    server.on("query-name", twice)
    assert await monitor.execute("query-name") == {}
    assert await monitor.execute("query-uuid")


async def test_of_a_flood_of_events_some_are_dropped_and_nobody_else_waits(
    server: ScriptedQmp, monitor: Monitor, heard: list[str]
) -> None:
    event = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "FLOOD", "data": {"of": "x" * 40}}
    many = json.dumps(event).encode() + b"\r\n"

    async def flood(session: Session, message: dict[str, Any]) -> None:
        for _ in range(60):
            await session.raw(many * 500)
        await session.reply(message, {})

    server.on("query-name", flood)
    worst, at = 0.0, time.monotonic()
    flooded = asyncio.create_task(monitor.execute("query-name", timeout=30.0), name="flooded")
    while not flooded.done():
        await asyncio.sleep(0.005)
        worst, at = max(worst, time.monotonic() - at), time.monotonic()
    assert await flooded == {}
    assert EVENTS_AT_ONCE <= len(heard) < 2 * EVENTS_AT_ONCE
    assert worst < 1.0
    await until(lambda: monitor.connected, what="a session that is whole")
