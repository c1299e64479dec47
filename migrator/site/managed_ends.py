"""Both ends of a migration of a guest that libvirt manages: opened, and held until they are closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from migrator.addresses import bracketed
from migrator.core.inventory import Guest
from migrator.core.managed_guest import place_of, uuid_at
from migrator.core.model import Finding
from migrator.errors import HostError, Unreachable
from migrator.libvirt.connection import LibvirtConnection
from migrator.libvirt.end import DomainEnd
from migrator.libvirt.migration import DomainDestination, DomainSource
from migrator.site.connections import HostConnections
from migrator.site.libvirt_connections import LibvirtConnections


class ArrivingGuest:
    """The place of a guest at its target, where its libvirt makes a QEMU when the migration begins.

    Implements :class:`migrator.ports.IncomingDestination`.
    """

    notes: tuple[Finding, ...] = ()
    new_images: Sequence[str] = ()

    def __init__(self, end: DomainDestination, *, listen: str) -> None:
        self._end = end
        self.listen = listen
        self.socket = place_of(end.uuid)

    @property
    def qemu(self) -> DomainDestination:
        """Return the end at the target; nothing is there yet."""
        return self._end

    async def discard(self, *, images: bool = False) -> None:
        """Do nothing: what a libvirt began for a guest that did not come it removes by itself."""


class ManagedEnds:
    """Opens ends of migrations that are guests of libvirt."""

    def __init__(self, connections: HostConnections, daemons: LibvirtConnections) -> None:
        self._connections, self._daemons = connections, daemons

    async def open(self, host: str, place: str, *, role: str, known: bool = False) -> DomainEnd:
        """Return the end at a place of a host.

        :param known: a daemon that cannot be asked is opened all the same, as an end of which nothing is known; and a
            guest that is not there, as one that has left.
        :raise HostError: the daemon cannot be asked, or the configuration leaves its guests to it.
        :raise QemuError: there is no such guest.
        """
        connection = self._connection(host)
        uuid = uuid_at(place) or ""
        end: DomainEnd
        if role == "destination":
            end = DomainDestination(
                connection, uuid, peer_uri=self._connections.config(host).libvirt_peer_uri
            )
        else:
            end = DomainSource(connection, uuid)
        end.on_close = self._hold(host, place, role)
        if known:
            return end
        try:
            await connection.open()
            if role == "source" and not (await end.observe(timeout=10.0)).answers:
                raise Unreachable(end.name, "there is no such guest any more")
        except BaseException:
            await end.close()
            raise
        return end

    async def start_destination(self, guest: Guest, target: str) -> ArrivingGuest:
        """Return the place of a guest at its target; nothing is started.

        :raise HostError: its libvirt cannot be asked.
        """
        end = await self.open(target, guest.socket, role="destination")
        if not isinstance(end, DomainDestination):
            raise HostError(target, "it is no target for a guest of libvirt")
        address = self._connections.config(target).address
        return ArrivingGuest(end, listen=f"tcp:{bracketed(address)}:0")

    def _connection(self, host: str) -> LibvirtConnection:
        connection = self._daemons.connection(host)
        if connection is None:
            raise HostError(host, 'the configuration leaves its guests of libvirt alone (libvirt = "off")')
        return connection

    def _hold(self, host: str, place: str, role: str) -> Callable[[], None]:
        """Have the end count as ours until what is returned is called."""
        key = host, place
        self._connections.held[key] = role

        def let_go() -> None:
            self._connections.held.pop(key, None)

        return let_go
