"""Source of a migration that libvirt carries out; implements :class:`migrator.ports.managed.ManagedMigration`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrator.addresses import bracketed, stream_host
from migrator.core.model import View
from migrator.errors import CommandFailed, HostError, MigratorError, QemuError, UsageError
from migrator.libvirt.binding import load
from migrator.libvirt.connection import DomainEvent, LibvirtConnection
from migrator.libvirt.domain_xml import with_images
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
        #: Images that have another path there, by the one at the source.
        self.moved_images: Mapping[str, str] = {}
        #: Its libvirt was heard all the time since this was set.
        self.heard = False

    def _hear(self, event: DomainEvent) -> None:
        if event.kind == "lost":
            self.heard = False
        super()._hear(event)


class DomainSource(DomainEnd):
    """The end of a migration that a guest of libvirt leaves."""

    def __init__(self, connection: LibvirtConnection, uuid: str) -> None:
        super().__init__(connection, uuid, role="source")
        self._moving: asyncio.Future[Any] | None = None
        #: Its libvirt was heard all the time since the last call of this process began.
        self.source_watched = False
        #: How long libvirt had been at work when the stream of a call of this process began; ``None`` before.
        self._prepared_seconds: float | None = None

    def _hear(self, event: DomainEvent) -> None:
        if event.kind == "lost":
            self.source_watched = False
        super()._hear(event)

    def is_peer_to_peer(self, destination: Qemu) -> bool:
        """See :meth:`migrator.ports.managed.ManagedMigration.is_peer_to_peer`."""
        return bool(_there(destination).peer_uri)

    async def observe(self, *, timeout: float = 1.0) -> View:
        """See :meth:`migrator.ports.qemu.Qemu.observe`.

        Its sample counts from when the stream began, as a QEMU's does, and not from when libvirt began to prepare it: a
        limit of the downtime is given by how far the first pass is. Where that was not seen it counts from the latter.
        """
        view = await super().observe(timeout=timeout)
        if view.sample is None:
            return view
        if self._prepared_seconds is None:
            seen = self.begun_here and view.sample.round <= 1
            self._prepared_seconds = view.sample.at_seconds if seen else 0.0
        at_seconds = max(0.0, view.sample.at_seconds - self._prepared_seconds)
        return replace(view, sample=replace(view.sample, at_seconds=at_seconds))

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
        uuid, peer_uri, moved = self.uuid, there.peer_uri, there.moved_images
        await there.connection.open()
        there.heard = self.source_watched = True
        other = None if peer_uri else there.connection

        def move(connection: Any, target: Any) -> None:
            domain = connection.lookupByUUIDString(uuid)
            if not resume:
                parameters.update(
                    _definitions(domain, moved, alone=options.disks, persistent=options.persistent)
                )
            if peer_uri:
                domain.migrateToURI3(peer_uri, parameters, flags | load().VIR_MIGRATE_PEER2PEER)
            else:
                domain.migrate3(target, parameters, flags)

        self._prepared_seconds = None
        self._moving = await self.connection.begin(move, what=f"migrate {self.address_text}", other=other)
        self._moving.add_done_callback(self._moved)

    def _moved(self, moving: asyncio.Future[Any]) -> None:
        if not moving.cancelled():
            moving.exception()  # what it was is told by :meth:`managed_ended`
        self._notify()

    @property
    def copied_disks(self) -> tuple[int, int] | None:
        """See :attr:`migrator.ports.managed.ManagedMigration.copied_disks`."""
        stats = self.last_look.stats if self.last_look is not None else {}
        if not stats.get("disk_total"):
            return None
        return int(stats.get("disk_processed", 0)), int(stats["disk_total"])

    def watched(self, destination: Qemu) -> bool:
        """See :meth:`migrator.ports.managed.ManagedMigration.watched`."""
        return _there(destination).heard

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

    async def pause_stream(self) -> None:
        flag = load().VIR_DOMAIN_ABORT_JOB_POSTCOPY
        await self._change(lambda domain: domain.abortJobFlags(flag), "break the stream off")

    async def put_back_managed(self, was: ManagedGuestState) -> None:
        """See :meth:`migrator.ports.managed.ManagedMigration.put_back_managed`."""

        def put_back(domain: Any) -> None:
            if was.downtime_limit_seconds is not None:
                domain.migrateSetMaxDowntime(max(1, round(was.downtime_limit_seconds * 1000)))
            domain.migrateSetMaxSpeed(mebibytes(was.bandwidth_bytes_per_second))

        await self._call(put_back, "put limits back", _SHORT_SECONDS)

    async def settle_managed(self, destination: Qemu, was: ManagedGuestState) -> None:
        """See :meth:`migrator.ports.managed.ManagedMigration.settle_managed`."""
        if not was.persistent:
            return
        there, uuid = _there(destination), self.uuid
        if was.autostart:
            await there.connection.call(
                lambda connection: connection.lookupByUUIDString(uuid).setAutostart(1),
                what="set autostart",
                timeout=_SHORT_SECONDS,
            )
        persists = await there.connection.call(
            lambda connection: bool(connection.lookupByUUIDString(uuid).isPersistent()),
            what="read the guest",
            timeout=_SHORT_SECONDS,
        )
        if persists:
            await self.connection.call(
                lambda connection: _undefine(connection, uuid), what="undefine", timeout=_SHORT_SECONDS
            )

    async def forget_managed(self) -> None:
        """See :meth:`migrator.ports.managed.ManagedMigration.forget_managed`."""
        await self._change(lambda domain: domain.destroy(), "end the guest")

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


def _undefine(connection: Any, uuid: str) -> None:
    """Forget a guest that does not run, and was left where it came from; on a thread."""
    module = load()
    try:
        domain = connection.lookupByUUIDString(uuid)
    except module.libvirtError as error:
        if error.get_error_code() == module.VIR_ERR_NO_DOMAIN:
            return
        raise
    if not domain.isActive() and domain.isPersistent():
        domain.undefineFlags(module.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | module.VIR_DOMAIN_UNDEFINE_KEEP_TPM)


def _there(destination: Qemu) -> DomainDestination:
    if not isinstance(destination, DomainDestination):
        raise QemuError(destination.name, "a guest of libvirt moves to a libvirt only")
    return destination


def _definitions(
    domain: Any, moved: Mapping[str, str], *, alone: Sequence[str], persistent: bool
) -> dict[str, Any]:
    """Return the definitions that a target is given where images are others there; empty where none is. On a thread.

    :param alone: disks that are copied, whatever their images are based on: that is copied with them.
    """
    if not moved and not alone:
        return {}
    module = load()
    whole = module.VIR_DOMAIN_XML_MIGRATABLE | module.VIR_DOMAIN_XML_SECURE
    wanted = {module.VIR_MIGRATE_PARAM_DEST_XML: domain.XMLDesc(whole)}
    if persistent:
        lasting = domain.XMLDesc(whole | module.VIR_DOMAIN_XML_INACTIVE)
        wanted[module.VIR_MIGRATE_PARAM_PERSIST_XML] = lasting
    try:
        changed = {name: with_images(text, moved, alone=alone) for name, text in wanted.items()}
    except ValueError as error:
        raise UsageError(str(error)) from error
    return {} if changed == wanted else changed


def _flags(options: ManagedOptions) -> int:
    module = load()
    flags: int = module.VIR_MIGRATE_LIVE if options.live else 0
    if options.persistent:
        flags |= module.VIR_MIGRATE_PERSIST_DEST | module.VIR_MIGRATE_UNDEFINE_SOURCE
    if options.postcopy:
        flags |= module.VIR_MIGRATE_POSTCOPY
    if options.tls_name is not None:
        flags |= module.VIR_MIGRATE_TLS
    if options.channels > 1:
        flags |= module.VIR_MIGRATE_PARALLEL
    if options.delta_cache_bytes:
        flags |= module.VIR_MIGRATE_COMPRESSED
    if options.disks:
        flags |= module.VIR_MIGRATE_NON_SHARED_DISK
    if options.unsafe:
        flags |= module.VIR_MIGRATE_UNSAFE
    return flags


def _parameters(options: ManagedOptions) -> dict[str, Any]:
    module = load()
    address = stream_host(options.listen)
    parameters: dict[str, Any] = {
        module.VIR_MIGRATE_PARAM_URI: f"tcp://{bracketed(address)}",
        module.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: address,
        module.VIR_MIGRATE_PARAM_BANDWIDTH: mebibytes(options.bandwidth_bytes_per_second),
    }
    if options.tls_name is not None:  # else libvirt takes the address for it
        parameters[module.VIR_MIGRATE_PARAM_TLS_DESTINATION] = options.tls_name
    if options.channels > 1:
        parameters[module.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = options.channels
    if options.delta_cache_bytes:
        parameters[module.VIR_MIGRATE_PARAM_COMPRESSION] = "xbzrle"
        parameters[module.VIR_MIGRATE_PARAM_COMPRESSION_XBZRLE_CACHE] = options.delta_cache_bytes
    if options.disks:
        parameters[module.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(options.disks)
    return parameters
