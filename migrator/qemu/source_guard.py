"""One source as the guard at its host knows it; the guard's own program is :mod:`migrator.qemu.guard`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from migrator.errors import QemuError
from migrator.qemu import marks
from migrator.qemu.claim import DriverClaim
from migrator.qemu.guard import MARK
from migrator.qemu.monitor import Monitor


class GuardProcess(Protocol):
    """The guard of a host; see :class:`migrator.hosts.guard.HostGuard`."""

    def guard(self, name: str, request: Mapping[str, Any]) -> None:
        """Have something guarded from now on."""

    def release_soon(self, name: str) -> None:
        """Have it guarded no more, without waiting."""

    async def release(self, name: str) -> bool:
        """Have it guarded no more; True once nothing is done any more."""

    async def leave(self, name: str) -> bool:
        """Leave it to the guard; whether that takes it."""


class EndpointGuard:
    """Implements :class:`migrator.ports.SourceGuard` for one endpoint.

    :param process: of its host; ``None`` where there is none.
    :param socket: the path of the source's monitor at its host.
    :param rescue: of another monitor there; empty where there is none.
    """

    def __init__(
        self,
        monitor: Monitor,
        claim: DriverClaim,
        *,
        process: GuardProcess | None = None,
        socket: str = "",
        rescue: str = "",
    ) -> None:
        self._monitor, self._claim = monitor, claim
        self._process, self._socket, self._rescue = process, socket, rescue
        self._marked = False

    @property
    def sessions(self) -> int:
        return self._monitor.sessions

    def begin(self, migration: str, *, stopped: bool = False) -> None:
        if self._process is not None:
            self._process.guard(
                self._socket,
                {
                    "socket": self._socket,
                    "rescue": self._rescue,
                    "token": self._claim.token,
                    "migration": migration,
                    "stopped": stopped,
                },
            )

    def end(self) -> None:
        if self._process is not None:
            self._process.release_soon(self._socket)

    async def release(self) -> bool:
        return self._process is None or await self._process.release(self._socket)

    async def leave(self) -> bool:
        return self._process is not None and await self._process.leave(self._socket)

    async def has_ended(self, migration: str) -> bool:
        text = (await marks.read(self._monitor, MARK)).get(MARK, "{}")
        self._marked = True
        with contextlib.suppress(ValueError, AttributeError):
            return bool(json.loads(text).get("migration") == migration)
        return False

    async def forget(self) -> None:
        """Remove what :meth:`has_ended` has read: the migration is ended, and the next is another."""
        if self._marked:
            self._marked = False
            with contextlib.suppress(QemuError):
                await marks.remove(self._monitor, MARK)
