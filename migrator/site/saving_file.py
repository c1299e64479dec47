"""A file that a guest is saved into, as the destination of a migration."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from migrator.core.model import Finding, MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.non_migrated_state import NonMigratedState
from migrator.core.saved_guest import FileForm, SavedGuest, SavedState
from migrator.errors import CommandFailed, HostError, TimedOut
from migrator.hosts.access import Coprocess
from migrator.site.file_end import SAVED, FileEnd, StateFile, file_view

#: Seconds in which the program that takes a stream begins to listen.
_BEGIN_SECONDS = 10.0
#: How often, and how many seconds apart, what a program is just leaving is removed.
_REMOVE_TRIES, _REMOVE_PAUSE_SECONDS = 20, 0.2


class SavingFile(FileEnd):
    """A file that a guest is saved into.

    :param saved: what is written beside it; ``None`` where it was begun by another controller.
    """

    def __init__(self, file: StateFile, *, migration: str, saved: SavedGuest | None) -> None:
        super().__init__(file, role="destination", migration=migration)
        self._saved = saved
        #: Tells whether the QEMU that writes the file by itself has done so, where its form is ``mapped-ram``.
        self.is_written: Callable[[], bool] = lambda: False
        self._told_written = False
        self._address = ""
        self._handed_over = False
        self._begun = saved is None

    @property
    def mapped(self) -> bool:
        """Return whether each page is to have a place of its own in it."""
        return self._saved is not None and self._saved.form is FileForm.MAPPED

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
                while not self._address and self.status is not MigrationStatus.FAILED:
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise TimedOut(self.name, "listen", _BEGIN_SECONDS) from error
        if not self._address:
            raise CommandFailed(self.name, "listen", "GenericError", self.problem)
        return self._address

    def hear(self, said: Mapping[str, Any]) -> None:
        match said.get("event"):
            case "listening":
                self._address = f"unix:{said['socket']}" if "socket" in said else f"file:{said['file']}"
                self.status = MigrationStatus.ACTIVE
            case "done":
                self.status = MigrationStatus.COMPLETED
            case _:
                super().hear(said)

    async def observe(self, *, timeout: float = 1.0) -> View:  # noqa: ARG002 - its program's own
        if not self._begun:
            return file_view(RunState.INMIGRATE, MigrationStatus.NONE)
        if self.status is MigrationStatus.ACTIVE:
            self._see_written()
            return file_view(RunState.INMIGRATE, MigrationStatus.ACTIVE)
        try:
            said = await self.file.look(self.migration)
        except HostError as error:
            return View(process=ProcessState.UNKNOWN, error=str(error), can_fence=True)
        if (saved := said.saved) is not None and saved.migration == self.migration:
            runs = self._handed_over or saved.state is not SavedState.UNCONFIRMED
            if not runs and said.size != saved.bytes:
                return await self._incomplete()
            return file_view(RunState.RUNNING if runs else RunState.PAUSED, MigrationStatus.COMPLETED)
        if said.locked:
            return file_view(RunState.INMIGRATE, MigrationStatus.ACTIVE)
        return View(process=ProcessState.DEAD, error=self.problem)

    def _see_written(self) -> None:
        """Tell the program at the host once the QEMU that writes the file has done so."""
        if not self.mapped or self._told_written or self.program is None or not self.is_written():
            return
        self._told_written = True
        try:
            self.program.write(b"done\n")
        except OSError:
            return  # it has ended, which is heard

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
    """Implements :class:`migrator.ports.saved.SavedFileDestination`."""

    listen = "file"
    notes: tuple[Finding, ...] = ()
    new_images: tuple[str, ...] = ()

    def __init__(self, qemu: SavingFile) -> None:
        self.qemu = qemu
        self.socket = qemu.address_text

    @property
    def mapped(self) -> bool:
        """Return whether each page is to have a place of its own."""
        return self.qemu.mapped

    async def discard(self, *, images: bool = False) -> None:  # noqa: ARG002 - it makes none
        """Remove what was written, unless it was confirmed.

        :raise HostError: it cannot be removed.
        """
        if not await self.qemu.quit():
            raise HostError(self.qemu.file.access.name, f"{self.socket} is left: {self.qemu.problem}")


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
