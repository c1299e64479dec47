"""The query of one end's state: sent once however long it takes to be answered, and never believed when it is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from migrator.errors import QemuError
from migrator.qemu.monitor import Monitor

#: Run state and migration status, as QEMU answers.
_Answer = tuple[dict[str, Any], dict[str, Any]]


class Connect(Protocol):
    """Opens the session; raises :class:`~migrator.errors.QemuError`."""

    def __call__(self, *, timeout: float) -> Awaitable[None]: ...


class StatusQuery:
    """Asks one QEMU for its run state and the status of its migration.

    :param connect: opens the session anew where it has broken.
    :param on_answer: called with every answer.
    """

    def __init__(
        self, monitor: Monitor, *, name: str, connect: Connect, on_answer: Callable[[], None]
    ) -> None:
        self._monitor, self._name = monitor, name
        self._connect, self._on_answer = connect, on_answer
        self._look: asyncio.Task[_Answer] | None = None
        self._look_began = 0.0
        self._next_connect = 0.0

    async def ask(self, timeout: float) -> _Answer | None:
        """Return a fresh answer; ``None`` where there is none in time, which the next call goes on waiting for."""
        if self._look is None:
            if not self._monitor.connected:
                now = time.monotonic()
                if now < self._next_connect:
                    await asyncio.sleep(0.02)
                    return None
                try:
                    await self._connect(timeout=timeout)
                except QemuError:
                    self._next_connect = time.monotonic() + 0.2
                    return None
            self._look_began = time.monotonic()
            self._look = asyncio.create_task(self._query(), name=f"look at {self._name}")
        done, _ = await asyncio.wait({self._look}, timeout=timeout)
        if not done:
            return None
        look, self._look = self._look, None
        try:
            answer = look.result()
        except QemuError:
            return None
        self._on_answer()
        # An answer that was asked for before the last command, or long ago, may be older than what has happened since.
        stale = self._look_began <= self._monitor.commanded_at
        if stale or time.monotonic() - self._look_began > 2 * timeout:
            return await self.ask(timeout)
        return answer

    async def _query(self) -> _Answer:
        # No time-out of its own: a stalled QEMU is asked once, and answers when it wakes, or its session breaks.
        status, migrate = await self._monitor.ask_together("query-status", "query-migrate")
        return status, migrate

    async def close(self) -> None:
        """Wait for nothing any more; its session is closed."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})
            if not self._look.cancelled():
                self._look.exception()
            self._look = None
