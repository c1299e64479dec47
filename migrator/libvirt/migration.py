"""Source of a migration that libvirt carries out; implements :class:`migrator.ports.managed.ManagedMigration`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from migrator.errors import CommandFailed, HostError, MigratorError, QemuError
from migrator.libvirt.binding import load
from migrator.libvirt.connection import LibvirtConnection
from migrator.libvirt.end import MIB, UNLIMITED_MIB, DomainEnd, mebibytes
from migrator.libvirt.job_stats import read_figures
from migrator.ports import Qemu
from migrator.ports.managed import ManagedGuestState, ManagedOptions

_SHORT_SECONDS = 15.0


class DomainDestination(DomainEnd):
    """The end of a migration at which a guest of libvirt arrives.

    :param peer_uri: by which the libvirt of the source reaches this one; empty: it does not.
    """

    def __init__(self, connection: LibvirtConnection, uuid: str, *, peer_uri: str = "") -> None:
        super().__init__(connection, uuid, role="destination")
        self.peer_uri = peer_uri


class DomainSource(DomainEnd):
    """The end of a migration that a guest of libvirt leaves."""

    def __init__(self, connection: LibvirtConnection, uuid: str) -> None:
        super().__init__(connection, uuid, role="source")
        self._moving: asyncio.Future[Any] | None = None

    def is_peer_to_peer(self, destination: Qemu) -> bool:
        """See :meth:`migrator.ports.managed.ManagedMigration.is_peer_to_peer`."""
        return bool(_there(destination).peer_uri)

    async def managed_state(self) -> ManagedGuestState:
        """See :meth:`migrator.ports.managed.ManagedMigration.managed_state`."""

        def read(domain: Any) -> ManagedGuestState:
            module = load()
            persistent = bool(domain.isPersistent())
            downtime = speed = None
            with contextlib.suppress(module.libvirtError):  # an older libvirt keeps it to itself
                downtime = domain.migrateGetMaxDowntime() / 1000
            with contextlib.suppress(module.libvirtError):
                speed = domain.migrateGetMaxSpeed()
            return ManagedGuestState(
                persistent=persistent,
                autostart=persistent and bool(domain.autostart()),
                downtime_limit_seconds=downtime,
                bandwidth_bytes_per_second=None if speed is None or speed >= UNLIMITED_MIB else speed * MIB,
            )

        return await self._call(read, "read the guest", _SHORT_SECONDS)

    async def begin_managed(
        self, destination: Qemu, options: ManagedOptions, *, resume: bool = False
    ) -> None:
        """See :meth:`migrator.ports.managed.ManagedMigration.begin_managed`."""
        there = _there(destination)
        flags, parameters = _flags(options), _parameters(options)
        if resume:
            flags |= load().VIR_MIGRATE_POSTCOPY_RESUME
        uuid, peer_uri = self.uuid, there.peer_uri
        target = None if peer_uri else await there.connection.open()

        def move(connection: Any) -> None:
            domain = connection.lookupByUUIDString(uuid)
            if peer_uri:
                domain.migrateToURI3(peer_uri, parameters, flags | load().VIR_MIGRATE_PEER2PEER)
            else:
                domain.migrate3(target, parameters, flags)

        self._moving = await self.connection.begin(move, what=f"migrate {self.address_text}")
        self._moving.add_done_callback(self._moved)

    def _moved(self, moving: asyncio.Future[Any]) -> None:
        if not moving.cancelled():
            moving.exception()  # what it was is told by :meth:`managed_ended`
        self._notify()

    @property
    def begun_here(self) -> bool:
        """See :attr:`migrator.ports.managed.ManagedMigration.begun_here`."""
        return self._moving is not None

    def managed_ended(self) -> str | None:
        """See :meth:`migrator.ports.managed.ManagedMigration.managed_ended`."""
        if self._moving is None or not self._moving.done():
            return None
        if self._moving.cancelled():
            return "this controller broke it off"
        error = self._moving.exception()
        if error is None:
            return ""
        if isinstance(error, CommandFailed):
            return f"libvirt: {error.description}"
        if isinstance(error, MigratorError):
            return str(error)
        raise error

    async def put_back_managed(self, was: ManagedGuestState) -> None:
        """See :meth:`migrator.ports.managed.ManagedMigration.put_back_managed`."""

        def put_back(domain: Any) -> None:
            if was.downtime_limit_seconds is not None:
                domain.migrateSetMaxDowntime(max(1, round(was.downtime_limit_seconds * 1000)))
            domain.migrateSetMaxSpeed(mebibytes(was.bandwidth_bytes_per_second))

        await self._call(put_back, "put limits back", _SHORT_SECONDS)

    async def settle_managed(self, destination: Qemu, was: ManagedGuestState) -> None:
        """See :meth:`migrator.ports.managed.ManagedMigration.settle_managed`."""
        if not (was.persistent and was.autostart):
            return
        there = _there(destination)

        def settle(connection: Any) -> None:
            connection.lookupByUUIDString(there.uuid).setAutostart(1)

        await there.connection.call(settle, what="set autostart", timeout=_SHORT_SECONDS)

    async def measured(self, destination: Qemu) -> Mapping[str, Any]:
        """See :meth:`migrator.ports.managed.ManagedMigration.measured`."""
        there = _there(destination)

        def read(connection: Any) -> Mapping[str, Any]:
            domain = connection.lookupByUUIDString(there.uuid)
            return read_figures(domain.jobStats(load().VIR_DOMAIN_JOB_STATS_COMPLETED))

        try:
            return await there.connection.call(read, what="read figures", timeout=_SHORT_SECONDS)
        except (HostError, QemuError):
            return {}


def _there(destination: Qemu) -> DomainDestination:
    if not isinstance(destination, DomainDestination):
        raise QemuError(destination.name, "a guest of libvirt moves to a libvirt only")
    return destination


def _flags(options: ManagedOptions) -> int:
    module = load()
    flags: int = module.VIR_MIGRATE_LIVE
    if options.persistent:
        flags |= module.VIR_MIGRATE_PERSIST_DEST | module.VIR_MIGRATE_UNDEFINE_SOURCE
    if options.postcopy:
        flags |= module.VIR_MIGRATE_POSTCOPY
    if options.tls:
        flags |= module.VIR_MIGRATE_TLS
    if options.channels > 1:
        flags |= module.VIR_MIGRATE_PARALLEL
    if options.disks:
        flags |= module.VIR_MIGRATE_NON_SHARED_DISK
    if options.unsafe:
        flags |= module.VIR_MIGRATE_UNSAFE
    return flags


def _parameters(options: ManagedOptions) -> dict[str, Any]:
    module = load()
    address = options.listen.removeprefix("tcp:").rpartition(":")[0].strip("[]")
    host = f"[{address}]" if ":" in address else address
    parameters: dict[str, Any] = {
        module.VIR_MIGRATE_PARAM_URI: f"tcp://{host}",
        module.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: address,
        module.VIR_MIGRATE_PARAM_BANDWIDTH: mebibytes(options.bandwidth_bytes_per_second),
    }
    if options.channels > 1:
        parameters[module.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = options.channels
    if options.disks:
        parameters[module.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(options.disks)
    return parameters
