"""The guard of the source of ``migrator direct``: begun only where the copy takes long enough to be worth it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from migrator.cli.over_ssh import OverSsh
from migrator.qemu.address import Address

if TYPE_CHECKING:
    from migrator.hosts.guard import HostGuard

#: Seconds that a guest of this machine is copied before its guard is begun: most are over before, and another python
#: costs as much CPU time as moving one of them does.
_DELAY_SECONDS = 1.0


class DirectGuard:
    """The guard of one source at its host; implements :class:`migrator.qemu.source_guard.GuardProcess`.

    One on this machine is begun a second after it was asked for, so that a guest which is moved at once does not wait
    for it, and none is begun for one that is over by then.
    """

    def __init__(self, source: Address, over_ssh: OverSsh) -> None:
        self._source, self._over_ssh = source, over_ssh
        self._requests: dict[str, Mapping[str, Any]] = {}
        self._near: set[str] = set()
        self._guard: HostGuard | None = None
        self._due: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, source: Address, over_ssh: OverSsh) -> DirectGuard | None:
        """Return the guard of a source; ``None`` where its host cannot be reached: its address is of TCP alone."""
        return cls(source, over_ssh) if source.kind in ("unix", "ssh") else None

    def guard(self, name: str, request: Mapping[str, Any]) -> None:
        """Have something guarded from now on, or as soon as there is a guard."""
        self._requests[name] = request
        if self._guard is not None:
            self._guard.guard(name, request)
        elif self._due is None:
            delay = _DELAY_SECONDS if self._source.kind == "unix" else 0.0
            self._due = asyncio.get_running_loop().call_later(delay, self._begin)

    def _begin(self) -> None:
        if not self._requests:
            self._due = None  # it is over: the next that is asked for is another
            return
        # What few migrations need is not imported by all of them.
        from migrator.hosts.guard import HostGuard  # noqa: PLC0415
        from migrator.hosts.local import LocalAccess  # noqa: PLC0415
        from migrator.qemu import guard as program  # noqa: PLC0415

        here = self._source.kind == "unix"
        host = LocalAccess("this machine") if here else self._over_ssh.access(self._source)
        self._guard = HostGuard.of(host, program=program.PROGRAM, module=program)
        for name, request in self._requests.items():
            self._guard.guard(name, request)
            self._guard.near(name, name in self._near)

    def near(self, name: str, near: bool) -> None:
        """See :meth:`migrator.hosts.guard.HostGuard.near`."""
        (self._near.add if near else self._near.discard)(name)
        if self._guard is not None:
            self._guard.near(name, near)

    def release_soon(self, name: str) -> None:
        """See :meth:`migrator.hosts.guard.HostGuard.release_soon`."""
        self._requests.pop(name, None)
        if self._guard is not None:
            self._guard.release_soon(name)

    async def release(self, name: str) -> bool:
        """See :meth:`migrator.hosts.guard.HostGuard.release`."""
        if self._guard is not None and not await self._guard.release(name):
            return False
        self._requests.pop(name, None)
        return True

    async def leave(self, name: str) -> bool:
        """See :meth:`migrator.hosts.guard.HostGuard.leave`."""
        return self._guard is not None and await self._guard.leave(name)

    async def close(self) -> None:
        """Let it go; it goes on with what it was left."""
        if self._due is not None:
            self._due.cancel()
        if self._guard is not None:
            await self._guard.close()
