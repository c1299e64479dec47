"""The session of a migration of which one end may be a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from migrator.core.findings import PreflightRefused, finding
from migrator.core.inventory import Guest
from migrator.core.model import Decision, Finding, MigrationStatus, State
from migrator.core.saved_guest import SavedSummary
from migrator.engine import clock
from migrator.engine.migration import preflight
from migrator.engine.migration.cold_session import ColdSession
from migrator.engine.migration.file_move import FileMove, FileUse
from migrator.engine.migration.mapped_load import MappedIncoming
from migrator.engine.migration.prepare import MAPPED_RAM
from migrator.errors import MigratorError
from migrator.ports import IncomingDestination, Qemu, SourceQemu
from migrator.ports.saved import LoadedFile

#: Threads that write and read such a file.
_CHANNELS = 2
#: A decision: what became of what a guest that is saved had not yet written to its disks.
GUEST_FLUSH = "guest-flush"


class FileSession(ColdSession):
    """Saves its guest into a file, or loads it from there, where it has one; else it moves it from host to host."""

    guest: Guest
    file: FileMove | None = None
    #: The guest's filesystems may be frozen: whoever takes it up thaws them.
    thaw_owed = False
    #: Each page has a place of its own in its file.
    _is_mapped = False
    #: What its file says once the guest is in it alone; ``None``: it is not, or could not be read.
    saved_as: SavedSummary | None = None

    def use_file(self, file: FileMove | None) -> None:
        """Say which file it is about, before anything is begun."""
        self.file = file
        if file is not None:
            self.admit()  # it waits for no link

    @property
    def saves(self) -> bool:
        """Return whether the guest is saved into a file."""
        return self.file is not None and self.file.use is FileUse.SAVE

    @property
    def _return_path(self) -> bool:
        return self.file is None

    async def _check(self, source: Qemu) -> Sequence[Finding]:
        """See :class:`SessionEnds`; hosts have nothing against a guest that stays on its own, or is on none."""
        if self.file is None:
            return await super()._check(source)
        if self.services.saved is None:
            return ()
        try:
            if not self.saves:
                return await self.services.saved.check_load(self.target, self.file.path)
            return await self.services.saved.check(self.guest, cast(SourceQemu, source), self.file.path)
        except MigratorError as error:
            return [preflight.unchecked(error)]

    async def _start_incoming(self, source: Qemu) -> IncomingDestination:
        if self.file is None or self.services.saved is None:
            return await super()._start_incoming(source)
        incoming: IncomingDestination
        if self.saves:
            file = await self.services.saved.start(
                self.guest,
                cast(SourceQemu, source),
                self.file.path,
                migration=self.id,
                as_stream=self.file.as_stream,
            )
            self._is_mapped = file.mapped
            file.qemu.is_written = self._is_written
            incoming = file
        else:
            loaded, incoming = cast(LoadedFile, source), await super()._start_incoming(source)
            self._is_mapped = loaded.mapped
            if self._is_mapped:
                await self._refuse_older(incoming)
                reading = MappedIncoming(incoming, self.file.path)
                loaded.begin_reading = reading.reader.read
                incoming = reading
        if self._is_mapped:
            self.policy = replace(self.policy, streams=_CHANNELS)
        return incoming

    def _is_written(self) -> bool:
        """Return whether the guest's QEMU has written all of its state, as of the last look."""
        views = self._driver.views if self._driver is not None else None
        return views is not None and views[0].answers and views[0].status is MigrationStatus.COMPLETED

    async def _refuse_older(self, incoming: IncomingDestination) -> None:
        """Refuse a QEMU that cannot read the form of its file.

        :raise PreflightRefused: it cannot; it has ended.
        """
        facts = await incoming.qemu.facts()
        if MAPPED_RAM in facts.capabilities:
            return
        await incoming.discard()
        path = self.file.path if self.file is not None else ""
        text = f"{path} has the form mapped-ram, which QEMU {facts.version} on {self.target} cannot read"
        raise PreflightRefused([finding("load-form", text)])

    @property
    def _mapped(self) -> bool:
        return self._is_mapped

    async def transfer(self) -> None:
        """See :meth:`ColdSession.transfer`; a guest that is saved has its disks flushed before it is stopped."""
        await self._flush()
        await super().transfer()

    async def _flush(self) -> None:
        """Have its disks written, as the file may be lost; bounded, and nothing of it fails."""
        runs = self._driver is not None and self._driver.guest_runs
        if not self.saves or not runs or self.services.saved is None or self._source is None:
            return
        self.thaw_owed = True
        try:
            await self.services.keep(self)  # a controller that comes after this one thaws them
        except MigratorError as error:
            self.thaw_owed = False
            self._tell_flush(f"the guest's disks were not flushed: {error}")
            return
        what = await self.services.saved.flush(self.guest, cast(SourceQemu, self._source))
        self.thaw_owed = False
        self._tell_flush(what)

    def _tell_flush(self, what: str) -> None:
        if what:
            at = clock.now() - self.preparing_since
            self._decide(Decision(at_seconds=round(at, 6), action=GUEST_FLUSH, reason=what))

    async def thaw(self) -> None:
        """Thaw the guest's filesystems where a controller may have left them frozen; bounded, and nothing of it fails.

        It stays owed where its host or QEMU cannot be asked.
        """
        if not self.thaw_owed or self.services.saved is None:
            return
        source = self._source
        try:
            if source is None:
                source = await self.services.site.open(self.guest.host, self.guest.socket, role="source")
            thawed = await self.services.saved.thaw(self.guest, cast(SourceQemu, source))
        except MigratorError:
            return
        finally:
            if source is not None and source is not self._source:
                await source.close()
        self.thaw_owed = False
        self._tell_flush(
            "the guest's filesystems, which its last controller may have left frozen, are thawed"
            if thawed
            else "its last controller may have left the guest's filesystems frozen: run fsfreeze --unfreeze in it"
        )

    async def _fall_back(self, state: State, error: str) -> bool:
        """See :meth:`ColdSession._fall_back`; a guest that stays where it is has nothing frozen."""
        await self.thaw()
        return await super()._fall_back(state, error)

    def _listen(self, incoming: IncomingDestination) -> str:
        if self.file is None or self.saves or self._is_mapped:
            return super()._listen(incoming)
        return f"unix:{incoming.socket.rpartition('/')[0]}/load"

    def _stood_seconds(self) -> float:
        if self.file is None or not self.file.saved_at:
            return super()._stood_seconds()
        return clock.wall() - self.file.saved_at

    async def _settle_file(self) -> None:
        if self.file is None or not self.saves or self.services.saved is None:
            return
        try:
            await self.services.saved.confirm(self.target, self.file.path, migration=self.id)
            seen = await self.services.saved.survey(self.target, [self.file.path])
            self.saved_as = seen[self.file.path].saved
        except MigratorError as error:
            said = finding("save-unconfirmed", str(error))
            self.result.warn(said.code, said.message, said.remedy)

    def begin_anew(self) -> None:
        super().begin_anew()
        if self.file is not None:
            self.admit()
