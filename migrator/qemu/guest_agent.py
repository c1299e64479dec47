"""The QEMU guest agent: where its socket is, and the few things that it is asked for: its clock, and its disks.

Its channel is a character device of QEMU's, a unix socket that takes one client. Whoever else is connected there
(libvirt, a backup) has it, and it is left to them. Everything is bounded in time: a guest may have no agent, or one
that hangs.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from migrator.core.migration.guest_clock import ClockChange, clock_change
from migrator.errors import CommandFailed, HostError, QemuError, TimedOut, Unreachable
from migrator.qemu.monitor import Monitor
from migrator.qemu.querying import query

#: Name of the port that the agent listens at inside its guest.
CHANNEL = "org.qemu.guest_agent.0"
#: Bytes of one answer.
_MOST_BYTES = 1 << 20
#: QEMU's word before the address of a socket that nobody is connected to.
_FREE = "disconnected:"
_NANOSECONDS = 10**9
#: Filesystems that may be frozen are thawed with so many connections at the most.
_THAW_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class AgentChannel:
    """The socket that leads to a guest's agent, on the host of its QEMU."""

    path: str
    #: Another client has it.
    taken: bool


async def find_channel(monitor: Monitor) -> AgentChannel | None:
    """Return where a guest's agent is asked; ``None`` where it has no such port, or no unix socket behind it.

    :raise QemuError: QEMU cannot be asked.
    """
    for place in ("/machine/peripheral", "/machine/peripheral-anon"):
        for child in await query(monitor, "qom-list", otherwise=[], path=place):
            if child["type"] != "child<virtserialport>":
                continue
            path = f"{place}/{child['name']}"
            if await query(monitor, "qom-get", path=path, property="name") != CHANNEL:
                continue
            label = await query(monitor, "qom-get", path=path, property="chardev")
            for device in await query(monitor, "query-chardev"):
                if device["label"] == label:
                    return _channel(device["filename"])
    return None


def _channel(filename: str) -> AgentChannel | None:
    free = filename.startswith(_FREE)
    kind, _, rest = filename.removeprefix(_FREE).partition(":")
    path = rest.partition(",server")[0]
    if kind != "unix" or ",server" not in rest or not path.startswith("/"):
        return None
    return AgentChannel(path=path, taken=not free)


class GuestAgent:
    """A session with a guest's agent; from :func:`connect`."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._name, self._reader, self._writer = name, reader, writer

    async def sync(self) -> None:
        """Drop what an earlier client left unread, and see that there is an agent; waits until cancelled."""
        mark = secrets.randbits(31)
        # 0xFF is no JSON: the agent's parser throws away what it had of an earlier client's.
        self._writer.write(b"\xff" + _command("guest-sync-delimited", {"id": mark}))
        while True:
            await self._writer.drain()
            await self._read_until(b"\xff")
            if (await self._answer()).get("return") == mark:
                return

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Return the answer to a command; waits until cancelled.

        :raise CommandFailed: the agent refused it.
        :raise Unreachable: the channel was closed, or what came over it is no answer.
        """
        self._writer.write(_command(command, arguments or {}))
        await self._writer.drain()
        answer = await self._answer()
        if "error" in answer:
            said = answer["error"] if isinstance(answer["error"], dict) else {}
            raise CommandFailed(
                self._name, command, str(said.get("class", "")), str(said.get("desc", ""))[:200]
            )
        return answer.get("return")

    async def send(self, command: str, arguments: dict[str, Any]) -> None:
        """Send a command that is not answered; waits until cancelled."""
        self._writer.write(_command(command, arguments))
        await self._writer.drain()

    async def _answer(self) -> dict[str, Any]:
        try:
            found = json.loads(await self._read_until(b"\n"))
        except ValueError as error:
            raise Unreachable(self._name, "its answer is no JSON") from error
        if not isinstance(found, dict):
            raise Unreachable(self._name, "its answer is none")
        return found

    async def _read_until(self, end: bytes) -> bytes:
        try:
            return await self._reader.readuntil(end)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise Unreachable(self._name, "its channel was closed, or carries what is no answer") from error


def _command(name: str, arguments: dict[str, Any]) -> bytes:
    return json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"


@asynccontextmanager
async def connect(path: str, *, name: str, timeout: float) -> AsyncIterator[GuestAgent]:
    """Talk to the agent behind a socket of this machine for the length of the block.

    :param timeout: seconds for all of it.
    :raise Unreachable: there is no agent that answers, or its channel broke.
    :raise TimedOut: it did not answer in time.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout):
            try:
                reader, writer = await asyncio.open_unix_connection(path, limit=_MOST_BYTES)
                agent = GuestAgent(name, reader, writer)
                await agent.sync()
                yield agent
            except OSError as error:
                raise Unreachable(name, f"its channel cannot be used: {error.strerror or error}") from error
    except TimeoutError as error:
        raise TimedOut(name, "the agent", timeout) from error
    finally:
        if writer is not None:
            writer.transport.abort()  # nothing that is unsent is worth waiting for


async def set_clock(agent: GuestAgent, *, stood_seconds: float) -> ClockChange:
    """Set the guest's clock where it lags because the guest stood still; what was found, and whether it was set.

    :raise QemuError: the agent refused, or its channel broke.
    """
    began = time.time()
    there = await agent.execute("guest-get-time")
    now = time.time()
    if not isinstance(there, int):
        raise Unreachable("guest agent", "it does not tell the time")
    change = clock_change(
        guest=there / _NANOSECONDS,
        here=(began + now) / 2,
        stood_seconds=stood_seconds,
        uncertainty=(now - began) / 2,
    )
    if change.sets:
        await agent.execute("guest-set-time", {"time": int(time.time() * _NANOSECONDS)})
    return change


async def mend_clock(
    monitor: Monitor, local: Callable[[str], Awaitable[str]], *, stood_seconds: float, timeout: float = 5.0
) -> str:
    """Set the clock of a guest that stood still, where it has an agent; what came of it in one line, empty without one.

    Never raises for what the guest or its agent does, and takes no longer than twice `timeout`.

    :param local: gives a path on this machine that leads to a socket of the guest's host.
    """
    try:
        async with asyncio.timeout(timeout):
            channel = await find_channel(monitor)
            if channel is None:
                return ""
            if channel.taken:
                return "the guest's clock was not looked at: another client has the channel of its agent"
            path = await local(channel.path)
        async with connect(path, name="guest agent", timeout=timeout) as agent:
            return (await set_clock(agent, stood_seconds=stood_seconds)).reason
    except TimedOut:
        return f"the guest's clock was not looked at: no agent answered within {timeout:g} s"
    except (QemuError, HostError) as error:
        return f"the guest's clock was not set: {error}"
    except TimeoutError:
        return f"the guest's clock was not looked at: its agent could not be found within {timeout:g} s"


async def flush_disks(
    monitor: Monitor, local: Callable[[str], Awaitable[str]], *, timeout: float = 5.0
) -> str:
    """Have a guest write to its disks what it holds back, where it has an agent: its filesystems are frozen, and thawed
    at once. What came of it in one line, empty without one.

    Never raises for what the guest or its agent does, and takes no longer than five times `timeout`. They are thawed
    after every failure, and where whoever waits for this is cancelled, as far as the agent answers.

    :param local: as with :func:`mend_clock`.
    """
    try:
        async with asyncio.timeout(timeout):
            channel = await find_channel(monitor)
            if channel is None:
                return ""
            if channel.taken:
                return "the guest's disks were not flushed: another client has the channel of its agent"
            path = await local(channel.path)
    except (QemuError, HostError) as error:
        return f"the guest's disks were not flushed: {error}"
    except TimeoutError:
        return f"the guest's disks were not flushed: its agent could not be found within {timeout:g} s"
    return await freeze_and_thaw(path, timeout)


async def thaw_disks(
    monitor: Monitor, local: Callable[[str], Awaitable[str]], *, timeout: float = 5.0
) -> bool:
    """Thaw a guest's filesystems that a controller may have left frozen; False: nobody says that they are thawed.

    Never raises for what the guest or its agent does, and takes no longer than four times `timeout`.

    :param local: as with :func:`mend_clock`.
    """
    try:
        async with asyncio.timeout(timeout):
            channel = await find_channel(monitor)
            if channel is None:
                return True  # it never had an agent that could have frozen them
            path = await local(channel.path)
    except (QemuError, HostError, TimeoutError):
        return False
    return await _thaw(path, timeout)


async def freeze_and_thaw(path: str, timeout: float) -> str:
    """See :func:`flush_disks`.

    :param path: of the agent's socket on this machine.
    """
    frozen = False
    try:
        async with connect(path, name="guest agent", timeout=timeout) as agent:
            frozen = True  # whatever becomes of the answer
            count = await agent.execute("guest-fsfreeze-freeze")
            await agent.execute("guest-fsfreeze-thaw")
            frozen = False
            return f"the guest has flushed {count} filesystems to its disks"
    except QemuError as error:
        said = f"the guest's disks were not flushed: {error}"
    finally:
        thawed = not frozen or await _thaw(path, timeout)
    return said if thawed else f"{said}; its filesystems may be frozen: run fsfreeze --unfreeze in it"


async def _thaw(path: str, timeout: float) -> bool:
    """Thaw filesystems that may be frozen; False where no agent says that they are thawed."""
    for _ in range(_THAW_TRIES):
        try:
            async with connect(path, name="guest agent", timeout=timeout) as agent:
                await agent.execute("guest-fsfreeze-thaw")
                return True
        except CommandFailed as error:
            # One that cannot freeze has not; it says so for both.
            return error.error_class in ("CommandNotFound", "CommandDisabled")
        except QemuError:
            continue
    return False


async def shut_down(monitor: Monitor, local: Callable[[str], Awaitable[str]], *, timeout: float = 5.0) -> str:
    """Have the agent of a guest shut it down; why it was not asked, empty where it was.

    Never raises for what the guest or its agent does, and takes no longer than twice `timeout`. That it was asked does
    not mean that the guest will obey: no agent answers this command where it does.

    :param local: as with :func:`mend_clock`.
    """
    try:
        async with asyncio.timeout(timeout):
            channel = await find_channel(monitor)
            if channel is None:
                return "the guest has no agent"
            if channel.taken:
                return "another client has the channel of its agent"
            path = await local(channel.path)
        async with connect(path, name="guest agent", timeout=timeout) as agent:
            await agent.send("guest-shutdown", {"mode": "powerdown"})
            return ""
    except TimedOut:
        return f"no agent answered within {timeout:g} s"
    except (QemuError, HostError) as error:
        return str(error)
    except TimeoutError:
        return f"its agent could not be found within {timeout:g} s"
