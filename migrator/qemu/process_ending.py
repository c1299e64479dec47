"""The end of a QEMU's process: asked for over its monitor, else killed, and seen dead in either case."""

from __future__ import annotations

import asyncio
import time

from migrator.errors import QemuError
from migrator.qemu.claim import DriverClaim
from migrator.qemu.events import EventBuffer
from migrator.qemu.fence_command import run_fence_command
from migrator.qemu.monitor import Monitor
from migrator.qemu.process_handle import ProcessHandle


class ProcessEnding:
    """Ends the process of one end of a migration.

    :param fence_command: kills the process where we cannot; exit 0 must mean that it is dead for certain.
    """

    def __init__(
        self,
        monitor: Monitor,
        claim: DriverClaim,
        handle: ProcessHandle,
        events: EventBuffer,
        *,
        fence_command: str | None,
    ) -> None:
        self._monitor, self._claim, self._handle, self._events = monitor, claim, handle, events
        self._fence_command = fence_command

    @property
    def possible(self) -> bool:
        """True where :meth:`fence` can do anything: the process is known, or a command kills it."""
        return self._handle.process is not None or self._fence_command is not None

    async def quit(self, *, timeout: float) -> bool:
        """See :meth:`migrator.ports.Qemu.quit`."""
        await self._claim.refuse_another()
        self._events.quitting = True
        began = time.monotonic()
        try:
            await self._monitor.execute("quit", timeout=timeout / 2)
            acknowledged = True
        except QemuError:
            # It may have gone before it answered, or may not answer: what follows finds out.
            acknowledged = False
        if self._handle.process is not None:
            if await self._handle.process.wait_dead(max(0.1, timeout - (time.monotonic() - began))):
                return True
            return await self._handle.process.kill(timeout)
        while self._monitor.connected and time.monotonic() - began < timeout:
            await asyncio.sleep(0.01)
        # It acknowledged and hung up. No proof as fencing needs it, but this process holds nothing worth keeping.
        self._handle.gone = acknowledged and not self._monitor.connected
        return self._handle.gone or await self.fence()

    async def fence(self) -> bool:
        """See :meth:`migrator.ports.Qemu.fence`."""
        await self._claim.refuse_another()
        self._events.quitting = True
        if self._handle.process is not None:
            return await self._handle.process.kill(10.0)
        if self._fence_command is None:
            return False
        self._handle.gone = await run_fence_command(self._fence_command)
        return self._handle.gone
