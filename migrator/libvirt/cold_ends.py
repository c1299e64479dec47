"""Both ends of a move in which a guest of libvirt is shut down at the source and started anew at the target.

:mod:`migrator.core.migration.cold_situation` has what they show. At the target the guest is given a QEMU that does not
run yet, so that a target which cannot start it is found out while the source still may. No host starts the guest by
itself from when it is off at the source until it runs at the target: autostart is taken off first, and given last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from migrator.core.cold_start import BUTTON_SECONDS, not_shut_down
from migrator.core.migration.cold_situation import (
    ColdPhase,
    GuestIs,
    destination_view,
    is_off,
    source_view,
)
from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.errors import CommandFailed, HostError, MigratorError, QemuError, TimedOut
from migrator.libvirt import cold_guest
from migrator.libvirt.binding import load
from migrator.libvirt.cold_guest import ColdGuest, guest_is
from migrator.libvirt.end import DomainEnd
from migrator.ports import QemuEvent, Tuning
from migrator.ports.qemu import MigrationSettings

_Result = TypeVar("_Result")

#: Key of an end's identity that says that it is one of these.
KEY = "cold"
#: Seconds that a look may take on which something rests, that a small change may take, and that libvirt may take to
#: start a guest, or to end one.
_LOOK_SECONDS, _CHANGE_SECONDS, _START_SECONDS = 5.0, 15.0, 60.0
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
        await asyncio.wait({begun}, timeout=_START_SECONDS)
        if not begun.done():
            raise TimedOut(self.name, what, _START_SECONDS)
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
        return await self._call(cold_guest.asked_by, "read whether it was asked", _CHANGE_SECONDS)

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
        if is_off(await self.guest_is(_LOOK_SECONDS)):
            await self.cont()

    async def cont(self) -> None:
        """Have the guest go on here: boot again where it is off."""
        guest = await self.guest_is(_LOOK_SECONDS)
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
                timeout=_CHANGE_SECONDS,
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
        return await self.guest_is(_LOOK_SECONDS) not in (
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
            await asyncio.wait({self._starting}, timeout=_START_SECONDS)
        if self._starts:
            return False
        if self._foreign:
            return is_off(await self.guest_is(_LOOK_SECONDS))
        uuid, what = self.uuid, "remove what was made of the guest"
        try:
            begun = await self._apart(
                lambda connection: cold_guest.remove(connection, uuid, even_running=even_running), what
            )
            return await self._done(begun, what)
        except QemuError as error:
            self.problem = str(error)
            return False
