"""Guests whose state is in files: what they are saved into and loaded from, as ends of migrations.

What is true of a file is what a fresh look at it says; see :mod:`migrator.hosts.state_program`.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrator.core.findings import finding
from migrator.core.inventory import Guest
from migrator.core.managed_guest import uuid_at
from migrator.core.model import RUNNING_STATES, Finding, MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.non_migrated_state import NonMigratedState
from migrator.core.process.command_line import path_of
from migrator.core.process.replica import TargetEnvironment
from migrator.core.saved_guest import FORMAT, PREFIX, SavedGuest, SavedState, SurveyedFile
from migrator.errors import CommandFailed, HostError, QemuError, TimedOut, UsageError
from migrator.hosts.access import Coprocess
from migrator.ports import GuestConfiguration, IncomingDestination, SourceQemu
from migrator.qemu import runtime_state
from migrator.qemu.cmdline import paths
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.source import Configuration, SourceEndpoint
from migrator.settings.models import RUN_DIRECTORY
from migrator.site.connections import HostConnections
from migrator.site.file_end import SAVED, FileEnd, StateFile
from migrator.site.process_checks import read_source_process

#: Seconds in which the program that takes a stream begins to listen.
_BEGIN_SECONDS = 10.0
#: How often, and how many seconds apart, what a program is just leaving is removed.
_REMOVE_TRIES, _REMOVE_PAUSE_SECONDS = 20, 0.2
#: A stream is somewhat larger than what the guest has in memory; zero pages take next to nothing.
_LARGER_RATIO = 1.02


class SavingFile(FileEnd):
    """A file that a guest is saved into.

    :param saved: what is written beside it; ``None`` where it was begun by another controller.
    """

    def __init__(self, file: StateFile, *, migration: str, saved: SavedGuest | None) -> None:
        super().__init__(file, role="destination", migration=migration)
        self._saved = saved
        self._socket = ""
        self._handed_over = False
        self._begun = saved is None

    async def facts(self) -> Any:
        if self._saved is None:
            raise CommandFailed(self.name, "facts", "GenericError", "it was begun by another controller")
        return replace(
            self._saved.facts,
            run=RunState.INMIGRATE,
            status=MigrationStatus.NONE,
            blockers=(),
            non_migrated=NonMigratedState(),
            listening=False,
            incoming="defer",
            pid=None,
            driven_by="",
        )

    async def listen(self, uri: str) -> str:  # noqa: ARG002 - a socket of its own
        if self._saved is None:
            raise CommandFailed(self.name, "listen", "GenericError", "it was begun by another controller")
        self._begun = True
        try:
            program = await self.file.begin("receive")
            await _write_all(program, SAVED.dump_json(self._saved) + b"\n")
        except (HostError, OSError) as error:
            raise CommandFailed(self.name, "listen", "GenericError", str(error)) from error
        self.follow(program)
        try:
            async with asyncio.timeout(_BEGIN_SECONDS):
                while not self._socket and self.status is not MigrationStatus.FAILED:
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise TimedOut(self.name, "listen", _BEGIN_SECONDS) from error
        if not self._socket:
            raise CommandFailed(self.name, "listen", "GenericError", self.problem)
        return f"unix:{self._socket}"

    def hear(self, said: Mapping[str, Any]) -> None:
        match said.get("event"):
            case "listening":
                self._socket, self.status = str(said["socket"]), MigrationStatus.ACTIVE
            case "done":
                self.status = MigrationStatus.COMPLETED
            case _:
                super().hear(said)

    async def observe(self, *, timeout: float = 1.0) -> View:  # noqa: ARG002 - its program's own
        if not self._begun:
            return _view(RunState.INMIGRATE, MigrationStatus.NONE)
        if self.status is MigrationStatus.ACTIVE:
            return _view(RunState.INMIGRATE, MigrationStatus.ACTIVE)
        try:
            said = await self.file.look(self.migration)
        except HostError as error:
            return View(process=ProcessState.UNKNOWN, error=str(error), can_fence=True)
        if (saved := said.saved) is not None and saved.migration == self.migration:
            runs = self._handed_over or saved.state is not SavedState.UNCONFIRMED
            if not runs and said.size != saved.bytes:
                return await self._incomplete()
            return _view(RunState.RUNNING if runs else RunState.PAUSED, MigrationStatus.COMPLETED)
        if said.locked:
            return _view(RunState.INMIGRATE, MigrationStatus.ACTIVE)
        return View(process=ProcessState.DEAD, error=self.problem)

    async def _incomplete(self) -> View:
        """Remove a description without its file, which could come back; the guest is where it was then."""
        gone = await self._remove()
        why = f"{self.file.path} is not there any more"
        return View(process=ProcessState.DEAD if gone else ProcessState.UNKNOWN, error=why, can_fence=True)

    async def _remove(self) -> bool | None:
        """Remove what cannot be loaded; False: it can be, ``None``: its host could not do it."""
        try:
            return bool((await self.file.ask("remove", self.migration))["done"])
        except HostError as error:
            self.problem = str(error)
            return None

    async def cont(self) -> None:
        self._handed_over = True

    async def quit(self, *, timeout: float = 5.0) -> bool:  # noqa: ARG002 - its program's own
        await self.end_program()
        for _ in range(_REMOVE_TRIES):
            if (gone := await self._remove()) is not None:
                return gone
            await asyncio.sleep(_REMOVE_PAUSE_SECONDS)
        return False


class SavingDestination:
    """Implements :class:`migrator.ports.IncomingDestination` for a file that a guest is saved into."""

    listen = "file"
    notes: tuple[Finding, ...] = ()
    new_images: tuple[str, ...] = ()

    def __init__(self, qemu: SavingFile) -> None:
        self.qemu = qemu
        self.socket = qemu.address_text

    async def discard(self, *, images: bool = False) -> None:  # noqa: ARG002 - it makes none
        """Remove what was written, unless it was confirmed.

        :raise HostError: it cannot be removed.
        """
        if not await self.qemu.quit():
            raise HostError(self.qemu.file.access.name, f"{self.socket} is left: {self.qemu.problem}")


class _SavedProcess:
    """The process that a guest was saved from; it is gone, and only its command line is known."""

    pid = 0

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)

    def arguments(self) -> list[str]:
        return list(self._arguments)


class LoadingFile(FileEnd):
    """A file that a guest is loaded from."""

    def __init__(self, file: StateFile, *, migration: str, saved: SavedGuest) -> None:
        super().__init__(file, role="source", migration=migration)
        self._saved = saved
        self._run = RunState.RUNNING if saved.runs else RunState.PAUSED

    @property
    def process(self) -> Any:
        return _SavedProcess(self._saved.arguments)

    async def facts(self) -> Any:
        return replace(
            self._saved.facts,
            run=self._run,
            status=MigrationStatus.NONE,
            # What a file was on another machine is not to be seen here.
            disks=tuple(replace(disk, identity="") for disk in self._saved.facts.disks),
            blockers=(),
            non_migrated=NonMigratedState(),
            pid=None,
            driven_by="",
        )

    async def configuration(self, arguments: Sequence[str]) -> GuestConfiguration:
        return Configuration(
            arguments=tuple(arguments), machine=self._saved.machine, current_devices=CurrentDevices()
        )

    async def read_runtime_state(self) -> Any:
        return runtime_state.from_json(self._saved.runtime)

    async def naming_options(self) -> Sequence[str]:
        return self._saved.naming

    async def migrate(self, uri: str) -> None:
        try:
            program = await self.file.begin("send", uri.removeprefix("unix:"))
        except HostError as error:
            raise CommandFailed(self.name, "migrate", "GenericError", str(error)) from error
        self.status = MigrationStatus.SETUP
        self.follow(program)

    def hear(self, said: Mapping[str, Any]) -> None:
        match said.get("event"):
            case "checked":
                self.status = MigrationStatus.ACTIVE
            case "ready":
                self.status = MigrationStatus.PRE_SWITCHOVER
            case "sent":
                self.status = MigrationStatus.COMPLETED
            case _:
                super().hear(said)

    async def switch(self) -> None:
        """Mark the file as used, and then let its last bytes go: no QEMU has the guest without them."""
        same = {"migration": self._saved.migration, "sha256": self._saved.sha256}
        usable = [same | {"state": str(state)} for state in (SavedState.SAVED, SavedState.UNCONFIRMED)]
        host = self.file.access.name
        try:
            marked = await self.file.mark(
                *usable, state=SavedState.LOADING, loaded_by=self.migration, loaded_at=host
            )
        except HostError as error:
            raise QemuError(self.name, f"whether it is marked as used is not known: {error}") from error
        if not marked:
            raise CommandFailed(self.name, "switch", "GenericError", "somebody else has used it meanwhile")
        if self.program is None:
            raise CommandFailed(self.name, "switch", "GenericError", "its program has ended")
        self.status = MigrationStatus.DEVICE
        try:
            self.program.write(b"go\n")
        except OSError as error:
            raise QemuError(self.name, f"its program does not take a word: {error}") from error

    async def observe(self, *, timeout: float = 1.0) -> View:  # noqa: ARG002 - its program's own
        match self.status:
            case MigrationStatus.SETUP | MigrationStatus.ACTIVE:
                return _view(self._run, self.status)
            case MigrationStatus.PRE_SWITCHOVER | MigrationStatus.DEVICE:
                return _view(RunState.FINISH_MIGRATE, self.status)
        try:
            saved = (await self.file.look()).saved
        except HostError as error:
            return View(process=ProcessState.UNKNOWN, error=str(error))
        if saved is None:
            return View(process=ProcessState.DEAD, error=self.problem)
        if saved.state in (SavedState.SAVED, SavedState.UNCONFIRMED):
            return replace(_view(self._run, self.status), error=self.problem)
        if saved.loaded_by == self.migration and saved.state is SavedState.LOADING:
            return replace(_view(RunState.POSTMIGRATE, MigrationStatus.COMPLETED), error=self.problem)
        return View(process=ProcessState.DEAD, error=self.problem)

    async def cancel(self) -> None:
        await self.end_program()
        self.status = MigrationStatus.CANCELLED

    async def stop(self) -> None:
        self._run = RunState.PAUSED

    async def cont(self) -> None:
        """Make the file what it was: it can be loaded."""
        await self.end_program()
        own = {"state": str(SavedState.LOADING), "loaded_by": self.migration}
        try:
            await self.file.mark(own, state=SavedState.SAVED, loaded_by="", loaded_at="")
        except HostError as error:
            raise QemuError(self.name, str(error)) from error
        self.status = MigrationStatus.NONE
        self._run = RunState.RUNNING if self._saved.runs else RunState.PAUSED

    async def quit(self, *, timeout: float = 5.0) -> bool:  # noqa: ARG002 - its program's own
        await self.end_program()
        own = {"loaded_by": self.migration}
        try:
            return await self.file.mark(own, state=SavedState.LOADED)
        except HostError as error:
            self.problem = str(error)
            return False

    async def fence(self) -> bool:
        """Return False: a file that cannot be asked is not dead."""
        await self.end_program()
        return False


async def _write_all(program: Coprocess, text: bytes) -> None:
    """Write what may be more than a pipe holds; one part is taken as a whole or not at all.

    :raise OSError: its program has ended, or does not read.
    """
    give_up_at = asyncio.get_running_loop().time() + _BEGIN_SECONDS
    for start in range(0, len(text), select.PIPE_BUF):
        while True:
            try:
                program.write(text[start : start + select.PIPE_BUF])
            except BlockingIOError:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(0.01)
            else:
                break


def _view(run: RunState, status: MigrationStatus) -> View:
    return View(process=ProcessState.ALIVE, answers=True, run=run, status=status, can_fence=True)


class SavedGuestFiles:
    """Implements :class:`migrator.ports.SavedGuests`."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections = connections

    def _file(self, host: str, path: str) -> StateFile:
        return StateFile(self._connections.access(host), path.removeprefix(PREFIX))

    async def open(self, host: str, path: str, *, role: str, migration: str = "") -> FileEnd:
        """Open a file as an end of a migration.

        :raise HostError: its host cannot be asked, or it is no saved guest.
        """
        file = self._file(host, path)
        if role == "destination":
            return SavingFile(file, migration=migration, saved=None)
        saved = await file.description()
        if saved is None:
            raise HostError(host, f"{file.path} is no saved guest: there is no {file.path}.json")
        return LoadingFile(file, migration=migration, saved=saved)

    async def read(self, host: str, path: str) -> SavedGuest:
        """See :meth:`migrator.ports.SavedGuests.read`."""
        saved = await self._file(host, path).description()
        if saved is None:
            raise UsageError(f"{path} on {host} is no saved guest: there is no {path}.json")
        return saved

    async def survey(self, host: str, paths: Sequence[str]) -> Mapping[str, SurveyedFile]:
        """See :meth:`migrator.ports.SavedGuests.survey`."""
        return await StateFile.survey(self._connections.access(host), paths)

    async def check(self, guest: Guest, source: SourceQemu, path: str) -> tuple[Finding, ...]:
        """See :meth:`migrator.ports.SavedGuests.check`."""
        if uuid_at(guest.socket) is not None:
            return (
                finding("libvirt-policy", f"{guest.label} is libvirt's, and cannot be saved into a file"),
            )
        return tuple([each async for each in self._check(guest, source, path)])

    async def _check(self, guest: Guest, source: SourceQemu, path: str) -> Any:
        seen = await self._file(guest.host, path).look()
        if seen.free_bytes is None:
            yield finding("save-path", f"the directory of {path} is not there on {guest.host}")
            return
        if seen.distrust:
            yield finding("save-path", f"{path} could not be believed when it is loaded: {seen.distrust}")
        if seen.there or seen.saved is not None or seen.locked:
            yield finding("save-path", f"{path} is there already on {guest.host}")
        facts = await source.facts()
        needed = int(facts.memory_bytes * _LARGER_RATIO)
        if seen.free_bytes < needed:
            yield finding(
                "save-room",
                f"{path} may need {needed >> 20} MiB, and {seen.free_bytes >> 20} MiB are free on {guest.host}",
            )
        if not isinstance(source, SourceEndpoint) or source.process is None:
            yield finding("save-process", f"the process of {guest.label} cannot be told")
            return
        if plugged := await source.hot_plugged():
            yield finding("save-plugged", f"plugged in since its start: {', '.join(plugged[:5])}")
        argv = source.process.arguments()
        if not argv:
            yield finding("save-process", f"the command line of {guest.label} cannot be read")
            return
        access = self._connections.access(guest.host)
        process = await read_source_process(access, source.process, recent=self._connections.processes)
        uid = (await access.run(["id", "-u"], timeout=10.0)).text.strip()
        if process is None or process.drops.user or str(process.identity.user) != uid:
            yield finding(
                "save-process", f"the QEMU of {guest.label} runs as another user than migrator there"
            )
        configuration = await source.configuration(argv)
        now = configuration.current()
        if any("vfio-" in word for word in now):
            yield finding("save-process", f"{guest.label} has a device of its host passed through")
        relative = len(paths(now, "/")) != len(paths(now)) or any(
            (found := path_of(disk.file)) and "/" in found and not found.startswith("/")
            for disk in facts.disks
        )
        if relative:
            yield finding("save-process", f"the command line of {guest.label} has paths that are relative")
        where = TargetEnvironment(binary=argv[0], run_directory=f"{RUN_DIRECTORY}/XXXXXX")
        for each in configuration.replicate(where).findings:
            yield each

    async def check_load(self, host: str, path: str) -> tuple[Finding, ...]:
        """See :meth:`migrator.ports.SavedGuests.check_load`."""
        changed = (await self._file(host, path).look()).changed
        if not changed:
            return ()
        shown = ", ".join(changed[:5])
        return (finding("load-disks", f"not there on {host}, or changed since {path} was saved: {shown}"),)

    async def flush(self, guest: Guest, source: SourceQemu) -> str:
        """See :meth:`migrator.ports.SavedGuests.flush`."""
        if not isinstance(source, SourceEndpoint):
            return ""
        return await source.flush_disks(self._connections.access(guest.host).forward)

    async def thaw(self, guest: Guest, source: SourceQemu) -> bool:
        """See :meth:`migrator.ports.SavedGuests.thaw`."""
        if not isinstance(source, SourceEndpoint):
            return True
        return await source.thaw_disks(self._connections.access(guest.host).forward)

    async def start(
        self, guest: Guest, source: SourceQemu, path: str, *, migration: str
    ) -> IncomingDestination:
        """See :meth:`migrator.ports.SavedGuests.start`."""
        argv = source.process.arguments() if source.process is not None else []
        configuration, facts = await source.configuration(argv), await source.facts()
        if not isinstance(configuration, Configuration):
            raise CommandFailed(source.name, "save", "GenericError", "its configuration cannot be kept")
        saved = SavedGuest(
            format=FORMAT,
            migration=migration,
            state=SavedState.UNCONFIRMED,
            saved_at=time.time(),
            guest={"key": guest.key, "uuid": guest.uuid, "name": guest.name},
            host=guest.host,
            source=dict(source.identity),
            runs=facts.run in RUNNING_STATES,
            arguments=tuple(configuration.current()),
            machine=configuration.machine,
            naming=tuple(await source.naming_options()),
            facts=facts,
            runtime=runtime_state.to_json(await source.read_runtime_state()),
            # QEMU writes those of its firmware anew when it takes the guest out of the file.
            images={image: () for disk in facts.disks if not disk.is_flash and (image := path_of(disk.file))},
        )
        return SavingDestination(SavingFile(self._file(guest.host, path), migration=migration, saved=saved))

    async def confirm(self, host: str, path: str, *, migration: str) -> None:
        """See :meth:`migrator.ports.SavedGuests.confirm`."""
        own = {"migration": migration, "state": str(SavedState.UNCONFIRMED)}
        await self._file(host, path).mark(own, state=SavedState.SAVED)
