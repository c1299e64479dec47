"""Guests that are shut down at one host and started anew at another: their ends, made and found again."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

from migrator.core.cold_start import from_the_start, stays_after_shutdown
from migrator.core.findings import PreflightRefused, finding
from migrator.core.inventory import Guest
from migrator.core.managed_guest import uuid_at
from migrator.core.model import RUNNING_STATES, Finding
from migrator.core.policy import Policy
from migrator.core.process.command_line import CommandLine
from migrator.core.process.tpm_emulator import tpm_socket
from migrator.errors import HostError, QemuError
from migrator.hosts.launch import Launcher
from migrator.libvirt.cold_source import ColdDomainSource
from migrator.libvirt.migration import DomainSource
from migrator.ports import ColdSourceEnd, IncomingDestination, SourceQemu
from migrator.qemu.cmdline import paths
from migrator.qemu.source import SourceEndpoint
from migrator.site.cold_ends import KEY, ColdDestination, ColdSource
from migrator.site.connections import HostConnections
from migrator.site.incoming_destination import WaitingQemu, start_to_run
from migrator.site.launch_config import LaunchConfig, place
from migrator.site.managed_cold import ManagedColdStarts
from migrator.site.process_checks import read_source_process
from migrator.site.replication import launcher_at


class ColdStartEnds:
    """Implements :class:`migrator.ports.ColdStarts`.

    :param how: how the QEMU of a guest is started on a host.
    :param managed: makes and opens those of guests of libvirt.
    """

    def __init__(
        self,
        connections: HostConnections,
        how: Callable[[Guest, str], LaunchConfig],
        *,
        managed: ManagedColdStarts,
    ) -> None:
        self._connections, self._how, self._managed = connections, how, managed

    def _launcher(self, host: str) -> Launcher:
        return launcher_at(self._connections, host, self._how(Guest(key="", host=host), host))

    # --- the source --------------------------------------------------------------------------------------------------

    async def source(
        self,
        guest: Guest,
        source: SourceQemu,
        *,
        target: str,
        migration: str,
        policy: Policy,
        by_force: bool,
    ) -> ColdSource | ColdDomainSource:
        """See :meth:`migrator.ports.ColdStarts.source`."""
        if isinstance(source, DomainSource):
            return await self._managed.source(
                guest, source, target=target, migration=migration, policy=policy, by_force=by_force
            )
        if not isinstance(source, SourceEndpoint):
            text = f"{guest.label} has no QEMU that could be started again"
            raise PreflightRefused([finding("cold-start-impossible", text)])
        argv = source.process.arguments() if source.process is not None else []
        found = [each async for each in self._against(guest, source, argv)]
        if found:
            raise PreflightRefused(found)
        now = (await source.configuration(argv)).current()
        return self._source(
            guest.host,
            source,
            {
                "migration": migration,
                "command": [*from_the_start(now), *await source.naming_options()],
                "seconds": policy.max_shutdown_seconds,
                "stays": stays_after_shutdown(argv),
            },
            by_force=by_force,
        )

    def _source(
        self, host: str, end: SourceEndpoint, known: Mapping[str, Any], *, by_force: bool
    ) -> ColdSource:
        migration = str(known["migration"])
        return ColdSource(
            end,
            migration=migration,
            command=known["command"],
            restart=functools.partial(self._restart, host, migration),
            local=self._connections.access(host).forward,
            seconds=float(known["seconds"]),
            by_force=by_force,
            stays=bool(known["stays"]),
        )

    async def _against(
        self, guest: Guest, source: SourceEndpoint, argv: Sequence[str]
    ) -> AsyncIterator[Finding]:
        """Yield why a guest could not be started again."""

        def impossible(why: str) -> Finding:
            return finding("cold-start-impossible", f"{guest.label} cannot be started anew: {why}")

        if (await source.facts()).run not in RUNNING_STATES:
            yield impossible("it does not run, so that it cannot shut down")
        if not argv or source.process is None:
            yield impossible("the command line of its QEMU cannot be read")
            return
        if plugged := await source.hot_plugged():
            yield impossible(f"plugged in since its start: {', '.join(plugged[:5])}")
        access = self._connections.access(guest.host)
        process = await read_source_process(access, source.process, recent=self._connections.processes)
        uid = (await access.run(["id", "-u"], timeout=10.0)).text.strip()
        if process is None or process.drops.user or str(process.identity.user) != uid:
            yield impossible("its QEMU runs as another user than migrator there")
        now = (await source.configuration(argv)).current()
        if tpm_socket(CommandLine(now)):
            yield impossible("its TPM is emulated by another process, whose state comes with a stream alone")
        if len(paths(now, "/")) != len(paths(now)):
            yield impossible("its command line has paths that are relative")

    async def _restart(self, host: str, migration: str, command: Sequence[str]) -> SourceEndpoint:
        """Start a QEMU at the source again; it does not let its guest run yet.

        :raise HostError: it does not start, in its own words; nothing is left.
        """
        launcher = self._launcher(host)
        for left in await launcher.run_directories_of(_back(migration)):
            await launcher.discard(left)  # of one that was begun, and did not come up in time
        run_dir = await launcher.make_run_directory(_back(migration))
        where = place(run_dir)
        monitors = [
            word
            for path in (where.control, where.rescue)
            for word in ("-qmp", f"unix:{path.replace(',', ',,')},server=on,wait=off")
        ]
        return await start_to_run(
            self._connections, launcher, run_dir, [*command, *monitors], control=where.control, role="source"
        )

    # --- the destination ---------------------------------------------------------------------------------------------

    def incoming(self, incoming: IncomingDestination, source: ColdSourceEnd) -> IncomingDestination:
        """See :meth:`migrator.ports.ColdStarts.incoming`."""
        if isinstance(source, ColdDomainSource):
            return self._managed.incoming(incoming, source)
        found = ColdIncoming(incoming)
        cast(ColdSource, source).begin_there = found.qemu.begin
        return found

    # --- both, found again -------------------------------------------------------------------------------------------

    async def open(
        self, host: str, socket: str, *, role: str, identity: Mapping[str, Any], absent: bool
    ) -> SourceQemu:
        """Open an end that another controller has left, by its identity.

        :raise HostError: its host cannot be asked.
        :raise QemuError: its QEMU lives, and cannot.
        """
        if uuid_at(socket) is not None:
            return await self._managed.open(host, socket, role=role, identity=identity)
        known = identity[KEY]
        launcher = self._launcher(host)
        if role == "destination":
            run_dir = await launcher.run_directory_at(socket)
            if run_dir is not None and await launcher.is_running(run_dir):
                end = await self._connections.open(host, socket, role=role)
            else:
                end = await self._connections.open(host, socket, role=role, identity=identity, absent=absent)
            return ColdDestination(end, start=None)
        back = [
            each
            for each in await launcher.run_directories_of(_back(known["migration"]))
            if await launcher.is_running(each)
        ]
        if back:
            end = await self._connections.open(host, place(back[0]).control, role=role)
        else:
            end = await self._connections.open(host, socket, role=role, identity=identity, absent=absent)
        found = self._source(host, end, known, by_force=False)
        try:
            await found.find_phase(back=bool(back))
        except QemuError:
            await end.close()
            raise
        return found


def _back(migration: str) -> str:
    """Return the name under which the run directory of a guest is made that is started again at its source."""
    return f"{migration}-back"


class ColdIncoming:
    """Implements :class:`migrator.ports.IncomingDestination` for a guest that is started anew."""

    def __init__(self, incoming: IncomingDestination) -> None:
        if not isinstance(incoming, WaitingQemu):
            raise HostError("the target", "its QEMU is started by somebody else, and cannot be started anew")
        self._incoming = incoming
        self.qemu = ColdDestination(incoming.end, start=incoming.start_anew)
        self.listen = incoming.listen
        self.notes, self.socket, self.new_images = incoming.notes, incoming.socket, incoming.new_images

    async def discard(self, *, images: bool = False) -> None:
        await self._incoming.discard(images=images)
