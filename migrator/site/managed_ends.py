"""Both ends of a migration of a guest that libvirt manages: opened, and held until they are closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from migrator.addresses import bracketed
from migrator.core.inventory import Guest
from migrator.core.managed_guest import place_of, uuid_at
from migrator.core.model import Finding
from migrator.errors import HostError, Unreachable
from migrator.libvirt.connection import LibvirtConnection
from migrator.libvirt.end import DomainEnd
from migrator.libvirt.migration import DomainDestination, DomainSource
from migrator.ports import SourceQemu
from migrator.site.host_directory import ManagedHosts
from migrator.site.libvirt_connections import LibvirtConnections

if TYPE_CHECKING:
    from migrator.hosts.launch import Launcher  # for who makes images
    from migrator.hosts.run_directories import RunDirectory  # for who makes images

#: Time-out of a small command, in seconds.
_SHORT = 10.0


class ArrivingGuest:
    """The place of a guest at its target, where its libvirt makes a QEMU when the migration begins.

    Implements :class:`migrator.ports.IncomingDestination`.

    :param run_dir: where it is noted what was made for its disks; ``None``: nothing was.
    :param new_images: disks whose images were made for it.
    """

    notes: tuple[Finding, ...] = ()

    def __init__(
        self,
        end: DomainDestination,
        *,
        listen: str,
        launcher: Launcher | None = None,
        run_dir: RunDirectory | None = None,
        new_images: Sequence[str] = (),
    ) -> None:
        self._end = end
        self.listen = listen
        self._launcher, self._run_dir, self.new_images = launcher, run_dir, new_images
        self.socket = place_of(end.uuid)

    @property
    def qemu(self) -> DomainDestination:
        """Return the end at the target; nothing is there yet."""
        return self._end

    async def discard(self, *, images: bool = False) -> None:
        """Remove what was made for its disks; what libvirt began for a guest that did not come it removes by itself.

        :param images: see :meth:`migrator.ports.IncomingDestination.discard`.
        :raise HostError: the host cannot be asked.
        """
        if self._launcher is not None and self._run_dir is not None:
            await self._launcher.discard(self._run_dir, images=images)


class ManagedEnds:
    """Opens ends of migrations that are guests of libvirt."""

    def __init__(self, connections: ManagedHosts, daemons: LibvirtConnections) -> None:
        self._connections, self._daemons = connections, daemons

    async def open(self, host: str, place: str, *, role: str, known: bool = False) -> DomainEnd:
        """Return the end at a place of a host.

        :param known: a daemon that cannot be asked is opened all the same, as an end of which nothing is known; and a
            guest that is not there, as one that has left.
        :raise HostError: the daemon cannot be asked, or the configuration leaves its guests to it.
        :raise QemuError: there is no such guest.
        """
        connection = self.connection(host)
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

    async def start_destination(
        self,
        guest: Guest,
        target: str,
        *,
        source: SourceQemu | None = None,
        migration: str = "",
        launcher: Launcher | None = None,
    ) -> ArrivingGuest:
        """Return the place of a guest at its target; nothing is started, and images that are not there are made.

        :param launcher: keeps the notes of what is made, at the target; without it and `source` nothing is.
        :raise HostError: its libvirt cannot be asked, or an image cannot be made; nothing is left.
        :raise QemuError: the source cannot be asked.
        """
        end = await self.open(target, guest.socket, role="destination")
        if not isinstance(end, DomainDestination):
            raise HostError(target, "it is no target for a guest of libvirt")
        listen = f"tcp:{bracketed(self._connections.config(target).address)}:0"
        if source is None or launcher is None:
            return ArrivingGuest(end, listen=listen)
        from migrator.hosts.run_directories import finish_cleanup  # noqa: PLC0415 - not where no image can be made
        from migrator.site.target_images import TargetImages  # noqa: PLC0415 - likewise

        images = TargetImages(self._connections, guest, source, target)
        try:
            end.moved_images = {path: image.path for path, image in (await images.moved()).items()}
            if not await self._lacks(target, await images.at_target()):
                return ArrivingGuest(end, listen=listen)
            run_dir = await launcher.choose_run_directory(migration)
            missing = await launcher.make(run_dir, migration, images=await images.at_target())
            try:
                new = await images.make(
                    launcher, run_dir, missing, migration=migration, template=None, keep_backing=False
                )
            except BaseException:  # cancelled too: nothing is left at the host; raised again
                await finish_cleanup(launcher.discard(run_dir, images=True), name=f"remove {run_dir.path}")
                raise
        except BaseException:  # cancelled too: it is let go of; raised again
            await end.close()
            raise
        return ArrivingGuest(end, listen=listen, launcher=launcher, run_dir=run_dir, new_images=new)

    async def _lacks(self, host: str, paths: Sequence[str]) -> bool:
        """Return whether there is nothing at one of the paths."""
        if not paths:
            return False
        program = 'for p; do [ -e "$p" ] || exit 1; done'
        asked = await self._connections.access(host).run(["sh", "-c", program, "sh", *paths], timeout=_SHORT)
        return bool(asked.status)

    def connection(self, host: str) -> LibvirtConnection:
        """Return the connection to the libvirt of a host; it may not be open.

        :raise HostError: the configuration leaves the host's guests to libvirt.
        """
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
