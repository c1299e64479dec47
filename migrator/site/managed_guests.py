"""The guests that libvirt has on a host, beside those that are found by their processes: each is shown once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from migrator.core.inventory import Guest
from migrator.core.managed_guest import LIBVIRT, place_of
from migrator.errors import HostError, MigratorError, QemuError
from migrator.libvirt import binding
from migrator.libvirt.connection import LibvirtConnection
from migrator.libvirt.domains import DomainInventory, FoundDomain
from migrator.site.connections import HostConnections
from migrator.site.libvirt_connections import LibvirtConnections

_NO_MOVES = "libvirt manages it: move it with virsh migrate"
_OFF = f"{_NO_MOVES}; of this host the configuration leaves them to it"
_ANOTHERS = f"{_NO_MOVES}; the libvirt that migrator asks at that host does not have it"
#: Seconds between two tries to reach a daemon that was there, at first and at most.
_AGAIN_SECONDS, _AGAIN_MOST_SECONDS = 2.0, 60.0


@dataclass(frozen=True, kw_only=True)
class ManagedLook:
    """Guests that the libvirt of a host has shown, or why it has shown none."""

    guests: tuple[Guest, ...] = ()
    #: It could be asked.
    answers: bool = False
    #: Why not, in one line; empty where it could, or there is none.
    error: str = ""
    #: Guests that it has shut off.
    shut_off: int = 0
    #: What is said of a guest that libvirt manages and does not show.
    why_left: str = _OFF


class ManagedGuests:
    """Looks at the libvirt daemons of hosts; remembers the guests of each as they last could be asked."""

    def __init__(self, connections: HostConnections, daemons: LibvirtConnections) -> None:
        self._connections = connections
        self.daemons = daemons
        self._inventories: dict[str, tuple[LibvirtConnection, DomainInventory]] = {}
        self._known: dict[str, tuple[Guest, ...]] = {}
        self._watching: dict[str, Callable[[], None]] = {}

    async def look(self, host: str) -> ManagedLook:
        """Return the guests that the libvirt of a host has; one that is away harms nothing.

        :raise HostError: the host itself cannot be asked.
        """
        connection = self.daemons.connection(host)
        if connection is None:
            return ManagedLook()
        if not connection.connected and self.daemons.is_optional(host) and not self._known.get(host):
            if not await self.daemons.sockets(host):
                self._known.pop(host, None)
                return ManagedLook(why_left=f"{_NO_MOVES}; its daemon does not listen where it usually does")
            if not binding.is_installed():
                return ManagedLook(why_left=f"{_NO_MOVES}; {binding.MISSING}")
        inventory = self._inventory(host, connection)
        try:
            found = await inventory.look()
        except (HostError, QemuError) as error:
            text = str(error).removeprefix(f"host {host}: ")
            away = [
                replace(guest, lost_contact=True, obstacle=text, obstacle_code=LIBVIRT)
                for guest in self._known.get(host, ())
            ]
            return ManagedLook(
                guests=tuple(away),
                error=text,
                shut_off=inventory.shut_off,
                why_left=f"libvirt manages it, and {text}",
            )
        guests = tuple(self._guest(host, each) for each in found)
        self._known[host] = guests
        return ManagedLook(guests=guests, answers=True, shut_off=inventory.shut_off, why_left=_ANOTHERS)

    def _inventory(self, host: str, connection: LibvirtConnection) -> DomainInventory:
        kept = self._inventories.get(host)
        if kept is not None and kept[0] is connection:
            return kept[1]
        if kept is not None:
            kept[1].close()
        made = DomainInventory(connection, changed=lambda: self._tell(host))
        self._inventories[host] = connection, made
        return made

    def _tell(self, host: str) -> None:
        if (changed := self._watching.get(host)) is not None:
            changed()

    def _guest(self, host: str, found: FoundDomain) -> Guest:
        xml = found.xml
        return Guest(
            key=xml.uuid,
            host=host,
            uuid=xml.uuid,
            name=xml.name,
            socket=place_of(xml.uuid),
            memory_bytes=xml.memory_bytes,
            vcpus=xml.vcpus,
            run=found.run,
            managed_by=LIBVIRT,
            domain=found.domain,
        )

    async def watch(self, host: str, changed: Callable[[], None]) -> None:
        """Call `changed` when libvirt announces something of guests there; runs until cancelled.

        A daemon that was there and is away is tried again, less and less often.
        """
        self._watching[host] = changed
        pause = _AGAIN_SECONDS
        try:
            while True:
                await asyncio.sleep(pause)
                connection = self.daemons.connection(host)
                if connection is None or connection.connected or host not in self._known:
                    pause = _AGAIN_SECONDS
                    continue
                try:
                    await connection.open()  # which is an event
                except MigratorError:
                    pause = min(2 * pause, _AGAIN_MOST_SECONDS)
        finally:
            self._watching.pop(host, None)

    def merge(self, host: str, guests: Sequence[Guest], look: ManagedLook) -> list[Guest]:
        """Return the guests of a host, those of libvirt among them, each once.

        :param guests: those that were found by their processes, with who manages each.
        :param look: at the libvirt of that host, no older.
        """
        processes = {guest.uuid: guest for guest in guests if guest.managed_by == LIBVIRT and guest.uuid}
        shown = {guest.uuid for guest in look.guests}
        merged = [_left(guest, look) for guest in guests if not _same(guest, shown)]
        for guest in look.guests:
            role = self._connections.role(host, guest.socket)
            if role == "destination":
                continue
            process = processes.get(guest.uuid)
            gone = process is None and not look.answers and self._connections.config(host).processes
            if not gone:  # whoever is away cannot tell that it has ended; its process does
                merged.append(_with_process(guest, process))
        return merged


def _same(guest: Guest, shown: set[str]) -> bool:
    return guest.managed_by == LIBVIRT and guest.uuid in shown


def _left(guest: Guest, look: ManagedLook) -> Guest:
    """Return a guest that its process shows to be libvirt's, and libvirt does not, with that said."""
    if guest.managed_by != LIBVIRT:
        return guest
    return replace(guest, obstacle=look.why_left, obstacle_code=LIBVIRT)


def _with_process(guest: Guest, process: Guest | None) -> Guest:
    if process is None:
        return guest
    return replace(
        guest,
        pid=process.pid,
        process=process.process,
        resident_bytes=process.resident_bytes,
        listens=process.listens,
        network=process.network,
        restarts=False,
    )
