"""The destination's process: started like the source's, by a command, or by somebody else; given what was plugged."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Self

from migrator.addresses import bracketed
from migrator.core.cold_start import from_the_start
from migrator.core.findings import PreflightRefused, finding
from migrator.core.inventory import RUN_DIRECTORY, Guest
from migrator.core.model import Finding, Severity
from migrator.core.policy import Policy
from migrator.core.preflight.compare import compare
from migrator.core.process.image_paths import TargetImage
from migrator.core.process.replica import Replica
from migrator.errors import HostError
from migrator.hosts import path_links
from migrator.hosts.launch import Launcher, LaunchProfile
from migrator.hosts.new_files import forget_images, note_memory, put_aside
from migrator.hosts.new_volumes import forget_volumes
from migrator.hosts.run_directories import RunDirectory, finish_cleanup
from migrator.hosts.stale_directories import remove_stale
from migrator.hosts.thread_scheduling import apply_scheduling
from migrator.hosts.tpm_emulators import forget_state, put_state_aside, start_emulator
from migrator.ports import IncomingDestination, SourceQemu
from migrator.qemu.endpoint import Endpoint
from migrator.site.connections import HostConnections
from migrator.site.incoming_destination import (
    WaitingQemu,
    clear_away,
    connect_when_up,
    require_incoming,
    start_to_run,
)
from migrator.site.launch_config import LaunchConfig, fill, place, socket_of
from migrator.site.process_checks import SourceProcess
from migrator.site.replication import Replication, launcher_at
from migrator.site.target_images import TargetImages

#: Run directories of which it is remembered what is in them: more than migrations are under way.
_REMEMBERED = 4_096
#: Time-out of a small command, in seconds.
_SHORT = 10.0


class Destinations:
    """Starts and clears away the QEMUs that guests move into; see the calls of :class:`migrator.ports.Site`.

    :param connections: shared with whoever opens the sources.
    :param how: how the QEMU of a guest is started on a host.
    """

    def __init__(
        self,
        connections: HostConnections,
        *,
        how: Callable[[Guest, str], LaunchConfig] = lambda guest, host: LaunchConfig(),
    ) -> None:
        self._connections = connections
        self._how = how
        self._replication = Replication(connections, how=how)
        #: The host that each guest leaves, and the directory of its TPM's state there.
        self._left_tpms: dict[str, tuple[str, str]] = {}
        #: Run directories that were made, with their hosts, for guests without a path of the operator's: the last ones.
        self._without_links: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)

    def over(self, connections: HostConnections) -> Self:
        """Return the same over other connections; what was seen of hosts is shared."""
        same = copy.copy(self)
        same.use(connections)
        return same

    def use(self, connections: HostConnections) -> None:
        """Go over these connections from now on."""
        self._connections = connections
        self._replication = self._replication.over(connections)

    def replicates(self, guest: Guest, target: str) -> bool:
        """The guest's QEMU is started there by its command line, not by somebody else's."""
        return self._how(guest, target).section.launch == "replicate"

    async def check(
        self, guest: Guest, source: SourceQemu, target: str, policy: Policy
    ) -> tuple[Finding, ...]:
        """Return what speaks against starting it, and what will not be the same; starts nothing.

        A QEMU that somebody else has started there is compared with the source already.

        :raise HostError: the target cannot be asked.
        :raise QemuError: the source, or the QEMU that shall wait there, cannot.
        :raise UsageError: what is configured for the start cannot be used for this guest.
        """
        config = self._how(guest, target)
        run_dir = RunDirectory(path=f"{RUN_DIRECTORY}/XXXXXX", log="/dev/null")
        match config.section.launch:
            case "template":
                fill(config.section.template, guest, run_dir)
                return ()
            case "attached":
                waiting = await self._attach(guest, target, config)
                try:
                    return compare(await source.facts(), await waiting.qemu.facts(), policy)
                finally:
                    await waiting.qemu.close()
        process = await self._replication.checked_process(guest, source)
        base = await self._launcher(target, config).base()
        moved = await TargetImages(self._connections, guest, source, target).moved()
        try:
            return (
                await self._replication.replicate(
                    guest, source, target, config, run_dir, process, base, images=moved
                )
            ).findings
        except PreflightRefused as error:
            return error.findings

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
        """Start the QEMU that the guest moves into, everything hot-plugged since its start included.

        After a failure nothing is left behind but the log of what was started; the error carries QEMU's own words.

        :raise Objected: something of the guest cannot be had again there; says what, and what to do.
        """
        config = self._how(guest, target)
        if "port-in-use" in accepted:
            config = config.with_ports("any")
        if config.section.launch == "attached":
            waiting = await self._attach(guest, target, config)
            try:
                await source.pass_on_name(waiting.end)
            except BaseException:
                await finish_cleanup(waiting.qemu.close(), name=f"close {waiting.qemu.name}")
                raise
            return waiting
        launcher = self._launcher(target, config)
        template = config.section.launch == "template"
        process = None if template else await self._replication.recent_process(guest, source)
        other_user = process is not None and process.other_user
        run_dir = await launcher.choose_run_directory(migration)
        no_notes: tuple[Finding, ...] = ()
        like = LaunchProfile()
        replica: Replica | None = None
        images = TargetImages(self._connections, guest, source, target)
        new: Sequence[str] = ()
        moved: Mapping[str, TargetImage] = {}
        if not template:
            base = await launcher.base()
            moved = await images.moved()
            replica = await self._replication.replicate(
                guest, source, target, config, run_dir, process, base, images=moved
            )
            _refuse(replica.findings, accepted)
        links = path_links.links_file(replica.links) if replica is not None else ""
        there = await images.at_target() if replica is not None else []
        tpm = replica.tpm if replica is not None else None
        other_user = other_user or (tpm is not None and tpm.other_user)
        missing = await launcher.make(run_dir, migration, other_user=other_user, paths=links, images=there)
        if not links:
            self._without_links.append((target, run_dir.path))
        try:
            if replica is None:
                argv, notes = fill(config.section.template, guest, run_dir), no_notes
            else:
                new = await self._make(
                    images, launcher, run_dir, replica, missing, config, migration, keep_backing=keep_backing
                )
                argv, notes = replica.argv, replica.findings
                like = process.like(run_dir) if process is not None else like
        except BaseException:
            await finish_cleanup(launcher.discard(run_dir, images=True), name=f"remove {run_dir.path}")
            raise
        self._replication.note_start(target)
        with self._connections.starting(target, run_dir.path):
            started = await launcher.start(run_dir, argv, by_itself=template, like=like)
        qemu = self._connections.endpoint(
            target, place(run_dir).control, role="destination", listener=started
        )
        try:
            await connect_when_up(qemu, launcher, run_dir, started, argv[0])
            _refuse(
                await source.replicate_devices(
                    qemu, run_directory=run_dir.path, same_files=not template, images=moved, made=new
                ),
                accepted,
            )
            await source.pass_on_name(qemu)
            refused = await source.carry_traces(qemu)
            notes += tuple(finding("not-put-back", text) for text in refused)
            if process is not None:
                notes += await self._give_turns(process, source, target, qemu)
        except BaseException:
            await finish_cleanup(clear_away(launcher, run_dir, qemu), name=f"clear {run_dir.path}")
            raise
        finally:
            if started is not None:
                started.close()
        if tpm is not None:
            self._left_tpms[guest.key] = (guest.host, tpm.state_directory)
        return WaitingQemu(
            qemu,
            listen=self._listen(target),
            socket=place(run_dir).control,
            launcher=launcher,
            run_dir=run_dir,
            rescue=functools.partial(self._rescue, target, run_dir),
            notes=notes,
            new_images=tuple(new),
            anew=functools.partial(
                start_to_run,
                self._connections,
                launcher,
                run_dir,
                from_the_start(argv),
                control=place(run_dir).control,
                role="destination",
                like=like,
            ),
        )

    async def _make(
        self,
        images: TargetImages,
        launcher: Launcher,
        run_dir: RunDirectory,
        replica: Replica,
        missing: Collection[str],
        config: LaunchConfig,
        migration: str,
        *,
        keep_backing: bool,
    ) -> Sequence[str]:
        """Make what the QEMU takes besides its command line; return the devices whose images were made."""
        new = await images.make(
            launcher,
            run_dir,
            missing,
            migration=migration,
            template=config.section.image_template,
            keep_backing=keep_backing,
        )
        if replica.tpm is not None:
            await start_emulator(launcher.host, run_dir.path, replica.tpm)
        await note_memory(launcher.host, run_dir.path, replica.memory)
        return new

    async def _attach(self, guest: Guest, target: str, config: LaunchConfig) -> WaitingQemu:
        socket = socket_of(config.section.attached, guest)
        qemu = self._connections.endpoint(target, socket, role="destination")
        try:
            await qemu.connect()
            await require_incoming(qemu)
        except BaseException:
            await finish_cleanup(qemu.close(), name=f"close {qemu.name}")
            raise
        return WaitingQemu(qemu, listen=self._listen(target), socket=socket)

    async def keep_images(self, host: str, *, migration: str) -> None:
        """See :meth:`migrator.ports.Site.keep_images`."""
        launcher = self.launcher_of(host)
        for run_dir in await launcher.run_directories_of(migration):
            await forget_images(launcher.host, run_dir.path)
            await forget_volumes(launcher.host, run_dir.path)

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        """See :meth:`migrator.ports.Site.put_aside`."""
        return await put_aside(self._connections.access(guest.host), paths, f".left-{migration}")

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        """Remove what :meth:`start_destination` may have begun for a migration that nobody drives any more.

        A process that does not wait any more is left alone.

        :raise HostError: the host cannot be asked, or something could not be ended.
        """
        launcher = self.launcher_of(host)
        for run_dir in await launcher.run_directories_of(migration):
            qemu = self._connections.endpoint(host, place(run_dir).control, role="destination")
            rescue = functools.partial(self._rescue, host, run_dir)
            left = WaitingQemu(qemu, listen="", socket="", launcher=launcher, run_dir=run_dir, rescue=rescue)
            await left.discard(images=images)

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> list[str]:
        """Remove the run directories whose QEMU has ended by itself; their paths.

        :raise HostError: the host cannot be asked, or one cannot be removed.
        """
        return await remove_stale(self.launcher_of(host), under_way=under_way)

    async def settle(self, guest: Guest) -> list[str]:
        """Have the paths that the operator knows lead to a guest that has arrived; what could not be, in sentences.

        :raise HostError: the host cannot be asked.
        """
        launcher = self._launcher(guest.host, self._how(guest, guest.host))
        run_dir = await launcher.run_directory_at(guest.socket)
        if run_dir is not None:
            await self._settle_tpm(guest, launcher, run_dir)
        if run_dir is None or (guest.host, run_dir.path) in self._without_links:
            return []
        return await path_links.make_links(launcher.host, run_dir)

    async def _settle_tpm(self, guest: Guest, launcher: Launcher, run_dir: RunDirectory) -> None:
        """Keep the state of an arrived guest's TPM, and give what it left at its source another name."""
        source, state = self._left_tpms.pop(guest.key, ("", ""))
        if not state:
            return
        await forget_state(launcher.host, run_dir.path)
        mark = run_dir.path.rpartition("/")[2]
        with contextlib.suppress(HostError):  # one that stays is named where the guest comes home
            await put_state_aside(self._connections.access(source), state, f".left-{mark}")

    async def clear(self, guest: Guest) -> None:
        """Remove what is left of the source once its process has ended: the run directory, if it is one of ours.

        :raise HostError: the host cannot be asked, or the process still lives.
        """
        launcher = self._launcher(guest.host, self._how(guest, guest.host))
        run_dir = await launcher.run_directory_at(await path_links.resolve_link(launcher.host, guest.socket))
        if run_dir is not None:
            await launcher.clear(run_dir)

    def _rescue(self, host: str, run_dir: RunDirectory) -> Endpoint:
        return self._connections.endpoint(host, place(run_dir).rescue, role="destination")

    def launcher_of(self, host: str) -> Launcher:
        """Return what keeps the directories of guests on a host, whichever guest it is."""
        return self._launcher(host, self._how(Guest(key="", host=host), host))

    def _launcher(self, host: str, config: LaunchConfig) -> Launcher:
        return launcher_at(self._connections, host, config)

    def _listen(self, target: str) -> str:
        return f"tcp:{bracketed(self._connections.config(target).address)}:0"

    async def _give_turns(
        self, process: SourceProcess, source: SourceQemu, target: str, qemu: SourceQemu
    ) -> tuple[Finding, ...]:
        """Threads that were pinned one by one are so again; what could not be is a finding."""
        if source.process is None or qemu.process is None:
            return ()
        mine, theirs = await asyncio.gather(source.threads(), qemu.threads())
        there, of_process = self._connections.access(target), process.identity.threads
        left = await apply_scheduling(of_process, source.process.pid, mine, there, qemu.process.pid, theirs)
        return tuple(finding("process-settings", text) for text in left)


def _refuse(findings: Sequence[Finding], accepted: Collection[str]) -> None:
    """:raise Objected: an error is among them that was not accepted."""
    if any(each.severity is Severity.ERROR and each.code not in accepted for each in findings):
        raise PreflightRefused(findings)
