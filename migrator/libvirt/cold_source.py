"""The source of a move in which a guest of libvirt is shut down and started anew at the target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrator.core.cold_start import BUTTON_SECONDS, not_shut_down
from migrator.core.migration.cold_situation import ColdPhase, GuestIs, is_off, source_view
from migrator.core.model import View
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.errors import CommandFailed, HostError, MigratorError, QemuError
from migrator.libvirt import cold_guest
from migrator.libvirt.binding import load
from migrator.libvirt.cold_end import CHANGE_SECONDS, KEY, LOOK_SECONDS, ColdDomainEnd
from migrator.libvirt.cold_guest import ColdGuest
from migrator.libvirt.end import DomainEnd
from migrator.ports import QemuEvent
from migrator.ports.qemu import MigrationSettings


class ColdDomainSource(ColdDomainEnd):
    """The source; implements :class:`migrator.ports.ColdSourceEnd`.

    :param guest: what it is started from again, should it have to be.
    :param migration: for which its guest is shut down.
    :param seconds: within which the guest has to shut down.
    :param by_force: it is ended where it does not.
    :param left: another controller may have begun.
    """

    def __init__(
        self,
        end: DomainEnd,
        *,
        guest: ColdGuest,
        migration: str,
        seconds: float,
        by_force: bool = False,
        left: bool = False,
    ) -> None:
        super().__init__(end)
        #: What it is started from here, and what it is started from there.
        self.guest = self.guest_there = guest
        self._migration = migration
        self._seconds, self._by_force, self._left = seconds, by_force, left
        self._phase = ColdPhase.IDLE
        self._asked_at = 0.0
        self._asking: asyncio.Future[None] | None = None
        self._button = False
        self._heard: list[QemuEvent] = []
        #: Has the destination begin once the guest is off here; see :meth:`ColdDomainDestination.begin`.
        self.begin_there: Callable[[], Awaitable[None]] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        own = {
            "migration": self._migration,
            "seconds": self._seconds,
            "persistent": self.guest.persistent,
            "autostart": self.guest.autostart,
        }
        return {**super().identity, KEY: own}

    async def disk_users(self) -> DiskUsers:
        return await self.end.disk_users() if self._phase is ColdPhase.IDLE else DiskUsers()

    # --- what it shows -----------------------------------------------------------------------------------------------

    def take_events(self) -> Sequence[QemuEvent]:
        idle = self._phase is ColdPhase.IDLE
        found = [each for each in super().take_events() if each.name != "STOP" or idle]
        heard, self._heard = self._heard, []
        return [*heard, *found]

    async def observe(self, *, timeout: float = 1.0) -> View:
        guest = await self.guest_is(timeout)
        if self._left and guest is not GuestIs.SILENT:
            try:
                await self._find_phase(guest)
            except (QemuError, HostError):
                guest = GuestIs.SILENT
        if self._phase is ColdPhase.ASKED and guest is GuestIs.UNKNOWN:
            guest = GuestIs.TAKEN  # what is off is still defined: somebody has moved it away, or given it up
        if guest is GuestIs.TAKEN:
            self.problem = "somebody has saved the guest meanwhile, or moved it away"
        if self._phase is ColdPhase.ASKED and guest in (GuestIs.RUNS, GuestIs.PAUSED):
            await self._wait_on()
        return replace(source_view(self._phase, guest), error=self.problem)

    async def _find_phase(self, guest: GuestIs) -> None:
        """Find out how far another controller came.

        :raise QemuError, HostError: it cannot be asked.
        """
        if is_off(guest) or guest is GuestIs.TAKEN:
            self._phase = ColdPhase.PUT_AWAY
        elif await self._asked_by() == self._migration:
            self._phase, self._asked_at, self._button = ColdPhase.ASKED, time.monotonic(), True
        self._left = False

    async def _asked_by(self) -> str:
        return await self._call(cold_guest.asked_by, "read whether it was asked", CHANGE_SECONDS)

    async def _wait_on(self) -> None:
        """Do what is due while the guest has not shut down yet; nothing once it is not ours to shut down any more."""
        try:
            asked_by = await self._asked_by()
        except (QemuError, HostError):
            return  # it is off by now, or the next look finds its libvirt away
        if asked_by != self._migration:
            self._phase = ColdPhase.IDLE
            self.problem = (
                _asked_for(asked_by) if asked_by else "somebody has started the guest again meanwhile"
            )
            return
        waited = time.monotonic() - self._asked_at
        failed = (
            self._asking is not None and self._asking.done() and self._asking.exception() is not None
        )  # its agent does not answer, say
        try:
            if not self._button and (failed or waited > BUTTON_SECONDS):
                self._button = True
                await self._change(
                    lambda domain: domain.shutdownFlags(load().VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN),
                    "press the power button",
                )
            if waited > self._seconds and self._by_force:
                await self._change(lambda domain: domain.destroy(), "end the guest")
        except QemuError as error:
            self.problem = str(error)
        if waited > self._seconds and not self._by_force:
            self._phase = ColdPhase.LATE
            late = not_shut_down(self._seconds)
            self.problem = f"{late.message} ({late.remedy})"

    # --- what is done to it ------------------------------------------------------------------------------------------

    async def migrate(self, uri: str) -> None:  # noqa: ARG002 - nothing is sent
        guest, migration, what = self.guest, self._migration, "note that it is to shut down"
        other = await self._change(lambda domain: cold_guest.mark_asked(domain, guest, migration), what)
        if other:
            raise CommandFailed(self.name, what, "GenericError", _asked_for(other))
        self._phase, self._asked_at = ColdPhase.ASKED, time.monotonic()
        # It is away for whoever uses it from here on, not only once it is off.
        self._heard.append(QemuEvent(name="STOP", arrived=time.monotonic(), stamped=time.time(), data={}))
        uuid = self.uuid
        # By its agent where it has one, which may take a minute not to answer.
        self._asking = await self._apart(
            lambda connection: connection.lookupByUUIDString(uuid).shutdown(), "shut the guest down"
        )

    async def switch(self) -> None:
        """Have nobody start it here by itself, and then the destination begin."""
        if self.guest.autostart:
            await self._change(lambda domain: domain.setAutostart(0), "take autostart off")
        self._phase = ColdPhase.PUT_AWAY
        if self.begin_there is not None:
            await self.begin_there()

    async def cancel(self) -> None:
        """Have a guest that is off boot again; one that was asked is waited for: it may shut down any moment.

        None is ended by force any more.
        """
        self._by_force = False
        if is_off(await self.guest_is(LOOK_SECONDS)):
            await self.cont()

    async def cont(self) -> None:
        """Have the guest go on here: boot again where it is off."""
        guest = await self.guest_is(LOOK_SECONDS)
        if guest is GuestIs.SILENT:
            raise QemuError(self.name, "whether its guest is off cannot be told")
        if is_off(guest):
            own, uuid, what = self.guest, self.uuid, "start the guest again"
            try:
                begun = await self._apart(
                    lambda connection: cold_guest.start_again(connection, uuid, own), what
                )
                await self._done(begun, what)
            except QemuError as error:
                self.problem = str(error)
                raise
        elif guest is GuestIs.PAUSED:
            await super().cont()
        self._phase = ColdPhase.IDLE

    async def quit(self, *, timeout: float = 5.0) -> bool:  # noqa: ARG002 - libvirt takes its time
        """Forget the guest, which is elsewhere."""
        uuid = self.uuid
        try:
            gone = await self.connection.call(
                lambda connection: cold_guest.forget(connection, uuid),
                what="undefine",
                timeout=CHANGE_SECONDS,
            )
        except MigratorError as error:
            self.problem = str(error)
            return False
        if gone:
            self._phase = ColdPhase.FORGOTTEN
        return gone

    async def restore(self, settings: MigrationSettings) -> None:  # noqa: ARG002 - there are none
        """Have a guest that stays be as it was."""
        guest, migration = self.guest, self._migration
        await self._change(
            lambda domain: cold_guest.stay(domain, guest, migration), "put the guest back as it was"
        )
        self._phase = ColdPhase.IDLE


def _asked_for(migration: str) -> str:
    return (
        f"it was asked to shut down for migration {migration}, of another controller; where there is none: virsh "
        "metadata GUEST urn:migrator:shutdown --live --remove"
    )
