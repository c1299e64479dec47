"""The guests of one host as its libvirt has them: kept by its events, so that a look costs one call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from migrator.core.managed_guest import ManagedDomain
from migrator.core.model import RunState
from migrator.libvirt.binding import load
from migrator.libvirt.connection import DomainEvent, LibvirtConnection
from migrator.libvirt.domain_xml import DomainXml, parse_domain

#: Seconds to list the guests, and to read those that are to be read: at first a thousand of them.
_LIST_SECONDS, _READ_SECONDS = 10.0, 30.0
#: So many guests are read again with each look though nothing was heard of them: some changes are not announced.
_READ_AGAIN = 8
#: Events after which a guest is read again; others are of no interest here.
_CHANGES = frozenset({"lifecycle", "device-added", "device-removed", "block-job", "memory"})


@dataclass(frozen=True, kw_only=True)
class FoundDomain:
    """One guest that runs, or waits, in libvirt's hands."""

    xml: DomainXml
    run: RunState
    domain: ManagedDomain


@dataclass(frozen=True, kw_only=True)
class _Details:
    xml: DomainXml
    domain: ManagedDomain


class DomainInventory:
    """The guests of the libvirt daemon at the other end of a connection.

    :param changed: called when guests may have come, gone or changed.
    """

    def __init__(self, connection: LibvirtConnection, *, changed: Callable[[], None]) -> None:
        self._connection = connection
        self._changed = changed
        self._details: dict[str, _Details] = {}
        #: Those of which something was heard since they were read.
        self._stale: set[str] = set()
        #: Whose turn it is to be read though nothing was heard.
        self._turn: list[str] = []
        #: Guests that it has shut off, as of the last look.
        self.shut_off = 0
        self._looking = asyncio.Lock()
        self._unsubscribe = connection.subscribe(self._hear)

    def close(self) -> None:
        """Hear nothing any more."""
        self._unsubscribe()

    async def look(self) -> list[FoundDomain]:
        """Return the guests that have a QEMU now; what nothing was heard of is as it was read before.

        :raise HostError: libvirt cannot be asked.
        :raise QemuError: it refused that, or did not answer in time.
        """
        async with self._looking:
            states, self.shut_off = await self._connection.call(
                _states, what="list the guests", timeout=_LIST_SECONDS
            )
            unread = [uuid for uuid in states if uuid not in self._details or uuid in self._stale]
            again = self._next(states)
            reading = dict.fromkeys([*unread, *again])
            self._stale -= set(reading)
            if reading:
                details = await self._connection.call(
                    lambda connection: _read(connection, reading),
                    what="read guests",
                    timeout=_READ_SECONDS,
                )
                self._details |= details
            self._details = {uuid: each for uuid, each in self._details.items() if uuid in states}
            return [
                FoundDomain(xml=self._details[uuid].xml, domain=self._details[uuid].domain, run=run)
                for uuid, run in states.items()
                if uuid in self._details  # one that has ended meanwhile is not
            ]

    def _next(self, present: Iterable[str]) -> list[str]:
        there = set(present)
        self._turn = [uuid for uuid in self._turn if uuid in there] or list(there)
        now, self._turn = self._turn[:_READ_AGAIN], self._turn[_READ_AGAIN:]
        return now

    def _hear(self, event: DomainEvent) -> None:
        if event.kind == "connected":
            self._stale |= set(self._details)  # nothing was heard while it was away
        elif event.kind in _CHANGES:
            self._stale.add(event.uuid)
        elif event.kind != "lost":
            return
        self._changed()


@dataclass(frozen=True, kw_only=True)
class NamedDomain:
    """A guest that was looked up by its name."""

    uuid: str
    name: str
    active: bool


def find_guest(connection: Any, wanted: str) -> NamedDomain:
    """Return the guest of that name, or of that uuid; on a thread.

    :raise libvirt.libvirtError: there is none.
    """
    module = load()
    try:
        domain = connection.lookupByName(wanted)
    except module.libvirtError:
        from uuid import UUID  # noqa: PLC0415 - slow, and few write uuids

        try:
            uuid = str(UUID(wanted))
        except ValueError:
            uuid = ""
        if not uuid:
            raise
        domain = connection.lookupByUUIDString(uuid)
    return NamedDomain(uuid=domain.UUIDString(), name=domain.name(), active=bool(domain.isActive()))


def _states(connection: Any) -> tuple[dict[str, RunState], int]:
    """Return the run state of each guest that has a QEMU, and how many more are shut off; on a thread."""
    module = load()
    found = connection.getAllDomainStats(
        module.VIR_DOMAIN_STATS_STATE, module.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    )
    states = {
        domain.UUIDString(): run_state(domain, stats["state.state"], stats["state.reason"])
        for domain, stats in found
    }
    return states, connection.numOfDefinedDomains()


def run_state(domain: Any, state: int, reason: int) -> RunState:
    """Return QEMU's run state as libvirt's state and reason tell it; on a thread."""
    module = load()
    if state == module.VIR_DOMAIN_PAUSED:
        if reason == module.VIR_DOMAIN_PAUSED_MIGRATION:
            return RunState.INMIGRATE if _comes_in(domain) else RunState.FINISH_MIGRATE
        return {
            module.VIR_DOMAIN_PAUSED_IOERROR: RunState.IO_ERROR,
            module.VIR_DOMAIN_PAUSED_WATCHDOG: RunState.WATCHDOG,
            module.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: RunState.SHUTDOWN,
            module.VIR_DOMAIN_PAUSED_CRASHED: RunState.GUEST_PANICKED,
            module.VIR_DOMAIN_PAUSED_STARTING_UP: RunState.PRELAUNCH,
            module.VIR_DOMAIN_PAUSED_POSTCOPY: RunState.FINISH_MIGRATE,
            module.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: RunState.FINISH_MIGRATE,
        }.get(reason, RunState.PAUSED)
    states: Mapping[int, RunState] = {
        module.VIR_DOMAIN_RUNNING: RunState.RUNNING,
        module.VIR_DOMAIN_BLOCKED: RunState.RUNNING,
        module.VIR_DOMAIN_SHUTDOWN: RunState.SHUTDOWN,
        module.VIR_DOMAIN_CRASHED: RunState.GUEST_PANICKED,
        module.VIR_DOMAIN_PMSUSPENDED: RunState.SUSPENDED,
    }
    return states.get(state, RunState.OTHER)


def _comes_in(domain: Any) -> bool:
    module = load()
    try:
        operation = domain.jobStats().get("operation")
    except module.libvirtError:
        return False  # it has ended, or has no job: it does not come
    return bool(operation == module.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN)


def _read(connection: Any, uuids: Iterable[str]) -> dict[str, _Details]:
    """Read guests; those that have ended meanwhile are left out. On a thread."""
    module, found = load(), {}
    for uuid in uuids:
        with contextlib.suppress(module.libvirtError, ValueError):
            found[uuid] = read_details(connection.lookupByUUIDString(uuid))
    return found


def read_details(domain: Any) -> _Details:
    """Return what libvirt says of a guest; on a thread.

    :raise libvirt.libvirtError: it has ended, or libvirt refuses.
    :raise ValueError: libvirt's XML cannot be read.
    """
    module = load()
    xml = parse_domain(domain.XMLDesc())
    persistent = bool(domain.isPersistent())
    checkpoints = 0
    with contextlib.suppress(module.libvirtError):  # a daemon that knows none
        checkpoints = len(domain.listAllCheckpoints())
    return _Details(
        xml=xml,
        domain=ManagedDomain(
            persistent=persistent,
            autostart=persistent and bool(domain.autostart()),
            managed_save=persistent and bool(domain.hasManagedSaveImage()),
            snapshots=domain.snapshotNum(),
            checkpoints=checkpoints,
            block_jobs=tuple(disk.target for disk in xml.disks if disk.mirrored),
            host_devices=xml.host_devices,
        ),
    )
