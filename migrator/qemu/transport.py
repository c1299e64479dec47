"""The transport to a QMP monitor on another host, as :class:`~migrator.qemu.endpoint.Endpoint` wants it."""

from __future__ import annotations

from typing import Protocol

from migrator.ports import GuestProcess


class MonitorTransport(Protocol):
    """One monitor of another host. Every call raises :class:`~migrator.errors.HostError` when it cannot be asked."""

    async def socket_path(self) -> str:
        """Return a path on this machine that leads to the monitor."""

    async def listener_pid(self) -> int | None:
        """Return the pid of the process that listens there now; ``None`` where that cannot be told."""

    async def find_process(self, pid: int) -> GuestProcess | None:
        """Return a handle on a process of that host; ``None`` when there is none of that pid."""
