"""The query of one end's state: sent once however long it takes to be answered and however many ask at the same time,
and never believed when it is old.
"""

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
        #: The query that was sent and not answered yet; when it was sent.
        self._look: tuple[asyncio.Task[_Answer], float] | None = None
        self._next_connect = 0.0

    async def ask(self, timeout: float) -> _Answer | None:
        """Return a fresh answer; ``None`` where there is none in time, which the next call goes on waiting for.

        Those who ask at the same time share one query.
        """
        if self._look is None and not await self._connected(timeout):
            return None
        if self._look is None:  # maybe somebody else has sent one while we connected
            self._look = asyncio.create_task(self._query(), name=f"look at {self._name}"), time.monotonic()
        shared = look, began = self._look
        done, _ = await asyncio.wait({look}, timeout=timeout)
        if not done:
            return None
        if self._look is shared:
            self._look = None
        if look.cancelled():
            return None  # it was closed meanwhile
        try:
            answer = look.result()
        except QemuError:
            return None
        self._on_answer()
        # An answer that was asked for before the last command, or long ago, may be older than what has happened since.
        if began <= self._monitor.commanded_at or time.monotonic() - began > 2 * timeout:
            return await self.ask(timeout)
        return answer

    async def _connected(self, timeout: float) -> bool:
        """Open the session where it has broken, not all too often; return whether there is one."""
        if self._monitor.connected:
            return True
        if time.monotonic() < self._next_connect:
            await asyncio.sleep(0.02)
            return False
        try:
            await self._connect(timeout=timeout)
        except QemuError:
            self._next_connect = time.monotonic() + 0.2
            return False
        return True

    async def _query(self) -> _Answer:
        # No time-out of its own: a stalled QEMU is asked once, and answers when it wakes, or its session breaks.
        status, migrate = await self._monitor.ask_together("query-status", "query-migrate")
        return status, migrate

    async def close(self) -> None:
        """Wait for nothing any more; its session is closed."""
        if self._look is not None:
            look, _ = self._look
            self._look = None
            look.cancel()
            await asyncio.wait({look})
            if not look.cancelled():
                look.exception()
