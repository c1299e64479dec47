"""Tells controllers that there is something to look at: LISTEN and NOTIFY on a server, in the process otherwise.

A signal is a hint. What is true is in the tables, which whoever listens looks at when a signal comes, when one may have
been missed, and every now and then.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from migrator.ports import Signal
from migrator.store.backend import DATABASE_ERRORS
from migrator.store.database import Database

#: PostgreSQL's name for what all of ours goes through.
_CHANNEL = "migrator"
_NOTIFY = select(func.pg_notify(_CHANNEL, bindparam("given")))
#: Signals that a listener has not taken; more than these become one that something was missed.
_WAITING = 1000
_RECONNECT_SECONDS = 0.5
#: The connection is tried so often: a server that is frozen says nothing.
_TRY_SECONDS = 3.0


class _Listener:
    def __init__(self, channels: tuple[str, ...], poll_seconds: float) -> None:
        self._channels = channels
        self._poll_seconds = poll_seconds
        self._waiting: deque[Signal] = deque()
        self._there = asyncio.Event()

    def put(self, signal: Signal) -> None:
        if signal.channel in self._channels:
            if len(self._waiting) >= _WAITING:
                self._waiting.clear()
                self.missed()
            self._waiting.append(signal)
            self._there.set()

    def missed(self) -> None:
        """Signal every channel, as something may have been missed."""
        self._waiting.extend(Signal(channel=channel) for channel in self._channels)
        self._there.set()

    async def signals(self) -> AsyncIterator[Signal]:
        while True:
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._there.wait()
            except TimeoutError:
                self.missed()
            self._there.clear()
            while self._waiting:
                yield self._waiting.popleft()


class LocalSignals:
    """See :class:`migrator.ports.Signals`; for all who use one object."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()

    async def notify(self, channel: str, payload: str = "") -> None:
        """See :meth:`migrator.ports.Signals.notify`."""
        await asyncio.sleep(0)
        self._told(Signal(channel=channel, payload=payload))

    async def notify_with(self, connection: AsyncConnection, channel: str, payload: str = "") -> bool:
        """Tell it when the transaction on `connection` is committed, if that can be; else :meth:`notify` afterwards."""
        del connection, channel, payload
        return False

    def _told(self, signal: Signal) -> None:
        for listener in self._listeners:
            listener.put(signal)

    @asynccontextmanager
    async def listen(self, *channels: str, poll_seconds: float = 5.0) -> AsyncIterator[AsyncIterator[Signal]]:
        """See :meth:`migrator.ports.Signals.listen`."""
        listener = _Listener(channels, poll_seconds)
        self._listeners.add(listener)
        try:
            yield listener.signals()
        finally:
            self._listeners.discard(listener)


class ServerSignals(LocalSignals):
    """See :class:`migrator.ports.Signals`; for all who use one server.

    One connection, for as long as somebody listens. One that is lost is made anew, and everybody is told that something
    may have been missed.
    """

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._listening: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    async def notify(self, channel: str, payload: str = "") -> None:
        """See :meth:`migrator.ports.Signals.notify`."""

        async def write(connection: AsyncConnection) -> None:
            await self.notify_with(connection, channel, payload)

        await self._database.write_unleased(write)

    async def notify_with(self, connection: AsyncConnection, channel: str, payload: str = "") -> bool:
        """See :meth:`LocalSignals.notify_with`."""
        await connection.execute(_NOTIFY, {"given": json.dumps([channel, payload])})
        return True

    @asynccontextmanager
    async def listen(self, *channels: str, poll_seconds: float = 5.0) -> AsyncIterator[AsyncIterator[Signal]]:
        """See :meth:`migrator.ports.Signals.listen`."""
        async with super().listen(*channels, poll_seconds=poll_seconds) as signals:
            if self._listening is None:
                self._listening = asyncio.create_task(self._run(), name="signals of the journal")
            try:
                # What is told from now on is heard; a server that is away is polled meanwhile.
                async with asyncio.timeout(_TRY_SECONDS):
                    await self._connected.wait()
            except TimeoutError:
                pass
            try:
                yield signals
            finally:
                if len(self._listeners) == 1:
                    await self._stop()

    async def _stop(self) -> None:
        if (task := self._listening) is not None:
            self._listening = None
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        engine = self._database.listening_engine()
        try:
            while True:
                try:
                    await self._hear(engine)
                except DATABASE_ERRORS:
                    pass  # whoever writes or reads says so
                self._connected.clear()
                await asyncio.sleep(_RECONNECT_SECONDS)
        finally:
            await engine.dispose()

    async def _hear(self, engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.add_listener(_CHANNEL, self._heard)
            try:
                for listener in self._listeners:
                    listener.missed()
                self._connected.set()
                while True:
                    await asyncio.sleep(_TRY_SECONDS)
                    async with self._database.bounded(connection):
                        await connection.execute(text("SELECT 1"))
                        await connection.commit()
            finally:
                # Nobody is told any more: without a word to a server that may not answer.
                raw.terminate()

    def _heard(self, connection: Any, pid: int, channel: str, payload: str) -> None:  # noqa: ARG002 - asyncpg calls it so
        name, given = json.loads(payload)
        self._told(Signal(channel=name, payload=given))
