"""One source as the guard at its host knows it; the guard's own program is :mod:`migrator.qemu.guard`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from migrator.errors import QemuError
from migrator.qemu import marks
from migrator.qemu.claim import DriverClaim
from migrator.qemu.guard import BEFORE_SWITCH, MARK
from migrator.qemu.monitor import Monitor


class GuardProcess(Protocol):
    """The guard of a host; see :class:`migrator.hosts.guard.HostGuard`."""

    def guard(self, name: str, request: Mapping[str, Any]) -> None:
        """Have something guarded from now on."""

    def near(self, name: str, near: bool) -> None:
        """Have our silence noticed sooner while it may come to its switch at any moment."""

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
        #: Marks of ours that may be there, and whether the one that the guard asks for is.
        self._marks: set[str] = set()
        self._armed = False

    @property
    def sessions(self) -> int:
        return self._monitor.sessions

    async def begin(self, migration: str, *, stopped: bool = False) -> None:
        if self._process is None:
            return
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
        if not self._armed:
            self._marks.add(BEFORE_SWITCH)
            if not await marks.add(self._monitor, BEFORE_SWITCH, migration):
                await marks.change(self._monitor, BEFORE_SWITCH, migration)
            self._armed = True

    def near(self, near: bool) -> None:
        if self._process is not None:
            self._process.near(self._socket, near)

    def end(self) -> None:
        if self._process is not None:
            self._process.release_soon(self._socket)

    async def release(self) -> bool:
        return self._process is None or await self._process.release(self._socket)

    async def leave(self) -> bool:
        return self._process is not None and await self._process.leave(self._socket)

    async def before_switch(self) -> None:
        """Have it guarded no more, and remove the mark without which the guard does not cancel.

        Both are sent before anything is awaited, the guard's order first: a guard that notices the end of this
        controller by the end of its input has read that order before, whatever became of the mark.

        :raise QemuError: the mark was not removed, or that is not known.
        """
        if self._process is not None:
            self._armed = False
            self._process.release_soon(self._socket)
            await marks.remove(self._monitor, BEFORE_SWITCH)

    async def has_ended(self, migration: str) -> bool:
        text = (await marks.read(self._monitor, MARK)).get(MARK, "{}")
        self._marks.add(MARK)
        with contextlib.suppress(ValueError, AttributeError):
            return bool(json.loads(text).get("migration") == migration)
        return False

    async def forget(self) -> None:
        """Remove the marks of a migration that is ended: the next is another."""
        for each in sorted(self._marks):
            with contextlib.suppress(QemuError):
                await marks.remove(self._monitor, each)
        self._marks.clear()
        self._armed = False
