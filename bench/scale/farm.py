"""``python -m bench.scale.farm DIRECTORY``: a process of many fake QEMUs, which are started as it is asked to.

Requests are JSON, one a line, over the socket ``DIRECTORY/farm``; each is answered with a line. Each QEMU has a
directory of its own, with its QMP sockets. What is measured here is how long whoever drives a migration takes from
the event at which it has to act until it has acted, as QEMU sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from migrator.testing.fake_node import FakeNode
from migrator.testing.fake_qemu import FakeQemu
from migrator.testing.link import Link
from migrator.testing.workload import idle, steady

#: A request, with what it holds of many guests, and an answer.
LINE_BYTES = 1 << 24
#: Python looks at young objects by itself, and never at all of them: that would be a pause which no QEMU has.
_YOUNG, _ONCE, _NEVER = 5_000, 10, 1_000_000
#: Of a stream that has long to go: at each turn of each of a thousand, the farms would take more than a core.
_REST_SECONDS = 0.5


class Reactions:
    """Seconds from the event that a migration waits at its switch until it goes on, in this process."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._waiting: dict[int, float] = {}

    def watch(self) -> None:
        """Measure from now on, whatever QEMUs this process has."""
        set_status = FakeNode.set_status

        def heard(node: FakeNode, status: str, error: str = "") -> None:
            since = self._waiting.pop(id(node), None)
            if status == "pre-switchover":
                self._waiting[id(node)] = time.monotonic()
            elif since is not None:
                self.seconds.append(time.monotonic() - since)
            set_status(node, status, error)

        setattr(FakeNode, "set_status", heard)  # noqa: B010 - it belongs to another module


class _Server:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._qemus: dict[Path, FakeQemu] = {}
        #: Of each, what it was asked for with.
        self._specs: dict[Path, dict[str, str]] = {}
        self._links: dict[str, Link] = {}
        self._reactions = Reactions()
        self._reactions.watch()

    async def answer(self, asked: Mapping[str, Any]) -> Any:
        match asked["do"]:
            case "start":
                for each in asked["qemus"]:
                    await self._start(each)
                self._sweep()
                return len(self._qemus)
            case "list":
                return [
                    {**self._specs[path], "run": qemu.run_state}
                    for path, qemu in self._qemus.items()
                    if qemu.alive
                ]
            case "reactions":
                seconds, self._reactions.seconds = self._reactions.seconds, []
                return seconds
            case other:
                raise ValueError(other)

    async def _start(self, each: Mapping[str, Any]) -> None:
        path = Path(each["directory"])
        self._specs[path] = {name: each[name] for name in ("uuid", "directory", "host")}
        link = self._links.setdefault(each["link"], Link(each["link_bytes_per_second"]))
        rate = each.get("bytes_per_second", 0.0)
        work = steady(each["working_bytes"], rate) if rate else idle()
        self._qemus[path] = await FakeQemu(
            workload=None if each["incoming"] else work,
            memory_bytes=each["memory_bytes"],
            incoming=each["incoming"],
            name=each["name"],
            uuid=UUID(each["uuid"]),
            link=link,
            rest_seconds=_REST_SECONDS,
        ).start(path)

    def _sweep(self) -> None:
        for path in [path for path, qemu in self._qemus.items() if not qemu.alive]:
            del self._qemus[path], self._specs[path]


async def _serve(directory: Path) -> None:
    gc.set_threshold(_YOUNG, _ONCE, _NEVER)
    server = _Server(directory)

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                answer = await server.answer(json.loads(line))
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    listening = await asyncio.start_unix_server(session, directory / "farm", limit=LINE_BYTES)
    print("listening", flush=True)
    async with listening:
        await asyncio.Event().wait()


class Farm:
    """A client of it; one request after the other.

    :param pid: its process, for whoever started it.
    """

    def __init__(self, directory: Path, *, pid: int = 0) -> None:
        self.directory, self.pid = directory, pid
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._numbers = itertools.count(1)

    async def ask(self, **request: Any) -> Any:
        """Ask, and return the answer."""
        async with self._turn:
            if self._streams is None:
                self._streams = await asyncio.open_unix_connection(self.directory / "farm", limit=LINE_BYTES)
            reader, writer = self._streams
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            return json.loads(await reader.readline())

    def new_directory(self, name: str) -> Path:
        """Return a directory for one QEMU that there was none before."""
        return self.directory / f"{name}.{os.getpid()}.{next(self._numbers)}"


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(_serve(Path(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
