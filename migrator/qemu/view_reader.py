"""One look at an end of a migration: its process, and what its QEMU answers about the guest and the migration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.qemu.events import EventBuffer
from migrator.qemu.monitor import Monitor
from migrator.qemu.process_handle import ProcessHandle
from migrator.qemu.samples import read_sample, read_stall
from migrator.qemu.status_query import StatusQuery


class ViewReader:
    """Reads views of one end.

    :param can_fence: whether its process could be ended by us.
    """

    def __init__(
        self,
        monitor: Monitor,
        handle: ProcessHandle,
        events: EventBuffer,
        status: StatusQuery,
        *,
        can_fence: Callable[[], bool],
    ) -> None:
        self._monitor, self._handle, self._events, self._status = monitor, handle, events, status
        self._can_fence = can_fence

    async def read(self, timeout: float) -> View:
        """Return what it shows now; one that does not answer in `timeout` seconds shows its process alone."""
        process = self._handle.state
        if process is ProcessState.DEAD:
            await self._hear_last(timeout)
            return self._view(process)
        answer = await self._status.ask(timeout)
        process = self._handle.state
        if process is ProcessState.DEAD:
            await self._hear_last(timeout)
            return self._view(process)
        if answer is None:
            return self._view(process)
        status, migrate = answer
        return self._view(
            process,
            answers=True,
            run=RunState(status.get("status", "other")),
            status=MigrationStatus(migrate.get("status", "none")),
            error=str(migrate.get("error-desc", "")),
            sample=read_sample(migrate),
            **read_stall(migrate),
        )

    async def _hear_last(self, timeout: float) -> None:
        """Read what the process said last, which tells whether the guest ended by itself, if it was not read yet."""
        if not self._events.all:
            # It is waited for once: where the session leads over another host it may stay.
            self._events.all = True
            await self._monitor.read_to_end(timeout=timeout)

    def _view(self, process: ProcessState, **rest: Any) -> View:
        return View(process=process, ended=self._events.ended, can_fence=self._can_fence(), **rest)
