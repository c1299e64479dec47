"""A QMP server that does as it is told, and only that: late, never, broken off, or nonsense.

::

    async with ScriptedQmp(path) as server:
        server.on("query-status", replies({"status": "running"}, after=0.5))
        server.on("query-migrate", hangs_up(b'{"return": {"sta'))
        ...
        assert server.names == ["query-status", "query-migrate"]

Like QEMU it carries the commands of a session out one after another, but those out of band at once; unlike QEMU it
answers ``{}`` to whatever it was told nothing about.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "scripted"},
        "capabilities": ["oob"],
    }
}


class Session:
    """One client's connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, message: object) -> None:
        """As QEMU does: one line of JSON."""
        await self.raw(json.dumps(message).encode() + b"\r\n")

    async def raw(self, data: bytes) -> None:
        """These bytes, whatever they are."""
        self._writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def reply(self, message: dict[str, Any], answer: object) -> None:
        """The answer to a command."""
        await self.send({"return": answer, "id": message.get("id")})

    async def event(self, name: str, **data: object) -> None:
        """An event, stamped with the first second of 1970."""
        await self.send({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 250_000}})

    def hang_up(self) -> None:
        """Close the connection."""
        self._writer.close()

    @property
    def closed(self) -> bool:
        return self._writer.is_closing()


Behaviour = Callable[[Session, dict[str, Any]], Awaitable[None]]


def replies(answer: object, *, after: float = 0.0) -> Behaviour:
    """Answer with this, so many seconds late."""

    async def behave(session: Session, message: dict[str, Any]) -> None:
        await asyncio.sleep(after)
        await session.reply(message, answer)

    return behave


def replies_when(ready: asyncio.Event, answer: Callable[[], object]) -> Behaviour:
    """Answer with what there is to say once it is ``ready``."""

    async def behave(session: Session, message: dict[str, Any]) -> None:
        await ready.wait()
        await session.reply(message, answer())

    return behave


def refuses(kind: str, description: str) -> Behaviour:
    """Answer with an error."""

    async def behave(session: Session, message: dict[str, Any]) -> None:
        await session.send({"error": {"class": kind, "desc": description}, "id": message.get("id")})

    return behave


def hangs_up(last: bytes = b"") -> Behaviour:
    """Say this, in the middle of whatever it is, and close."""

    async def behave(session: Session, message: dict[str, Any]) -> None:
        await session.raw(last)
        session.hang_up()

    return behave


def says(data: bytes) -> Behaviour:
    """Say this instead of an answer."""

    async def behave(session: Session, message: dict[str, Any]) -> None:
        await session.raw(data)

    return behave


async def never(session: Session, message: dict[str, Any]) -> None:
    """Do not answer, nor anything that comes after."""
    await asyncio.Event().wait()


class ScriptedQmp:
    """Serves at a unix socket, or at a free port of an address.

    :param where: a path, or an address such as ``127.0.0.1``.
    :param greeting: what a client is told when it connects, instead of the usual; ``None``: nothing.
    """

    def __init__(
        self,
        where: Path | str,
        *,
        greeting: bytes | None = json.dumps(GREETING).encode() + b"\r\n",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._where, self._greeting, self._tls = where, greeting, tls
        self._behaviours: dict[str, Behaviour] = {}
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        #: Every command, in order, from all sessions.
        self.received: list[dict[str, Any]] = []
        self.sessions: list[Session] = []

    async def __aenter__(self) -> Self:
        if isinstance(self._where, Path):
            self._server = await asyncio.start_unix_server(self._serve, self._where)
        else:
            self._server = await asyncio.start_server(self._serve, self._where, 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        """Where it listens, if not at a path."""
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def names(self) -> list[str]:
        """The commands received, the negotiation aside."""
        names = [str(message.get("execute") or message.get("exec-oob")) for message in self.received]
        return [name for name in names if name != "qmp_capabilities"]

    def arguments(self, command: str) -> list[dict[str, Any]]:
        """Those given to each execution of a command."""
        return [
            message.get("arguments", {})
            for message in self.received
            if command in (message.get("execute"), message.get("exec-oob"))
        ]

    def on(self, command: str, behaviour: Behaviour) -> None:
        """From now on, answer a command so."""
        self._behaviours[command] = behaviour

    async def event(self, name: str, **data: object) -> None:
        """Announce something to everybody connected."""
        for session in self.sessions:
            if not session.closed:
                await session.event(name, **data)

    def hang_up(self) -> None:
        """On everybody connected."""
        for session in self.sessions:
            session.hang_up()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(writer)
        self.sessions.append(session)
        waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        task = asyncio.current_task()
        assert task is not None
        worker = asyncio.create_task(self._work(session, waiting), name="scripted commands")
        self._tasks |= {task, worker}
        try:
            if self._greeting is not None:
                await session.raw(self._greeting)
            async for message in _messages(reader):
                self.received.append(message)
                if "exec-oob" in message:
                    await self._behave(session, message)
                else:
                    waiting.put_nowait(message)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client, or the test, has ended it
        finally:
            worker.cancel()
            writer.close()

    async def _work(self, session: Session, waiting: asyncio.Queue[dict[str, Any]]) -> None:
        while True:
            await self._behave(session, await waiting.get())

    async def _behave(self, session: Session, message: dict[str, Any]) -> None:
        name = str(message.get("execute") or message.get("exec-oob"))
        await self._behaviours.get(name, replies({}))(session, message)


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """JSON objects as they become whole: a client need not end them with a newline."""
    text = ""
    while data := await reader.read(1 << 16):
        text += data.decode()
        for message, rest in _decoded(text):
            text = rest
            yield message


def _decoded(text: str) -> Iterator[tuple[dict[str, Any], str]]:
    while text := text.lstrip():
        try:
            message, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return
        text = text[end:]
        yield message, text
