"""A QMP client that keeps nothing from its user, for tests that look at a QEMU from outside."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from migrator.qemu.socket_peer import peer_pid

_json = json.JSONEncoder(separators=(",", ":")).encode


class RawQmpError(Exception):
    """QEMU refused a command."""

    def __init__(self, command: str, error: dict[str, Any]) -> None:
        super().__init__(f"{command}: {error.get('desc', error)}")
        self.error = error


class WrongProcess(ConnectionError):
    """Another process answers at the path of a monitor than the one that is meant."""


class RawMonitor:
    """One QMP session: ``async with RawMonitor(path) as monitor: await monitor.execute("query-status")``.

    :param timeout: seconds that the greeting and each answer may take.
    :param pid: of the QEMU that is meant; another that listens there by now is not asked. By default whoever listens.
    """

    def __init__(self, path: Path, *, timeout: float = 20.0, pid: int | None = None) -> None:
        self._path = path
        self._timeout = timeout
        self._pid = pid
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        #: Events in the order they came, those already waited for too.
        self.events: list[dict[str, Any]] = []
        self._waited = 0
        #: Ids of this session's commands, which no other's has; short, as QEMU reads a byte at a time.
        session = secrets.token_hex(4)
        self._ids = (f"{session}-{number}" for number in itertools.count())
        self.greeting: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(self._timeout):
            # One line of query-qmp-schema has over 200 kB.
            self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=1 << 24)
            try:
                self._verify()
                while "QMP" not in self.greeting:
                    self.greeting = await self._read()
                await self.execute("qmp_capabilities")
            except BaseException:
                self._writer.close()
                raise
        return self

    def _verify(self) -> None:
        """Check who listens: a path may lead to another process than the one whose command line names it."""
        found = peer_pid(self._writer.get_extra_info("socket"))
        if self._pid is not None and found != self._pid:
            raise WrongProcess(f"pid {found} answers at {self._path}, not pid {self._pid}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> Any:
        """One command and its answer; underscores in ``more`` become hyphens.

        :raise RawQmpError: when QEMU refuses it.
        :raise TimeoutError: when it does not answer in time.
        :raise ConnectionError: when it hangs up.
        """
        given = (arguments or {}) | {name.replace("_", "-"): value for name, value in more.items()}
        [answer] = await self.execute_all([(command, given)])
        return answer

    async def execute_all(self, commands: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Several commands in one go, and their answers.

        :raise RawQmpError: when QEMU refused one (the first that it did); those behind it are not withdrawn.
        :raise TimeoutError: when it does not answer in time.
        :raise ConnectionError: when it hangs up.
        """
        messages = [
            {"execute": command, "id": next(self._ids), **({"arguments": arguments} if arguments else {})}
            for command, arguments in commands
        ]
        self._writer.writelines(_json(message).encode() + b"\n" for message in messages)
        # QEMU may give an answer that was meant for the client before to this one.
        answers: dict[str, dict[str, Any]] = {str(each["id"]): {} for each in messages}
        async with asyncio.timeout(self._timeout):
            await self._writer.drain()
            while not all(answers.values()):
                message = await self._read()
                if "event" in message:
                    self.events.append(message)
                elif message.get("id") in answers:
                    answers[message["id"]] = message
        for (command, _), answer in zip(commands, answers.values(), strict=True):
            if "error" in answer:
                raise RawQmpError(command, answer["error"])
        return [answer["return"] for answer in answers.values()]

    async def event(self, *names: str, within: float | None = None) -> dict[str, Any]:
        """The next event with one of these names (any, if none is given) that was not waited for before.

        :raise TimeoutError: when none comes.
        """
        async with asyncio.timeout(within or self._timeout):
            while True:
                while self._waited < len(self.events):
                    event = self.events[self._waited]
                    self._waited += 1
                    if not names or event["event"] in names:
                        return event
                message = await self._read()
                if "event" in message:
                    self.events.append(message)

    async def _read(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError(f"QEMU closed {self._path}")
        message: dict[str, Any] = json.loads(line)
        return message
