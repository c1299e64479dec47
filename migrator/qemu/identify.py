"""The guest behind a QMP monitor: identified in one round trip, and the monitor let go of at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from migrator.core.migration.drivers import MARK, Driver
from migrator.core.model import MigrationStatus, RunState
from migrator.errors import CommandFailed
from migrator.qemu import marks, naming
from migrator.qemu.address import Address
from migrator.qemu.monitor import Monitor
from migrator.qemu.pending_connects import PendingConnects


@dataclass(frozen=True, kw_only=True)
class GuestIdentity:
    """Properties that tell a guest from others, and those that placement needs."""

    #: Empty where QEMU was started without.
    uuid: str = ""
    #: The name of ours that it was marked with, where it has no uuid and came from elsewhere.
    carried: str = ""
    name: str = ""
    run: RunState = RunState.OTHER
    #: Status of a migration, out or in.
    status: MigrationStatus = MigrationStatus.NONE
    #: Whom its mark names; ``None`` where it has none.
    driver: Driver | None = None
    #: Memory that it was given, hot-plugged memory included.
    memory_bytes: int = 0
    vcpus: int = 1


async def identify(monitor: Monitor, *, timeout: float = 2.0) -> GuestIdentity:
    """Identify the guest of an open session; all queries go out at once.

    :param timeout: seconds for all answers together.
    :raise QemuError: when it cannot be asked.
    """

    async def ask(command: str) -> Any:
        try:
            return await monitor.execute(command, timeout=timeout)
        except CommandFailed:
            return None  # this machine type has no such thing

    name, uuid, status, memory, vcpus, migrate, marked = await asyncio.gather(
        ask("query-name"),
        ask("query-uuid"),
        ask("query-status"),
        ask("query-memory-size-summary"),
        ask("query-cpus-fast"),
        ask("query-migrate"),
        marks.read(monitor, MARK, timeout=timeout),
    )
    text = (uuid or {}).get("UUID", naming.NO_UUID)
    unnumbered = text == naming.NO_UUID
    return GuestIdentity(
        uuid="" if unnumbered else text,
        carried=await naming.read_name(monitor, timeout=timeout) if unnumbered else "",
        name=(name or {}).get("name", ""),
        run=RunState((status or {}).get("status", "other")),
        status=MigrationStatus((migrate or {}).get("status", "none")),
        driver=Driver.read(marked[MARK]) if MARK in marked else None,
        memory_bytes=sum((memory or {}).values()),
        vcpus=len(vcpus or ()) or 1,
    )


async def identify_at(
    path: str, *, name: str, greeting: float = 1.0, pending_connects: PendingConnects | None = None
) -> GuestIdentity:
    """Connect to a unix socket of this machine, identify the guest, and let go of the monitor.

    :param name: of the monitor, for messages.
    :param greeting: seconds to wait for QEMU's greeting: whoever holds a monitor keeps it for longer.
    :param pending_connects: those of whoever else may open it.
    :raise Occupied: it does not greet.
    :raise QemuError: it cannot be asked otherwise.
    """
    monitor = Monitor(
        Address(kind="unix", path=path),
        name=name,
        on_event=_ignore,
        on_break=_nothing,
        pending_connects=pending_connects,
    )
    try:
        await monitor.connect(timeout=greeting)
        return await identify(monitor)
    finally:
        await monitor.close()


def _ignore(event: Mapping[str, Any]) -> None:
    pass


def _nothing() -> None:
    pass
