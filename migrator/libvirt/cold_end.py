"""An end of a move in which a guest of libvirt is shut down at the source and started anew at the target.

:mod:`migrator.core.migration.cold_situation` has what they show. At the target the guest is given a QEMU that does not
run yet, so that a target which cannot start it is found out while the source still may. No host starts the guest by
itself from when it is off at the source until it runs at the target: autostart is taken off first, and given last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from migrator.core.migration.cold_situation import GuestIs
from migrator.core.model import ProcessState
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.errors import HostError, QemuError, TimedOut
from migrator.libvirt.cold_guest import guest_is
from migrator.libvirt.end import DomainEnd
from migrator.ports import Tuning

_Result = TypeVar("_Result")

#: Key of an end's identity that says that it is one of these.
KEY = "cold"
#: Seconds that a look may take on which something rests, that a small change may take, and that libvirt may take to
#: start a guest, or to end one.
LOOK_SECONDS, CHANGE_SECONDS, START_SECONDS = 5.0, 15.0, 60.0
#: What a stream would take, and there is none.
_ABILITIES = frozenset({"events", "return-path", "pause-before-switchover"})


class ColdDomainEnd(DomainEnd):
    """A guest of libvirt, which has no QEMU for a while, as an end of a migration without a stream.

    :ivar end: what was opened; closed with this.
    """

    def __init__(self, end: DomainEnd) -> None:
        super().__init__(end.connection, end.uuid, role=end.role)
        self.end = end
        #: What went wrong, in words.
        self.problem = ""

    async def guest_is(self, timeout: float) -> GuestIs:
        """Return what there is of the guest."""
        view = await super().observe(timeout=timeout)
        silent = view.process is ProcessState.UNKNOWN
        return GuestIs.SILENT if silent else guest_is(self.last_look)

    async def _apart(self, function: Callable[[Any], _Result], what: str) -> asyncio.Future[_Result]:
        """Begin what may take long, over a connection of its own: nothing else waits for it.

        :raise QemuError: it could not be begun.
        """
        try:
            begun = await self.connection.begin(
                lambda connection, _: function(connection), what=what, other=None
            )
        except HostError as error:
            raise QemuError(self.name, str(error)) from error
        begun.add_done_callback(self._apart_ended)
        return begun

    def _apart_ended(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled():
            done.exception()  # which whoever began it reads
        self._notify()

    async def _done(self, begun: asyncio.Future[_Result], what: str) -> _Result:
        """Return what came of it.

        :raise QemuError: it failed, or goes on still.
        """
        await asyncio.wait({begun}, timeout=START_SECONDS)
        if not begun.done():
            raise TimedOut(self.name, what, START_SECONDS)
        try:
            return begun.result()
        except HostError as error:
            raise QemuError(self.name, str(error)) from error

    async def facts(self) -> Facts:
        found = await super().facts()
        return replace(found, capabilities=found.capabilities | _ABILITIES)

    async def tune(self, tuning: Tuning) -> None:
        """Do nothing: there is no stream."""

    async def disk_users(self) -> DiskUsers:
        return DiskUsers()

    def stderr_tail(self) -> str:
        return self.problem

    async def close(self) -> None:
        await super().close()
        await self.end.close()
