"""The hosts of the site, as the engine uses them: :class:`migrator.ports.Site` over SSH, QMP and processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrator.core.findings import errors_first, finding
from migrator.core.image_removal import ImageRemoval
from migrator.core.inventory import Guest
from migrator.core.managed_guest import LIBVIRT, uuid_at
from migrator.core.migration.drivers import Driver
from migrator.core.model import Finding
from migrator.core.policy import Policy
from migrator.core.preflight.managers import LIBVIRTS, Manager, find_manager, unit_of
from migrator.core.preflight.managers import findings as managing
from migrator.core.preflight.stream_tls import TlsChoice, TlsEnd, choose
from migrator.core.process.guest_network import GuestTaps
from migrator.core.process.listening import without
from migrator.core.saved_guest import PREFIX
from migrator.errors import HostError, QemuError
from migrator.hosts.guest_network import read_guest_taps
from migrator.hosts.listening import read_listening
from migrator.hosts.local import LocalAccess
from migrator.hosts.managers import SystemdUnits, read_processes
from migrator.hosts.memory_usage import read_memory_usage
from migrator.hosts.path_probe import PathProbe
from migrator.hosts.socket_watch import watch_sockets
from migrator.hosts.sockets import FoundSocket
from migrator.hosts.stream_tunnel import KnownRoutes, SshTunnel
from migrator.ports import HostLook, IncomingDestination, Qemu, SourceQemu, StreamPath, StreamTunnel
from migrator.qemu import naming
from migrator.qemu.endpoint import Endpoint
from migrator.site import cold_ends
from migrator.site.cold_starts import ColdStartEnds
from migrator.site.connections import DrivenElsewhere, HostConnections
from migrator.site.discovery import GuestDiscovery
from migrator.site.guest_records import with_distinct_keys
from migrator.site.image_comparison import ImageComparison
from migrator.site.launch_config import LaunchConfig
from migrator.site.libvirt_connections import LibvirtConnections
from migrator.site.managed_checks import ManagedChecks
from migrator.site.managed_cold import ManagedColdStarts
from migrator.site.managed_ends import ManagedEnds
from migrator.site.managed_guests import ManagedGuests
from migrator.site.saved_guests import SavedGuestFiles
from migrator.site.target_parts import DestinationStarter, TargetChecks

#: Seconds that a look may take in all.
_LOOK_SECONDS = 45.0


class SiteHosts:
    """Implements :class:`migrator.ports.Site`.

    :param connections: shared with `checker` and `launcher`, which open monitors of their own through it.
    """

    def __init__(
        self, connections: HostConnections, *, checker: TargetChecks, launcher: DestinationStarter
    ) -> None:
        daemons = LibvirtConnections(connections)
        self._managed = ManagedGuests(connections, daemons)
        self._managed_checks = ManagedChecks(connections, daemons)
        self._ends = ManagedEnds(connections, daemons)
        self.use(connections, checker=checker, launcher=launcher)
        self._discovery = GuestDiscovery(connections)
        self._tunnel_routes = KnownRoutes()
        self._watching: dict[str, Callable[[], None]] = {}
        connections.pending_connects.on_answer = self._answered

    def use(
        self, connections: HostConnections, *, checker: TargetChecks, launcher: DestinationStarter
    ) -> None:
        """Go over these from now on."""
        self._connections = self.connections = connections
        self.saved = SavedGuestFiles(connections)
        managed = ManagedColdStarts(connections, self._ends)
        self.cold = ColdStartEnds(connections, self._how_started, managed=managed)
        self._images = ImageComparison(connections)
        self._checker, self._launcher = checker, launcher

    def _how_started(self, guest: Guest, host: str) -> LaunchConfig:
        return self.how(guest, host)

    def how(self, guest: Guest, host: str) -> LaunchConfig:  # noqa: ARG002 - for those that are configured
        """How the guest's QEMU is started on a host."""
        return LaunchConfig()

    def stream_path(
        self,
        source: str,
        target: str,
        *,
        processes: tuple[int | None, int | None],  # noqa: ARG002 - a host of the site has one network
    ) -> StreamPath:
        """See :meth:`migrator.ports.Site.stream_path`."""
        here, there = self._connections.access(source), self._connections.access(target)
        return PathProbe(here=here, there=there, addresses=self._connections.config(target).addresses)

    def stream_tunnel(
        self,
        source: str,
        target: str,
        *,
        processes: tuple[int | None, int | None],  # noqa: ARG002 - a host of the site has one network
    ) -> StreamTunnel:
        """See :meth:`migrator.ports.Site.stream_tunnel`."""
        here, there = (self._connections.tunnel_end(name) for name in (source, target))
        return SshTunnel(here, there, known=self._tunnel_routes)

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice:
        """See :meth:`migrator.ports.Site.stream_tls`."""
        began = time.monotonic()
        choice = await self._choose_tls(source, target, policy)
        if choice.findings:  # of a moment ago: certificates may have been issued since
            choice = await self._choose_tls(source, target, policy, since=began)
        return choice

    async def _choose_tls(
        self, source: str, target: str, policy: Policy, *, since: float | None = None
    ) -> TlsChoice:
        facts = self._connections.facts
        here, there = await asyncio.gather(
            facts.recent(source, since=since), facts.recent(target, since=since)
        )
        return choose(
            policy,
            TlsEnd(host=source, certificates=here.certificates),
            TlsEnd(
                host=target,
                certificates=there.certificates,
                names=self._connections.config(target).certificate_names,
            ),
            now=time.time(),
        )

    async def spare_cpus(self, source: str, target: str) -> float | None:
        """See :meth:`migrator.ports.Site.spare_cpus`."""
        facts = self._connections.facts
        each = await asyncio.gather(facts.recent(source), facts.recent(target))
        spare = [host.cpus - host.load for host in each if host.load is not None and host.cpus]
        return min(spare) if len(spare) == len(each) else None

    def act_as(self, driver: Driver, lease_holds: Callable[[], bool]) -> None:
        """Change QEMUs under this right from now on; see :class:`~migrator.qemu.claim.DriverClaim`."""
        self._connections.act_as(driver, lease_holds)

    def mark_with(self, number: int) -> None:
        """Mark what is changed from now on with a number that is larger than all that were given."""
        if (driver := self._connections.driver) is not None:
            self._connections.driver = replace(driver, lease=number)

    def note_driven_elsewhere(
        self, migration: str, *, source: tuple[str, str], target: str, destination: str = ""
    ) -> None:
        """Leave the monitors of a migration to another controller, which drives it.

        :param source: host and path of its socket.
        :param destination: path of its socket at the target; empty while it is not known.
        """
        self._connections.driven_elsewhere[migration] = DrivenElsewhere(
            source=source, target=target, destination=destination
        )

    def forget_driven_elsewhere(self, migration: str) -> None:
        """Treat the monitors of a migration like all others again."""
        self._connections.driven_elsewhere.pop(migration, None)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def look(self, host: str) -> HostLook:
        """Facts and guests, read afresh; see :meth:`migrator.site.discovery.GuestDiscovery.guests`, and of libvirt's
        :meth:`migrator.site.managed_guests.ManagedGuests.look`.
        """
        access = self._connections.access(host)
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._connections.settle_clients(host)
                facts = await self._connections.facts.fresh(host)
                guests = await self._discovery.guests(host)
                pids = [each.pid for each in guests if each.pid is not None]
                usage = await read_memory_usage(access, pids)
                carried = await read_guest_taps(access, pids, links=facts.links)
                known = {each.pid or 0: LIBVIRTS for each in guests if each.managed_by == LIBVIRT}
                processes = await read_processes(access, [pid for pid in pids if pid not in known])
                listening = await read_listening(access, {*pids, *self._discovery.qemus(host)})
                managed = await self._managed.look(host)
        except TimeoutError:
            raise HostError(host, f"it could not be looked at within {_LOOK_SECONDS:g} s") from None
        # Those that wait for a guest listen too, and are no strangers.
        strangers = without(facts.ports, [port for ports in listening.values() for port in ports])
        facts = replace(facts, ports=strangers, libvirt_error=managed.error, shut_off_guests=managed.shut_off)
        managers = known | {pid: find_manager(process) for pid, process in processes.items()}
        shown = [
            replace(
                each,
                managed_by=managers.get(each.pid or 0, Manager()).name,
                restarts=managers.get(each.pid or 0, Manager()).restarts,
                resident_bytes=usage.get(each.pid or 0),
                listens=listening.get(each.pid or 0, ()),
                network=carried.get(each.pid or 0, GuestTaps()).state,
            )
            for each in guests
        ]
        merged = self._managed.merge(host, shown, managed)
        return HostLook(facts=facts, guests=tuple(with_distinct_keys(merged)))

    async def watch(self, host: str, changed: Callable[[], None]) -> None:
        """See :meth:`migrator.ports.Site.watch`: sockets, monitors that answer again, libvirt's events."""
        self._watching[host] = changed
        managed = asyncio.create_task(self._managed.watch(host, changed), name=f"libvirt of {host}")
        try:
            while await self._watch(host, changed):
                pass  # for other sockets from now on
        finally:
            self._watching.pop(host, None)
            managed.cancel()
            await asyncio.wait({managed})

    async def _watch(self, host: str, changed: Callable[[], None]) -> bool:
        """True: another configuration of the host is in force meanwhile."""
        watching = asyncio.create_task(
            watch_sockets(self._connections.access(host), self._connections.config(host).sockets, changed),
            name=f"watch sockets of {host}",
        )
        configured = asyncio.create_task(self._connections.configured(host), name=f"configuration of {host}")
        try:
            await asyncio.wait({watching, configured}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
                return False
            return True
        finally:
            for task in (watching, configured):
                task.cancel()
            await asyncio.wait({watching, configured})

    def _answered(self, path: str) -> None:
        """A monitor that was silent is not any more."""
        changed = self._watching.get(self._discovery.asked.pop(path, ""))
        if changed is not None:
            changed()

    # --- using -------------------------------------------------------------------------------------------------------

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> SourceQemu:
        """See :meth:`HostConnections.open`; a file that a guest is saved into or loaded from has a prefix."""
        cold = bool(identity and cold_ends.KEY in identity)
        if uuid_at(socket) is not None and not cold:
            known_end = absent or role == "destination" or bool(identity)
            return await self._ends.open(host, socket, role=role, known=known_end)
        if socket.startswith(PREFIX):
            migration = str((identity or {}).get("migration", ""))
            return await self.saved.open(host, socket, role=role, migration=migration)
        if identity and cold:
            return await self.cold.open(host, socket, role=role, identity=identity, absent=absent)
        known = self._discovery.known.get((host, socket))
        end = await self._connections.open(
            host,
            socket,
            role=role,
            identity=identity,
            absent=absent,
            likely=known.pid if known is not None else None,
        )
        if role == "source" and (host, socket) not in self._discovery.known and end.connected:
            try:
                found = FoundSocket(path=socket, pid=end.process.pid if end.process else None)
                first = naming.process_name(end.identity)
                self._discovery.opened(host, found, await end.identify(), first=first)
            except QemuError:
                pass  # what its command line says will do
        return end

    async def check(
        self, guest: Guest, source: SourceQemu, target: str, policy: Policy
    ) -> tuple[Finding, ...]:
        """See :class:`TargetChecks`; and what who manages the guest would do when it has left."""
        if uuid_at(guest.socket) is not None:
            return await self._managed_checks.check(guest, target, policy)
        return errors_first(
            [
                *managing(guest),
                *await self._guarded(guest.host),
                *await self._checker.check(guest, source, target, policy),
            ]
        )

    async def _guarded(self, host: str) -> Sequence[Finding]:
        """Return what keeps a guard from the source's host; here there is always one."""
        if isinstance(self._connections.access(host), LocalAccess):
            return ()
        why = await self._connections.guard(host).start()
        return (finding("no-guard", f"there is no guard at {host}: {why}"),) if why else ()

    async def mend_clock(self, host: str, end: Qemu, *, stood_seconds: float) -> str:
        """See :func:`migrator.qemu.guest_agent.mend_clock`."""
        if not isinstance(end, Endpoint):
            return ""
        access = self._connections.access(host)
        return await end.mend_clock(access.forward, stood_seconds=stood_seconds)

    async def suppress_restart(self, guest: Guest) -> None:
        """See :meth:`migrator.ports.Site.suppress_restart`: a unit of systemd is told."""
        if unit := unit_of(guest):
            await SystemdUnits(self._connections.access(guest.host)).suppress_restart(unit)

    async def allow_restart(self, guest: Guest) -> None:
        """See :meth:`migrator.ports.Site.allow_restart`."""
        if unit := unit_of(guest):
            await SystemdUnits(self._connections.access(guest.host)).allow_restart(unit)

    async def start_destination(
        self,
        guest: Guest,
        source: SourceQemu,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> IncomingDestination:
        """See :class:`DestinationStarter`; a guest of libvirt is given its place by libvirt itself."""
        if uuid_at(guest.socket) is not None:
            launcher = self._launcher.launcher_of(target)
            return await self._ends.start_destination(
                guest, target, source=source, migration=migration, launcher=launcher
            )
        return await self._launcher.start_destination(
            guest, source, target, migration=migration, accepted=accepted, keep_backing=keep_backing
        )

    async def guest_taps(self, host: str, pid: int, *, taps: Sequence[str] = ()) -> GuestTaps:
        """See :func:`read_guest_taps`."""
        return (await read_guest_taps(self._connections.access(host), [pid], learned_on=taps))[pid]

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        """See :class:`DestinationStarter`."""
        await self._launcher.abandon(host, migration=migration, images=images)

    async def keep_images(self, host: str, *, migration: str) -> None:
        """See :meth:`migrator.ports.Site.keep_images`."""
        await self._launcher.keep_images(host, migration=migration)

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        """See :meth:`migrator.ports.Site.put_aside`."""
        return await self._launcher.put_aside(guest, paths, migration=migration)

    async def compare_images(self, removal: ImageRemoval) -> ImageRemoval:
        """See :meth:`migrator.ports.Site.compare_images`."""
        return await self._images.compare(removal)

    async def remove_images(self, removal: ImageRemoval) -> Mapping[str, str]:
        """See :meth:`migrator.ports.Site.remove_images`."""
        return await self._images.remove(removal)

    async def settle(self, guest: Guest) -> Sequence[str]:
        """See :class:`DestinationStarter`; of a guest of libvirt there is nothing to settle, nor to clear."""
        return [] if uuid_at(guest.socket) is not None else await self._launcher.settle(guest)

    async def clear(self, guest: Guest) -> None:
        """See :class:`DestinationStarter`."""
        if uuid_at(guest.socket) is None:
            await self._launcher.clear(guest)

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> Sequence[str]:
        """See :class:`DestinationStarter`."""
        return await self._launcher.sweep(host, under_way=under_way)

    async def close(self) -> None:
        """Let go of every host."""
        await self._managed.daemons.close()
        await self._connections.close()
