"""What the guard relies on: QEMU carries out nothing of a client that has gone once the next was answered."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.guard import Guarded
from migrator.qemu.monitor import Monitor
from migrator.testing.lab import Lab, LabQemu, RawMonitor, until
from migrator.testing.raw_qmp import RawQmpError
from tests.conftest import MakePair, missing
from tests.integration.test_guard import BEFORE_SWITCH, at_switch, begun, request
from tests.scripted import GREETING, ScriptedQmp, Session, refuses, replies

#: How often a client goes just after it has spoken.
_GONE = 60
_SEIZE, _INTERRUPT, _DETACH, _ANY_CHILD = 0x4206, 0x4207, 17, 0x40000000


def said(name: str) -> bytes:
    """A mark that is added, and a second one, sent at once."""
    commands = [
        {
            "execute": "object-add",
            "arguments": {"qom-type": "authz-simple", "id": each, "identity": "x"},
            "id": each,
        }
        for each in (f"first-{name}", f"second-{name}")
    ]
    return "".join(map(json.dumps, commands)).encode()


def goes_after_speaking(path: Path, name: str, seconds: float) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.recv(65536)
        client.sendall(json.dumps({"execute": "qmp_capabilities"}).encode())
        client.recv(65536)
        client.sendall(said(name))
        time.sleep(seconds)  # the moment of its end is what is tested


@contextmanager
def stopped_now_and_then(pid: int, chance: random.Random) -> Iterator[None]:
    """Stop a process for some milliseconds again and again, as a machine does that is too busy."""
    over = threading.Event()

    def disturb() -> None:
        while not over.wait(chance.uniform(0, 0.004)):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0, 0.004))
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def test_commands_of_a_client_that_has_gone_are_over_once_the_next_is_answered(
    lab: Lab, each_qemu: Path
) -> None:
    chance = random.Random()
    qemu = await lab.start(binary=each_qemu)
    with stopped_now_and_then(qemu.pid, chance):
        for number in range(_GONE):
            await asyncio.to_thread(goes_after_speaking, qemu.qmp, str(number), chance.uniform(0, 0.002))
            async with RawMonitor(qemu.qmp) as monitor:

                async def there(of: RawMonitor = monitor, name: str = str(number)) -> list[str]:
                    objects = await of.execute("qom-list", path="/objects")
                    return sorted(each["name"] for each in objects if each["name"].endswith(f"-{name}"))

                await monitor.execute(
                    "object-add", {"qom-type": "authz-simple", "id": f"m{number}", "identity": "x"}
                )
                at_first = await there()
                assert at_first != [f"second-{number}"], "a later command overtook an earlier one"
                assert await there() == at_first, (
                    "a command was carried out after another client was answered"
                )


@contextmanager
def frozen(thread: int) -> Iterator[None]:
    """Freeze one thread of a process alone."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    if ptrace(_SEIZE, thread, 0, 0):
        missing(f"threads cannot be traced here: {os.strerror(ctypes.get_errno())}")
    ptrace(_INTERRUPT, thread, 0, 0)
    os.waitpid(thread, _ANY_CHILD)
    try:
        yield
    finally:
        ptrace(_DETACH, thread, 0, 0)


def migration_thread(qemu: LabQemu) -> int:
    for task in Path(f"/proc/{qemu.pid}/task").iterdir():
        if (task / "comm").read_text().strip() in ("live_migration", "mig/src/main"):
            return int(task.name)
    raise AssertionError("it does not migrate")


async def test_guest_whose_switch_was_begun_and_does_not_show_yet_is_left_alone(
    pair: MakePair, lab: Lab, each_qemu: Path
) -> None:
    made = await pair((each_qemu, each_qemu))
    guarded = Guarded(request(made))
    async with begun(made) as monitor:
        await at_switch(made.source)
        with frozen(migration_thread(made.source)):
            await monitor.execute("object-del", {"id": BEFORE_SWITCH["id"]})
            await monitor.execute("migrate-continue", {"state": "pre-switchover"})
            await monitor.__aexit__(None, None, None)
            for _ in range(3):
                assert await asyncio.to_thread(guarded.act)
                assert await made.source.migration_status() == "pre-switchover"

    async def completed() -> bool:
        return await made.source.migration_status() == "completed"

    await until(completed, what="the switch goes on")
    assert not await asyncio.to_thread(guarded.act)
    assert await lab.counting(0.1, at_least=0) == []


async def test_mark_is_removed_at_the_switch_whatever_names_it(
    pair: MakePair, lab: Lab, each_qemu: Path
) -> None:
    """QEMU refuses to remove an object that is in use, and nothing can use a mark: who names one looks it up later."""
    made = await pair((each_qemu, each_qemu))
    mark = BEFORE_SWITCH["id"]
    async with begun(made, {"tls-authz": mark}) as monitor:
        await at_switch(made.source)
        server = {"type": "unix", "data": {"path": str(lab.directory / "nbd")}}
        await monitor.execute("nbd-server-start", {"addr": server, "tls-authz": mark})
        with frozen(migration_thread(made.source)):
            await monitor.execute("object-del", {"id": mark})
            with pytest.raises(RawQmpError, match="not found"):
                await monitor.execute("object-del", {"id": mark})


#: An answer that was meant for the client before, an error likewise, and what QEMU 10.0 does at times: greet twice.
STALE: list[dict[str, Any]] = [
    {"return": {"status": "running"}, "id": "of-another"},
    {"error": {"class": "GenericError", "desc": "no"}, "id": "of-another"},
    GREETING,
]


@pytest.mark.parametrize("stale", STALE, ids=["answer", "error", "greeting"])
async def test_what_was_meant_for_the_client_before_is_passed_over(
    tmp_path: Path, stale: dict[str, Any]
) -> None:
    path = tmp_path / "qmp"
    greeting = "".join(json.dumps(each) + "\r\n" for each in (GREETING, stale)).encode()
    async with ScriptedQmp(path, greeting=greeting) as server:

        async def migrates(session: Any, message: dict[str, Any]) -> None:
            await session.reply(message, {"status": "completed"})

        server.on("query-migrate", migrates)
        given = {"socket": str(path), "token": "", "migration": "m1"}
        assert not await asyncio.to_thread(Guarded(given).act)
        monitor = Monitor(
            Address(kind="unix", path=str(path)), name="test", on_event=lambda _: None, on_break=lambda: None
        )
        await monitor.connect()
        assert await monitor.execute("query-migrate") == {"status": "completed"}
        await monitor.close()


class NoProcess:
    """A guard that is told everything and does nothing."""

    def __init__(self) -> None:
        #: Names of those that it guards.
        self.guarded: set[str] = set()

    def guard(self, name: str, request: Any) -> None:
        self.guarded.add(name)

    def near(self, name: str, near: bool) -> None: ...

    def release_soon(self, name: str) -> None:
        self.guarded.discard(name)

    async def release(self, name: str) -> bool:
        return bool(name)

    async def leave(self, name: str) -> bool:
        return bool(name)


async def test_mark_is_removed_before_the_source_is_told_to_switch(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with ScriptedQmp(path) as server:
        source = Endpoint(Address(kind="unix", path=str(path)), role="source", guard_process=NoProcess())
        await source.connect()
        await source.guard.begin("m1")
        await source.switch()
        await source.close()
    assert server.arguments("object-add")[0]["identity"] == "m1"
    told = [name for name in server.names if name in ("object-add", "object-del", "migrate-continue")]
    assert told == ["object-add", "object-del", "migrate-continue"]


async def test_guard_has_let_go_before_the_source_is_told_to_switch_though_the_mark_is_not_removed(
    tmp_path: Path,
) -> None:
    path, guard = tmp_path / "qmp", NoProcess()
    guarded_at_switch: list[set[str]] = []
    async with ScriptedQmp(path) as server:

        async def switches(session: Session, message: dict[str, Any]) -> None:
            guarded_at_switch.append(set(guard.guarded))
            await session.reply(message, {})

        server.on("qom-get", replies("m1"))
        server.on("object-del", refuses("GenericError", "object is in use, can not be deleted"))
        server.on("migrate-continue", switches)
        source = Endpoint(Address(kind="unix", path=str(path)), role="source", guard_process=guard)
        await source.connect()
        await source.guard.begin("m1")
        assert guard.guarded == {str(path)}
        await source.switch()
        await source.close()
    assert guarded_at_switch == [set()]
    assert server.names.count("migrate-continue") == 1
