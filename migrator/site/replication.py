"""The start of a QEMU like the one that runs a guest, for a target as it is now."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self
from weakref import WeakKeyDictionary

from migrator.core.findings import PreflightRefused, finding
from migrator.core.inventory import Guest
from migrator.core.process.command_line import CommandLine
from migrator.core.process.image_paths import TargetImage
from migrator.core.process.replica import Replica, TargetEnvironment, TargetNetwork
from migrator.core.process.tpm_emulator import TpmEmulator, socket_at, tpm_socket
from migrator.errors import Refused
from migrator.hosts import path_links
from migrator.hosts.launch import Launcher
from migrator.hosts.new_files import unused
from migrator.hosts.run_directories import RunDirectory
from migrator.hosts.target_survey import TargetSurvey, survey_target
from migrator.hosts.tpm_emulators import find_emulator
from migrator.ports import SourceQemu
from migrator.qemu.cmdline import memory_files, paths
from migrator.qemu.operator_files import operator_files as of_process
from migrator.qemu.operator_files import own_directory
from migrator.site.connections import HostConnections
from migrator.site.launch_config import LaunchConfig
from migrator.site.operator_paths import OperatorPaths
from migrator.site.process_checks import SourceProcess, read_source_process

#: What a check has read so long ago is good for the start that follows it, in seconds.
_RECENT_SECONDS = 5.0


def launcher_at(connections: HostConnections, host: str, config: LaunchConfig) -> Launcher:
    """Return what starts QEMUs on a host as configured."""
    return Launcher(connections.access(host), config.section, former=config.former_directories)


class Replication:
    """Reads guests' processes and surveys their targets, and says how a QEMU is started there that is like the guest's.

    :param how: how the QEMU of a guest is started on a host.
    """

    def __init__(self, connections: HostConnections, *, how: Callable[[Guest, str], LaunchConfig]) -> None:
        self._connections, self._how = connections, how
        #: What a check has read of the sources' processes, and when.
        self._processes: WeakKeyDictionary[SourceQemu, tuple[float, SourceProcess | None]] = (
            WeakKeyDictionary()
        )
        #: What it has seen of their targets: when and what, of which, after how many starts there, and what was asked.
        self._surveys: WeakKeyDictionary[
            SourceQemu, tuple[tuple[float, TargetSurvey], str, int, dict[str, Any]]
        ] = WeakKeyDictionary()
        #: QEMUs that were started, by their hosts.
        self._starts: Counter[str] = Counter()

    def over(self, connections: HostConnections) -> Self:
        """Return the same over other connections; what was seen of hosts is shared."""
        same = copy.copy(self)
        same._connections = connections  # noqa: SLF001 - its own class
        return same

    def note_start(self, target: str) -> None:
        """Forget what was seen of a target: it is not so any more once a QEMU is started there."""
        self._starts[target] += 1

    async def read_process(self, guest: Guest, source: SourceQemu) -> SourceProcess | None:
        """Read whose the source's process is; ``None`` where it is not known which one it is."""
        if (
            source.process is None or not source.process.pid
        ):  # of a saved guest only the command line is known
            return None
        return await read_source_process(
            self._connections.access(guest.host), source.process, recent=self._connections.processes
        )

    async def checked_process(self, guest: Guest, source: SourceQemu) -> SourceProcess | None:
        """Read it likewise, for the start that follows the check."""
        process = await self.read_process(guest, source)
        self._processes[source] = time.monotonic(), process
        return process

    async def recent_process(self, guest: Guest, source: SourceQemu) -> SourceProcess | None:
        """Return what the check of a moment ago has read, or read it."""
        read_at, process = self._processes.pop(source, (-_RECENT_SECONDS, None))
        if process is not None and time.monotonic() - read_at < _RECENT_SECONDS:
            return process
        return await self.read_process(guest, source)

    async def replicate(
        self,
        guest: Guest,
        source: SourceQemu,
        target: str,
        config: LaunchConfig,
        run_dir: RunDirectory,
        process: SourceProcess | None,
        base: str,
        *,
        images: Mapping[str, TargetImage],
    ) -> Replica:
        """Return the start of a QEMU like the guest's in that run directory, with what will not be the same.

        :param base: directory of run directories there.
        :param images: those of disks that have another path there, by their paths at the source.
        :raise PreflightRefused: no QEMU can be started like it.
        :raise HostError: a host cannot be asked.
        :raise QemuError: the source cannot.
        """
        argv = source.process.arguments() if source.process is not None else []
        if not argv:
            text = f"{source.name}: its command line cannot be read, so that no other can be started like it"
            remedy = "run migrator with more rights there, or configure a template"
            raise PreflightRefused([finding("command-line-unknown", text, remedy)])
        guest_now = await source.configuration(argv)
        configured = config.section.qemu or self._connections.config(target).qemu
        candidates = (configured, "") if configured else (argv[0], "qemu-system-x86_64")
        home = await self._operator_paths(
            guest, argv, process.identity.directory if process is not None else ""
        )
        now = guest_now.current()
        wanted, memory = paths(now, home.having.directory), memory_files(now)
        seen = await self._survey(
            source,
            target,
            source_pid=source.identity.get("pid"),
            binaries=candidates,
            base=base,
            paths=tuple(dict.fromkeys((*wanted, *home.known(wanted)))),
            become=process.as_user() if process is not None else (),
        )
        if not seen.binary:
            named = f"{configured}, as configured" if configured else f"{argv[0]}, which the source runs"
            text, remedy = f"host {target}: there is no QEMU: no {named}", "install it, or configure its path"
            raise PreflightRefused([finding("qemu-missing", text, remedy)])
        here = seen.boot_id == source.identity.get("boot_id")
        tpm = await self._emulator(guest, CommandLine(now), there=frozenset() if here else seen.occupied)
        # What one QEMU left behind, the next may have: the guest's memory is written over it.
        left = [path for path in memory if path in seen.occupied]
        free = await unused(self._connections.access(target), left) if left else frozenset()
        where = TargetEnvironment(
            binary=seen.binary,
            run_directory=run_dir.path,
            occupied=seen.occupied - free,
            missing_directories=seen.missing_directories,
            same_machine=here,
            same_network=here and seen.network == seen.network_of_source != "",
            images=images,
            served={} if tpm is None else {tpm.socket: socket_at(run_dir.path)},
            network=TargetNetwork(taken=seen.taken, addresses=seen.addresses, spare=config.spare_ports),
        )
        replica = guest_now.replicate(where)
        new = tuple(path for path in memory if path not in seen.occupied)
        replica = replace(home.moved(replica, where, log=run_dir.log), memory=new, tpm=tpm)
        replica = replace(replica, argv=(*replica.argv, *await source.naming_options()))
        if seen.enters:
            return replica
        shut = finding("run-directory", f"its user may not enter {base} at {target}")
        return replace(replica, findings=(shut, *replica.findings))

    async def _emulator(
        self, guest: Guest, command: CommandLine, *, there: Collection[str]
    ) -> TpmEmulator | None:
        """Return the emulator of the guest's TPM, where one like it can be started.

        :param there: sockets that the target has: somebody has started one by hand.
        """
        socket = tpm_socket(command)
        if not socket or socket in there:
            return None
        try:
            return await find_emulator(self._connections.access(guest.host), socket)
        except Refused:
            return None  # that is said by whoever finds no process behind the socket

    async def _operator_paths(self, guest: Guest, argv: Sequence[str], directory: str) -> OperatorPaths:
        """Return what the operator has at the source's process, whose relative paths go from `directory`."""
        own = own_directory(argv)
        launcher = launcher_at(self._connections, guest.host, self._how(guest, guest.host))
        run_dir = await launcher.run_directory_at(f"{own}/control.qmp") if own else None
        if run_dir is None:
            return OperatorPaths(having=of_process(argv, {}, directory=directory), names={})
        names = await path_links.read_links(launcher.host, run_dir)
        return OperatorPaths(
            having=of_process(argv, names, log=run_dir.log, directory=directory), names=names
        )

    async def _survey(self, source: SourceQemu, target: str, **how: Any) -> TargetSurvey:
        """Survey a target for one guest, or return what its check has seen, as long as nothing was started since."""
        seen = self._surveys.pop(source, None)
        what = (target, self._starts[target], how)
        if seen is not None and seen[1:] == what and time.monotonic() - seen[0][0] < _RECENT_SECONDS:
            return seen[0][1]
        began = time.monotonic()
        survey = await survey_target(self._connections.access(target), **how)
        self._surveys[source] = (began, survey), *what
        return survey
