"""The guest agent: found at real QEMUs, and spoken to as its protocol is; what hangs or is another's is left alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.core.migration.guest_clock import clock_change
from migrator.qemu.guest_agent import (
    AgentChannel,
    connect,
    find_channel,
    freeze_and_thaw,
    mend_clock,
    set_clock,
)
from migrator.testing.lab import Lab
from tests.integration.test_marks import asking

_SECOND = 10**9


class ScriptedAgent:
    """Speaks as qemu-ga 7.2 does: what it was sent before a 0xFF it forgets, and one answer ends with a newline.

    :ivar behind: seconds that its clock is behind.
    :ivar hangs: commands that it does not answer.
    """

    def __init__(self) -> None:
        self.behind = 0.0
        self.hangs: set[str] = set()
        self.freezes = self.frozen = False
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What an earlier client did not read comes first.
        writer.write(b'{"return": 99}\n{"half of an ans')
        try:
            await self._serve(reader, writer)
        except OSError:
            pass  # it went
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked = json.loads(line.rpartition(b"\xff")[2])
            command, arguments = asked["execute"], asked.get("arguments", {})
            self.asked.append(command)
            if command not in self.hangs:
                mark = b"\xff" if command == "guest-sync-delimited" else b""
                writer.write(mark + json.dumps(self._answer(command, arguments)).encode() + b"\n")

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        match command:
            case "guest-sync-delimited":
                return {"return": arguments["id"]}
            case "guest-get-time":
                return {"return": int((time.time() - self.behind) * _SECOND)}
            case "guest-fsfreeze-freeze" if self.freezes:
                self.frozen = True
                return {"return": 2}
            case "guest-fsfreeze-thaw" if self.freezes:
                self.frozen = False
                return {"return": 2}
            case "guest-set-time":
                self.behind = time.time() - arguments["time"] / _SECOND
                return {"return": {}}
        return {"error": {"class": "CommandNotFound", "desc": f"Command {command} has not been found"}}


@asynccontextmanager
async def listening(path: Path, agent: ScriptedAgent) -> AsyncIterator[str]:
    server = await asyncio.start_unix_server(agent.serve, path)
    try:
        yield str(path)
    finally:
        server.close()


async def test_a_clock_that_lags_by_the_standstill_is_set(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.behind = 42.0
    async with listening(tmp_path / "ga", agent) as path, connect(path, name="ga", timeout=5) as session:
        change = await set_clock(session, stood_seconds=42.0)
        assert change.sets
        assert change.reason == "the guest's clock was 42.0 s behind after 42.0 s of standstill: set"
        assert abs(agent.behind) < 1.0
        assert not (await set_clock(session, stood_seconds=42.0)).sets


@pytest.mark.parametrize("behind", [86_400.0, -3600.0])
async def test_a_clock_that_is_off_for_another_reason_is_its_owners(tmp_path: Path, behind: float) -> None:
    agent = ScriptedAgent()
    agent.behind = behind
    async with listening(tmp_path / "ga", agent) as path, connect(path, name="ga", timeout=5) as session:
        change = await set_clock(session, stood_seconds=42.0)
    assert "left as it is" in change.reason
    assert "guest-set-time" not in agent.asked


@pytest.mark.parametrize(
    ("lag", "stood", "uncertainty", "sets"),
    [(0.5, 60, 0, False), (1.5, 60, 2, False), (60, 60, 0, True), (70, 60, 0, True), (71, 60, 0, False)],
)
def test_what_is_worth_setting(lag: float, stood: float, uncertainty: float, sets: bool) -> None:
    change = clock_change(guest=1000.0 - lag, here=1000.0, stood_seconds=stood, uncertainty=uncertainty)
    assert change.sets is sets


class TestAtAQemu:
    """Of the guest's side nothing answers: it has no agent."""

    @pytest.fixture
    def extra(self, tmp_path: Path) -> tuple[str, ...]:
        return (
            *(
                "-device",
                "virtio-serial",
                "-chardev",
                f"socket,id=ga,path={tmp_path}/ga.sock,server=on,wait=off",
            ),
            *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0,id=port"),
        )

    async def test_is_found_and_one_that_is_taken_is_left(
        self, lab: Lab, each_qemu: Path, tmp_path: Path, extra: tuple[str, ...]
    ) -> None:
        qemu = await lab.start(binary=each_qemu, extra=extra)
        here = local()
        async with asking(qemu.qmp) as monitor:
            assert await find_channel(monitor) == AgentChannel(path=f"{tmp_path}/ga.sock", taken=False)
            began = time.monotonic()
            said = await mend_clock(monitor, here, stood_seconds=60, timeout=2.0)
            assert said == "the guest's clock was not looked at: no agent answered within 2 s"
            assert time.monotonic() - began < 15
            _, writer = await asyncio.open_unix_connection(tmp_path / "ga.sock")
            async with asyncio.timeout(10):
                while not (found := await find_channel(monitor)) or not found.taken:
                    await asyncio.sleep(0.01)
            assert "another client has the channel" in await mend_clock(monitor, here, stood_seconds=60)
            writer.close()

    async def test_guest_without_one_costs_nothing(self, lab: Lab, one_version: Path) -> None:
        qemu = await lab.start(binary=one_version)
        async with asking(qemu.qmp) as monitor:
            assert await find_channel(monitor) is None
            assert await mend_clock(monitor, local(), stood_seconds=60) == ""


def local() -> Callable[[str], Any]:
    async def here(path: str) -> str:
        return path

    return here


async def test_agent_that_hangs_in_a_command_is_given_up(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.hangs = {"guest-get-time"}
    began = time.monotonic()
    async with listening(tmp_path / "ga", agent) as path:
        with pytest.raises(Exception, match=r"not answered within 1 s"):
            async with connect(path, name="ga", timeout=1.0) as session:
                await set_clock(session, stood_seconds=42.0)
    assert time.monotonic() - began < 15


class TestFlush:
    """Before a guest is saved its disks are flushed: its filesystems are never left frozen."""

    @pytest.fixture
    def agent(self) -> ScriptedAgent:
        agent = ScriptedAgent()
        agent.freezes = True
        return agent

    async def flushed(self, agent: ScriptedAgent, path: Path, *, timeout: float = 5.0) -> str:
        async with listening(path, agent) as socket:
            return await freeze_and_thaw(socket, timeout)

    async def test_filesystems_arefreeze_and_thaw_at_once(self, agent: ScriptedAgent, tmp_path: Path) -> None:
        said = await self.flushed(agent, tmp_path / "ga")
        assert said == "the guest has flushed 2 filesystems to its disks"
        assert not agent.frozen
        assert agent.asked[-2:] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]

    async def test_one_whose_answer_is_lost_is_thawed_over_another_connection(
        self, agent: ScriptedAgent, tmp_path: Path
    ) -> None:
        agent.hangs = {"guest-fsfreeze-freeze"}
        agent.frozen = True
        said = await self.flushed(agent, tmp_path / "ga", timeout=1.0)
        assert "not answered within 1 s" in said
        assert "may be frozen" not in said
        assert not agent.frozen

    async def test_one_that_cannot_be_thawed_is_said_to_be_frozen(
        self, agent: ScriptedAgent, tmp_path: Path
    ) -> None:
        agent.hangs = {"guest-fsfreeze-thaw"}
        began = time.monotonic()
        said = await self.flushed(agent, tmp_path / "ga", timeout=1.0)
        assert said.endswith("its filesystems may be frozen: run fsfreeze --unfreeze in it")
        assert time.monotonic() - began < 10

    async def test_one_that_cannot_freeze_costs_a_note(self, agent: ScriptedAgent, tmp_path: Path) -> None:
        agent.freezes = False
        said = await self.flushed(agent, tmp_path / "ga")
        assert said.startswith("the guest's disks were not flushed")
        assert "frozen" not in said

    async def test_whoever_stops_waiting_leaves_it_thawed(self, agent: ScriptedAgent, tmp_path: Path) -> None:
        agent.hangs = {"guest-fsfreeze-freeze"}
        agent.frozen = True
        task = asyncio.create_task(self.flushed(agent, tmp_path / "ga"))
        async with asyncio.timeout(10):
            while "guest-fsfreeze-freeze" not in agent.asked:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not agent.frozen
