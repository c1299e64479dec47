"""A file that a guest is loaded from, as the source of a migration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.non_migrated_state import NonMigratedState
from migrator.core.saved_guest import FileForm, SavedGuest, SavedState
from migrator.errors import CommandFailed, HostError, QemuError
from migrator.ports import GuestConfiguration
from migrator.qemu import runtime_state
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.source import Configuration
from migrator.site.file_end import FileEnd, StateFile, file_view


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
        #: Has the QEMU that takes the guest read the file, where it does so by itself.
        self.begin_reading: Callable[[], Awaitable[None]] | None = None

    @property
    def mapped(self) -> bool:
        """Return whether each page has a place of its own in it: the QEMU that takes the guest reads it by itself."""
        return self._saved.form is FileForm.MAPPED

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
        where = "" if self.mapped else uri.removeprefix("unix:")
        try:
            program = await self.file.begin("send", where)
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
        """Mark the file as used, then let its last bytes go, or have it read: no QEMU has the guest without that."""
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
        if self.begin_reading is not None:
            await self.begin_reading()
        try:
            self.program.write(b"go\n")
        except OSError as error:
            raise QemuError(self.name, f"its program does not take a word: {error}") from error

    async def observe(self, *, timeout: float = 1.0) -> View:  # noqa: ARG002 - its program's own
        match self.status:
            case MigrationStatus.SETUP | MigrationStatus.ACTIVE:
                return file_view(self._run, self.status)
            case MigrationStatus.PRE_SWITCHOVER | MigrationStatus.DEVICE:
                return file_view(RunState.FINISH_MIGRATE, self.status)
        try:
            saved = (await self.file.look()).saved
        except HostError as error:
            return View(process=ProcessState.UNKNOWN, error=str(error))
        if saved is None:
            return View(process=ProcessState.DEAD, error=self.problem)
        if saved.state in (SavedState.SAVED, SavedState.UNCONFIRMED):
            return replace(file_view(self._run, self.status), error=self.problem)
        if saved.loaded_by == self.migration and saved.state is SavedState.LOADING:
            return replace(file_view(RunState.POSTMIGRATE, MigrationStatus.COMPLETED), error=self.problem)
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
