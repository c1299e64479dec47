"""One QMP session against a server that misbehaves: every command has an end, and says what may still happen."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import pytest

from migrator.errors import CommandFailed, Occupied, TimedOut, Unreachable
from migrator.qemu.address import Address, parse
from migrator.qemu.client import QmpClient
from migrator.qemu.monitor import Monitor
from migrator.testing.lab import until
from tests.scripted import (
    GREETING,
    ScriptedQmp,
    Session,
    hangs_up,
    never,
    refuses,
    replies,
    replies_when,
    says,
)

LINE = json.dumps(GREETING).encode()


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


@pytest.fixture
def path() -> Any:
    with TemporaryDirectory(prefix="qmp-") as directory:
        yield Path(directory) / "monitor"


class Heard:
    """What a monitor reports by itself."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.breaks = 0

    def event(self, message: Mapping[str, Any]) -> None:
        self.events.append(message["event"])

    def broke(self) -> None:
        self.breaks += 1


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def monitor(path: Path, heard: Heard) -> AsyncIterator[Monitor]:
    address = Address(kind="unix", path=str(path))
    monitor = Monitor(address, name="source unix:x", on_event=heard.event, on_break=heard.broke)
    yield monitor
    await monitor.close()


@pytest.fixture
async def server(path: Path, monitor: Monitor) -> AsyncIterator[ScriptedQmp]:
    async with ScriptedQmp(path) as server:
        await monitor.connect()
        yield server
        await monitor.close()


class TestConnecting:
    async def test_waits_for_a_greeting_that_comes_late(self, path: Path, monitor: Monitor) -> None:
        async with ScriptedQmp(path, greeting=None) as server:
            connecting = asyncio.create_task(monitor.connect(), name="connecting")
            await until(lambda: server.sessions, what="a client")
            assert not monitor.connected
            for piece in (LINE[:20], LINE[20:] + b"\r\n"):
                await server.sessions[0].raw(piece)
            await connecting
            assert monitor.connected
            await monitor.close()

    async def test_to_what_never_greets_is_refused_as_occupied(self, path: Path, monitor: Monitor) -> None:
        async with ScriptedQmp(path, greeting=None) as server:
            with pytest.raises(
                Occupied, match=r"^source unix:x: no QMP greeting within 0.1 s: another client"
            ):
                await monitor.connect(timeout=0.1)
            assert not monitor.connected
            # It stays in the socket's queue: the next attempt is no second one there.
            with pytest.raises(Occupied):
                await monitor.connect(timeout=0.1)
            assert len(server.sessions) == 1
            await monitor.close()
            await until(lambda: server.sessions[0].closed, what="the client's hanging up")

    async def test_to_what_greets_and_then_says_nothing_ends(self, path: Path, monitor: Monitor) -> None:
        async with ScriptedQmp(path) as server:
            server.on("qmp_capabilities", never)
            with pytest.raises(Unreachable):
                await monitor.connect(timeout=0.1)

    @pytest.mark.parametrize(
        "greeting",
        [
            *(
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
                b'{"hello": "there"}\r\n',
                b"[1, 2]\r\n",
                b"\xff\xfe\x00\r\n",
            ),
            *(b'{"QMP": "x"}\r\n', b'{"event": "STOP"}\r\n'),
        ],
    )
    async def test_to_what_greets_with_rubbish_is_refused(
        self, path: Path, monitor: Monitor, greeting: bytes
    ) -> None:
        async with ScriptedQmp(path, greeting=greeting):
            with pytest.raises(
                Unreachable, match=r"cannot open a QMP session: .+; is QEMU running there\?"
            ) as caught:
                await monitor.connect()
            assert not isinstance(caught.value, Occupied)
            assert caught.value.__cause__ is not None

    async def test_to_what_refuses_to_negotiate_is_refused(self, path: Path, monitor: Monitor) -> None:
        async with ScriptedQmp(path) as server:
            server.on("qmp_capabilities", refuses("GenericError", "not today"))
            with pytest.raises(Unreachable, match="cannot open a QMP session"):
                await monitor.connect()

    async def test_to_what_hangs_up_in_its_greeting_is_refused(self, path: Path, monitor: Monitor) -> None:
        async with ScriptedQmp(path, greeting=None) as server:
            connecting = asyncio.create_task(monitor.connect(), name="connecting")
            await until(lambda: server.sessions, what="a client")
            await server.sessions[0].raw(LINE[:30])
            server.hang_up()
            with pytest.raises(Unreachable, match="cannot open a QMP session"):
                await connecting

    async def test_where_nothing_listens_is_refused(self, path: Path, monitor: Monitor) -> None:
        with pytest.raises(Unreachable, match="No such file or directory; is QEMU running there"):
            await monitor.connect()
        async with ScriptedQmp(path):
            pass
        path.unlink(missing_ok=True)
        with pytest.raises(Unreachable):
            await monitor.connect()

    async def test_again_is_nothing_while_a_session_is_open(
        self, server: ScriptedQmp, monitor: Monitor
    ) -> None:
        await monitor.connect()
        assert len(server.sessions) == 1

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    async def test_goes_over_tcp_and_knows_no_process_then(self, host: str, heard: Heard) -> None:
        try:
            server = await ScriptedQmp(host).__aenter__()
        except OSError as error:
            pytest.skip(f"there is no {host} here: {error}")
        try:
            address = parse(f"tcp:[{host}]:{server.port}" if ":" in host else f"tcp:{host}:{server.port}")
            monitor = Monitor(address, name="source", on_event=heard.event, on_break=heard.broke)
            await monitor.connect()
            assert await monitor.execute("query-name") == {}
            assert monitor.pid is None
            await monitor.close()
        finally:
            await server.__aexit__(None, None, None)

    async def test_given_up_leaves_nothing_behind(self, path: Path, monitor: Monitor) -> None:
        async with ScriptedQmp(path, greeting=None) as server:
            connecting = asyncio.create_task(monitor.connect(), name="connecting")
            await until(lambda: server.sessions, what="a client")
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await monitor.close()
            await until(lambda: server.sessions[0].closed, what="the client's hanging up")


class TestCommand:
    async def test_that_is_answered_late_is_waited_for(self, server: ScriptedQmp, monitor: Monitor) -> None:
        server.on("query-status", replies({"status": "running"}, after=0.2))
        assert await monitor.execute("query-status") == {"status": "running"}
        assert 0.2 <= monitor.round_trip_seconds < 5

    async def test_that_is_answered_late_once_does_not_make_the_way_longer(
        self, server: ScriptedQmp, monitor: Monitor
    ) -> None:
        await monitor.execute("query-name")
        server.on("query-status", replies({"status": "running"}, after=1.0))
        await monitor.execute("query-status")
        assert 0 < monitor.least_round_trip_seconds < 1.0 <= monitor.round_trip_seconds

    async def test_that_is_never_answered_times_out_and_may_still_be_carried_out(
        self, server: ScriptedQmp, monitor: Monitor
    ) -> None:
        server.on("cont", never)
        began = time.monotonic()
        with pytest.raises(
            TimedOut, match=r"cont was not answered within 0.1 s and may still be carried out"
        ) as caught:
            await monitor.execute("cont", timeout=0.1)
        assert time.monotonic() - began < 4
        assert caught.value.command == "cont"
        assert monitor.connected
        assert server.names == ["cont"]

    async def test_after_one_that_timed_out_gets_its_own_answer(
        self, server: ScriptedQmp, monitor: Monitor
    ) -> None:
        server.on("query-name", replies({"name": "late"}, after=0.2))
        server.on("query-uuid", replies({"UUID": str(UUID(int=7))}))
        with pytest.raises(TimedOut):
            await monitor.execute("query-name", timeout=0.05)
        assert await monitor.execute("query-uuid") == {"UUID": str(UUID(int=7))}

    async def test_that_is_refused_tells_class_and_words(self, server: ScriptedQmp, monitor: Monitor) -> None:
        server.on("migrate", refuses("CommandNotFound", "The command migrate has not been found"))
        with pytest.raises(
            CommandFailed, match=r"^source unix:x: migrate: The command migrate has not"
        ) as caught:
            await monitor.execute("migrate")
        assert (caught.value.error_class, caught.value.command) == ("CommandNotFound", "migrate")
        assert caught.value.description == "The command migrate has not been found"
        assert monitor.connected

    @pytest.mark.parametrize(
        "behaviour",
        [
            hangs_up(),
            hangs_up(b'{"return": {"sta'),
            says(b"\x00\x01 nonsense\r\n"),
            says(b'{"return": {"status": "running"}\r\n'),
            says(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n'),
            says(b"[]\r\n"),
        ],
        ids=[
            "hangs-up",
            "in-the-middle-of-a-line",
            "garbage",
            "half-an-object",
            "cannot-parse-us",
            "no-object",
        ],
    )
    async def test_whose_session_breaks_says_so(
        self, server: ScriptedQmp, monitor: Monitor, heard: Heard, behaviour: Any
    ) -> None:
        server.on("query-status", behaviour)
        with pytest.raises(
            Unreachable, match="query-status: the QMP session broke before it was answered"
        ) as caught:
            await monitor.execute("query-status")
        assert caught.value.__cause__ is not None
        assert not monitor.connected
        await until(lambda: heard.breaks == 1, what="word of the break")
        with pytest.raises(Unreachable, match="query-name: there is no QMP session"):
            await monitor.execute("query-name")
        # It can be opened again, and is whole then.
        server.on("query-status", replies({"status": "paused"}))
        await monitor.connect()
        assert await monitor.execute("query-status") == {"status": "paused"}
        assert heard.breaks == 1

    async def test_fails_together_with_all_others_in_flight(
        self, server: ScriptedQmp, monitor: Monitor
    ) -> None:
        server.on("query-b", hangs_up())
        outcomes = await asyncio.gather(
            *(monitor.execute(f"query-{name}") for name in "abc"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [dict, Unreachable, Unreachable]

    async def test_is_not_confused_by_an_answer_to_nobody(
        self, server: ScriptedQmp, monitor: Monitor
    ) -> None:
        async def strange(session: Session, message: dict[str, Any]) -> None:
            await session.send({"return": {"status": "wrong"}, "id": "of somebody else"})
            await session.reply(message, {"status": "right"})

        server.on("query-status", strange)
        assert await monitor.execute("query-status") == {"status": "right"}

    async def test_out_of_band_is_answered_while_another_is_stuck(
        self, server: ScriptedQmp, monitor: Monitor
    ) -> None:
        server.on("migrate_cancel", never)
        stuck = asyncio.create_task(monitor.execute("migrate_cancel", timeout=30), name="stuck")
        await until(lambda: server.names, what="the command")
        assert await monitor.execute("yank", {"instances": []}, oob=True, timeout=2) == {}
        assert "exec-oob" in server.received[-1]
        assert not stuck.done()
        stuck.cancel()
        await asyncio.wait({stuck})

    async def test_given_up_leaves_the_session_whole(self, server: ScriptedQmp, monitor: Monitor) -> None:
        ready = asyncio.Event()
        server.on("query-status", replies_when(ready, lambda: {"status": "running"}))
        given_up = asyncio.create_task(monitor.execute("query-status"), name="given up")
        await until(lambda: server.names, what="the command")
        given_up.cancel()
        await asyncio.wait({given_up})
        ready.set()
        assert await monitor.execute("query-name") == {}


class TestEvents:
    async def test_of_a_storm_all_arrive_in_order_and_so_does_the_answer(
        self, server: ScriptedQmp, monitor: Monitor, heard: Heard
    ) -> None:
        async def storm(session: Session, message: dict[str, Any]) -> None:
            for number in range(3000):
                await session.event(f"E{number}")
            await session.reply(message, {"status": "running"})

        server.on("query-status", storm)
        assert await monitor.execute("query-status") == {"status": "running"}
        assert heard.events == [f"E{number}" for number in range(3000)]

    async def test_that_come_in_pieces_are_put_together(
        self, server: ScriptedQmp, monitor: Monitor, heard: Heard
    ) -> None:
        line = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n'
        for at in range(0, len(line), 7):
            await server.sessions[0].raw(line[at : at + 7])
            await asyncio.sleep(0)
        await until(lambda: heard.events == ["STOP"], what="the event")

    async def test_come_again_after_the_session_was_opened_again(
        self, server: ScriptedQmp, monitor: Monitor, heard: Heard
    ) -> None:
        server.hang_up()
        await until(lambda: heard.breaks == 1, what="word of the break")
        await monitor.connect()
        await server.event("RESUME")
        await until(lambda: heard.events == ["RESUME"], what="the event")

    async def test_come_though_qemu_hung_up_before_the_next_command(
        self, path: Path, monitor: Monitor, heard: Heard
    ) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            connecting = asyncio.create_task(monitor.connect(), name="connecting")
            session, _ = await asyncio.to_thread(listener.accept)
            with session:
                session.sendall(LINE + b"\r\n")
                asked = json.loads(await asyncio.to_thread(session.recv, 4096))
                session.sendall(json.dumps({"return": {}, "id": asked.get("id")}).encode() + b"\r\n")
                await connecting
                # All of it at once, as a QEMU says it that ends while this process gets no processor.
                for name in ("STOP", "SHUTDOWN"):
                    event = {"event": name, "data": {}, "timestamp": {"seconds": 0, "microseconds": 0}}
                    session.sendall(json.dumps(event).encode() + b"\r\n")
        with pytest.raises(Unreachable):
            await monitor.execute("query-status")
        assert heard.events == ["STOP", "SHUTDOWN"]


class TestClosing:
    async def test_waits_for_nothing_though_the_server_does_not_read(
        self, path: Path, monitor: Monitor, heard: Heard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Whoever waited for the server would wait for this long.
        monkeypatch.setattr(QmpClient, "end", functools.partialmethod(QmpClient.end, 60.0))

        async def greet_and_stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(LINE + b"\r\n")
            await reader.read(4096)
            writer.write(b'{"return": {}}\r\n')
            stalled.append(writer)

        stalled: list[asyncio.StreamWriter] = []
        server = await asyncio.start_unix_server(greet_and_stall, path, limit=1024)
        await monitor.connect()
        commands = [
            asyncio.create_task(
                monitor.execute("ringbuf-write", {"data": "x" * (1 << 20)}), name=f"command {n}"
            )
            for n in range(4)
        ]
        with pytest.raises(TimedOut):
            await monitor.execute("query-status", timeout=0.1)
        began = time.monotonic()
        await monitor.close()
        assert time.monotonic() - began < 30
        assert {type(each) for each in await asyncio.gather(*commands, return_exceptions=True)} == {
            Unreachable
        }
        stalled[0].transport.abort()
        server.close()

    async def test_is_not_a_break(self, server: ScriptedQmp, monitor: Monitor, heard: Heard) -> None:
        await monitor.close()
        await monitor.close()
        await until(lambda: server.sessions[0].closed, what="the client's hanging up")
        assert heard.breaks == 0
        assert not monitor.connected
