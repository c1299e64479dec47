"""Postcopy of a guest whose manager switches: begun by it, and recovered by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from migrator.core.model import State
from migrator.engine.migration.steering import Steering
from migrator.engine.migration.stream_recovery import StreamRecovery
from migrator.errors import CommandFailed
from migrator.ports import Qemu


class ManagedSteering(Steering):
    """Steers a copy whose switches are the manager's: it stops the guest for postcopy by itself."""

    async def _start_postcopy(self, uri: str | None = None) -> None:  # noqa: ARG002 - it was begun before
        await self._intent_log.commit(postcopy=True)
        if self._intent_log.intent.undo is not None:
            return  # that could not be put on record
        self._forecast_stall()
        try:
            await self._source.start_postcopy()
        except CommandFailed as error:
            self._intent_log.keep(postcopy=False)
            self._intent_log.undo(State.FAILED, f"libvirt refused postcopy: {error.description}")


class ManagedRecovery(StreamRecovery):
    """Recovers a postcopy by having both managers take it up over an address that carries it.

    :param resume: has them do that, and returns at once.
    """

    def __init__(self, *ends: Qemu, resume: Callable[[str], Awaitable[None]], **parts: Any) -> None:
        super().__init__(*ends, **parts)
        self._resume = resume

    async def _resume_over(self, address: str) -> None:
        await self._resume(address)
