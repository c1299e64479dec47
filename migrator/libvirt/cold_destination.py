"""The destination of a move in which a guest of libvirt is shut down and started anew at the target."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from migrator.core.migration.cold_situation import GuestIs, destination_view, is_off
from migrator.core.model import MigrationStatus, RunState, View
from migrator.core.preflight.facts import Facts
from migrator.errors import QemuError
from migrator.libvirt import cold_guest
from migrator.libvirt.cold_end import KEY, LOOK_SECONDS, START_SECONDS, ColdDomainEnd
from migrator.libvirt.cold_guest import ColdGuest
from migrator.libvirt.end import DomainEnd


class ColdDomainDestination(ColdDomainEnd):
    """The destination.

    :param guest: what it is given; ``None``: another controller began, and it is not begun any more.
    :param like: reads the source's guest, which this one will be like; ``None`` likewise.
    :param autostart: the guest started with its host, and shall here.
    """

    def __init__(
        self,
        end: DomainEnd,
        *,
        guest: ColdGuest | None,
        like: Callable[[], Awaitable[Facts]] | None,
        autostart: bool,
    ) -> None:
        super().__init__(end)
        self._guest, self._like, self._autostart = guest, like, autostart
        #: It is to be given the guest, and was not yet.
        self._waits = guest is not None
        self._starting: asyncio.Future[bool] | None = None
        #: What is there is somebody else's.
        self._foreign = False
        #: It was told to run.
        self._let_run = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**super().identity, KEY: {"autostart": self._autostart}}

    async def facts(self) -> Facts:
        if self._like is None:
            raise QemuError(self.name, "it was begun by another controller")
        found = await self._like()
        return replace(found, run=RunState.INMIGRATE, status=MigrationStatus.NONE, incoming="defer")

    async def listen(self, uri: str) -> str:
        return uri

    async def begin(self) -> None:
        """Have it get the guest, which does not run yet. Never raises; where it cannot, it is as one that is gone."""
        guest, uuid, what = self._guest, self.uuid, "start the guest, which does not run yet"
        if guest is None or not self._waits:
            return
        try:
            self._starting = await self._apart(
                lambda connection: cold_guest.start_paused(connection, uuid, guest), what
            )
            self._waits = False
            if not await self._done(self._starting, what):
                self._foreign = True
                self.problem = "somebody has given the target's libvirt a definition of the guest meanwhile"
        except QemuError as error:
            self._waits, self.problem = False, str(error)

    @property
    def _starts(self) -> bool:
        return self._starting is not None and not self._starting.done()

    async def observe(self, *, timeout: float = 1.0) -> View:
        guest = await self.guest_is(timeout)
        if is_off(guest) and self._foreign:
            guest = GuestIs.UNKNOWN  # its definition stays
        elif guest is GuestIs.ENDED and self._starting is not None and not self._let_run:
            guest = GuestIs.OFF  # it ended before it ran: its definition is of no use
        # What libvirt has not said yes or no to may come.
        return replace(destination_view(guest, waits=self._waits or self._starts), error=self.problem)

    async def cont(self) -> None:
        self._let_run = True  # whatever comes of it
        await super().cont()

    async def was_run(self) -> bool:
        return await self.guest_is(LOOK_SECONDS) not in (
            GuestIs.SILENT,
            GuestIs.UNKNOWN,
            GuestIs.OFF,
            GuestIs.PAUSED,
        )

    async def announce(self) -> None:
        """Have the guest start with its host, as it did; it announces itself as it boots."""
        await self.settle()

    async def settle(self) -> str:
        """See :meth:`migrator.ports.ColdArrival.settle`."""
        if not self._autostart:
            return ""
        try:
            await self._change(lambda domain: domain.setAutostart(1), "set autostart")
        except QemuError as error:
            return str(error)
        return ""

    async def quit(self, *, timeout: float = 5.0) -> bool:  # noqa: ARG002 - libvirt takes its time
        return await self._remove(even_running=False)

    async def fence(self) -> bool:
        return await self._remove(even_running=True)

    async def _remove(self, *, even_running: bool) -> bool:
        """End what it was given, and forget it; False: it could not be seen to be gone."""
        if self._waits:  # what is there, if anything is, is somebody else's
            self._waits = False
            return True
        if self._starting is not None:
            await asyncio.wait({self._starting}, timeout=START_SECONDS)
        if self._starts:
            return False
        if self._foreign:
            return is_off(await self.guest_is(LOOK_SECONDS))
        uuid, what = self.uuid, "remove what was made of the guest"
        try:
            begun = await self._apart(
                lambda connection: cold_guest.remove(connection, uuid, even_running=even_running), what
            )
            return await self._done(begun, what)
        except QemuError as error:
            self.problem = str(error)
            return False
