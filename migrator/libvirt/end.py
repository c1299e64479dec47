"""One end of a migration that is a guest of libvirt: no monitor of its QEMU is ours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from migrator.core.managed_guest import place_of
from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import BlockJob, DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.errors import CommandFailed, HostError, QemuError, TimedOut
from migrator.libvirt.binding import load
from migrator.libvirt.connection import DomainEvent, LibvirtConnection
from migrator.libvirt.domain_disks import read_disks
from migrator.libvirt.domain_view import DomainLook, destination_view, look_at, source_view
from migrator.libvirt.domain_xml import DomainXml, parse_domain
from migrator.ports import QemuEvent, Tuning
from migrator.ports.unmonitored_end import UnmonitoredEnd

_Result = TypeVar("_Result")

MIB = 1 << 20
#: More than any link carries, in libvirt's MiB per second: what it begins with by itself.
UNLIMITED_MIB = (2**63 - 1) // MIB
#: Seconds that a change may take.
_CHANGE_SECONDS = 15.0
#: What both ends offer as libvirt has it.
_CAPABILITIES = frozenset({"postcopy-ram", "multifd", "xbzrle"})


class DomainEnd(UnmonitoredEnd):
    """An end of a migration that is a guest of libvirt.

    :param connection: to the libvirt of its host; shared, and left open.
    :param role: ``source`` or ``destination``.
    """

    shares_clock = False  # libvirt's events have no time
    least_round_trip_seconds = 0.0  # the switch is libvirt's: it waits for nothing of ours

    def __init__(self, connection: LibvirtConnection, uuid: str, *, role: str) -> None:
        super().__init__()
        self.connection, self.uuid, self.role = connection, uuid, role
        self.name = f"{role} {place_of(uuid)} on {connection.host}"
        self.address_text = place_of(uuid)
        self.round_trip_seconds = 0.0
        self._notify: Callable[[], None] = lambda: None
        #: Called when it is closed.
        self.on_close: Callable[[], None] = lambda: None
        self._events: list[QemuEvent] = []
        self._ended = False
        self._looking: asyncio.Task[DomainLook | None] | None = None
        #: The last that was answered.
        self.last_look: DomainLook | None = None
        self._unsubscribe = connection.subscribe(self._hear)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"domain": self.uuid}

    async def _call(self, function: Callable[[Any], _Result], what: str, timeout: float) -> _Result:
        """Return what `function` returns, called with the guest; on a thread.

        :raise QemuError: libvirt refused it, or did not answer in time.
        :raise HostError: it cannot be asked.
        """

        def call(connection: Any) -> _Result:
            return function(connection.lookupByUUIDString(self.uuid))

        return await self.connection.call(call, what=what, timeout=timeout)

    async def _change(self, function: Callable[[Any], _Result], what: str) -> _Result:
        try:
            return await self._call(function, what, _CHANGE_SECONDS)
        except HostError as error:
            raise TimedOut(self.name, what, _CHANGE_SECONDS) from error  # it may have been done

    # --- what it shows -----------------------------------------------------------------------------------------------

    async def observe(self, *, timeout: float = 1.0) -> View:
        if self._looking is None:
            looking = self.connection.call(
                lambda connection: look_at(connection, self.uuid), what="look", timeout=_CHANGE_SECONDS
            )
            self._looking = asyncio.create_task(looking, name=f"look at {self.name}")
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                look = await asyncio.shield(self._looking)
        except (TimeoutError, TimedOut):
            if self._looking.done():
                self._looking = None
            return View(process=ProcessState.UNKNOWN, error="libvirt does not answer")
        except (HostError, QemuError) as error:
            self._looking = None
            return View(process=ProcessState.UNKNOWN, error=str(error))
        self._looking, self.last_look = None, look
        self.round_trip_seconds = time.monotonic() - began
        view = source_view if self.role == "source" else destination_view
        return view(look, ended=self._ended)

    def on_change(self, callback: Callable[[], None]) -> None:
        self._notify = callback

    def take_events(self) -> Sequence[QemuEvent]:
        events, self._events = self._events, []
        return events

    def _hear(self, event: DomainEvent) -> None:
        if event.kind in ("connected", "lost"):
            self._notify()
            return
        if event.uuid != self.uuid:
            return
        module = load()
        if event.kind == "lifecycle":
            name, data = "", {}
            if event.event == module.VIR_DOMAIN_EVENT_SUSPENDED:
                name = "STOP"
                if event.detail == module.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY:
                    self._add("MIGRATION", event, {"status": MigrationStatus.POSTCOPY_ACTIVE})
            elif event.event == module.VIR_DOMAIN_EVENT_RESUMED:
                name = "RESUME"
            elif event.event == module.VIR_DOMAIN_EVENT_STOPPED:
                self._ended = event.detail == module.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN
                if event.detail == module.VIR_DOMAIN_EVENT_STOPPED_DESTROYED:
                    name, data = "SHUTDOWN", {"reason": "host-signal"}
            if name:
                self._add(name, event, data)
        self._notify()

    def _add(self, name: str, event: DomainEvent, data: Mapping[str, Any]) -> None:
        stamped = time.time() - (time.monotonic() - event.arrived)
        self._events.append(QemuEvent(name=name, arrived=event.arrived, stamped=stamped, data=data))

    async def facts(self) -> Facts:
        view = await self.observe(timeout=_CHANGE_SECONDS)
        xml, version, disks = await self._read(
            lambda domain, xml: (xml, _version(domain), read_disks(domain, xml))
        )
        return Facts(
            version=version,
            run=view.run if view.answers else RunState.OTHER,
            status=view.status,
            uuid=xml.uuid,
            guest_name=xml.name,
            machine=xml.machine,
            accelerator="tcg" if xml.virt == "qemu" else xml.virt,
            memory_bytes=xml.memory_bytes,
            disks=disks,
            capabilities=_CAPABILITIES,
        )

    async def _read(self, function: Callable[[Any, DomainXml], _Result]) -> _Result:
        """Return what `function` returns, called with the guest and its definition; on a thread."""

        def read(domain: Any) -> _Result:
            return function(domain, parse_domain(domain.XMLDesc()))

        try:
            return await self._call(read, "read the guest", _CHANGE_SECONDS)
        except ValueError as error:
            raise CommandFailed(self.name, "read the guest", "GenericError", str(error)) from error

    async def disk_users(self) -> DiskUsers:
        """Return the jobs that libvirt has on the guest's disks; not those of a migration, which are its own."""
        if self.role != "source":
            return DiskUsers()
        disks = await self._read(lambda _, xml: xml.disks)
        jobs = [BlockJob(id=disk.target, kind="mirror") for disk in disks if disk.mirrored]
        return DiskUsers(jobs=tuple(jobs))

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None:  # noqa: ARG002 - libvirt chooses
        seconds = max(1, round(period_seconds))

        def start(domain: Any) -> bool:
            if domain.jobInfo()[0] != load().VIR_DOMAIN_JOB_NONE:
                return (
                    False  # libvirt would have this, and all that comes after, wait for the end of that job
                )
            domain.startDirtyRateCalc(seconds)
            return True

        if not await self._call(start, "measure dirty rate", _CHANGE_SECONDS):
            raise CommandFailed(
                self.name,
                "measure dirty rate",
                "GenericError",
                "libvirt measures none while a guest migrates",
            )

    async def dirty_rate(self) -> float | None:
        def read(domain: Any) -> Mapping[str, Any]:
            found = domain.connect().domainListGetStats([domain], load().VIR_DOMAIN_STATS_DIRTYRATE)
            return dict(found[0][1]) if found else {}

        stats = await self._call(read, "read dirty rate", _CHANGE_SECONDS)
        if stats.get("dirtyrate.calc_status") != load().VIR_DOMAIN_DIRTYRATE_MEASURED:
            return None
        return float(stats.get("dirtyrate.megabytes_per_second", 0)) * MIB

    async def was_run(self) -> bool:
        view = await self.observe()
        return view.answers and view.status is not MigrationStatus.ACTIVE

    # --- what is done to it ------------------------------------------------------------------------------------------

    async def tune(self, tuning: Tuning) -> None:
        def tune(domain: Any) -> None:
            if tuning.downtime_limit_seconds is not None:
                domain.migrateSetMaxDowntime(max(1, round(tuning.downtime_limit_seconds * 1000)))
            if tuning.max_bandwidth_bytes_per_second is not None:
                domain.migrateSetMaxSpeed(mebibytes(tuning.max_bandwidth_bytes_per_second))

        if tuning.downtime_limit_seconds is None and tuning.max_bandwidth_bytes_per_second is None:
            return
        await self._change(tune, "set limits of the migration")

    async def encrypt(self, migration: str, tls: StreamTls) -> None:
        """Do nothing: libvirt is told with the migration, and makes of its own certificates what it takes."""

    async def start_postcopy(self) -> None:
        await self._change(lambda domain: domain.migrateStartPostCopy(), "switch to postcopy")

    async def cancel(self) -> None:
        try:
            await self._change(lambda domain: domain.abortJob(), "cancel the migration")
        except CommandFailed as error:
            if (
                error.error_class != "VIR_ERR_OPERATION_INVALID"
            ):  # it has no job: the next look tells what it has
                raise

    async def stop(self) -> None:
        await self._change(lambda domain: domain.suspend(), "suspend the guest")

    async def cont(self) -> None:
        await self._change(lambda domain: domain.resume(), "resume the guest")

    async def close(self) -> None:
        self._unsubscribe()
        self.on_close()
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError, HostError, QemuError):
                await self._looking


def _version(domain: Any) -> str:
    """Return the version of the QEMU that its host has; on a thread."""
    number = domain.connect().getVersion()
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def mebibytes(bytes_per_second: int | None) -> int:
    """Return a bandwidth as libvirt has it: in whole MiB per second, one at the least."""
    if bytes_per_second is None:
        return UNLIMITED_MIB
    return min(UNLIMITED_MIB, max(1, bytes_per_second // MIB))
