"""Commands that save a guest into a file, and load it from there."""

from __future__ import annotations

from migrator.api.commands import Load, Save
from migrator.api.documents import MigrationDocument
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.core.inventory import Guest
from migrator.core.model import RunState
from migrator.core.saved_guest import PREFIX, SavedGuest, why_not
from migrator.engine.commands.lookups import Lookups, not_begun, refused_by_preflight
from migrator.engine.commands.saved_history import ran_since, save_completed
from migrator.engine.inventory import Inventory
from migrator.engine.migration import preflight
from migrator.engine.migration.file_move import POLICY, FileMove, FileUse
from migrator.engine.reservations import Reservations
from migrator.engine.sessions import Sessions
from migrator.errors import HostError, JournalError, UsageError
from migrator.ports import Journal, SavedGuests


class SavingCommands:
    """Carries them out.

    :param saved: files with guests; ``None`` where the site has none.
    """

    def __init__(
        self,
        *,
        lookups: Lookups,
        sessions: Sessions,
        reservations: Reservations,
        inventory: Inventory,
        journal: Journal,
        saved: SavedGuests | None,
    ) -> None:
        self._lookups, self._sessions, self._reservations = lookups, sessions, reservations
        self._inventory, self._journal, self._saved = inventory, journal, saved

    async def save(self, command: Save, caller: Caller, key: str) -> MigrationDocument:
        """Begin to save a guest."""
        guest = await self._lookups.guest(command.guest, caller)
        self._lookups.known_codes(command.accept)
        async with self._reservations.hold(("guest", guest.key)):
            guest = self._lookups.guest_again(guest, command.guest, caller)
            guest = await self._lookups.judged_again(guest, command.guest, caller)
            if found := preflight.obstacle(guest):
                raise refused_by_preflight(f"{guest.label} cannot be saved: {guest.obstacle}", found)
            self._lookups.not_under_way(guest)
            file = FileMove(use=FileUse.SAVE, path=command.file, as_stream=command.form == "stream")
            return await self._begin(guest, guest.host, file, command.accept, caller, key)

    async def load(self, command: Load, caller: Caller, key: str) -> MigrationDocument:
        """Begin to load a guest."""
        host = self._lookups.host(command.to)
        self._lookups.takes_guests(host)
        self._lookups.known_codes(command.accept)
        saved = await read_saved(self._saved, host.name, command.file)
        if not caller.covers(saved.host):
            raise caller.outside(f"the guest in {command.file} was not saved there")
        uuid, name = saved.guest.get("uuid", ""), saved.guest.get("name", "")
        guest = Guest(
            key=saved.guest["key"],
            uuid=uuid,
            name=name,
            host=host.name,
            socket=f"{PREFIX}{command.file}",
            run=RunState.RUNNING if saved.runs else RunState.PAUSED,
            memory_bytes=saved.facts.memory_bytes,
        )
        async with self._reservations.hold(("guest", guest.key)):
            # Whoever started it from its disks meanwhile has it: what is in the file is of the past then.
            await self._inventory.look_at_all(only_up=True)
            for known in [guest.key, uuid]:
                if known and (there := self._inventory.find(known)):
                    where = caller.told_of(there[0].host)
                    raise Refusal("conflict", f"{guest.label} is on {where} already: it is not loaded again")
            self._lookups.not_under_way(guest)
            saved = await read_saved(self._saved, host.name, command.file)
            if why := why_not(
                saved, command.file, completed=await save_completed(self._journal, saved.migration)
            ):
                raise Refusal("conflict", why)
            later = await ran_since(
                self._journal, guest=guest.key, migration=saved.migration, saved_at=saved.saved_at
            )
            if later is not None:
                ran = f"{guest.label} has run since {command.file} was saved (migration {later['id']})"
                raise Refusal("conflict", f"{ran}: what is in it is old")
            file = FileMove(use=FileUse.LOAD, path=command.file, saved_at=saved.saved_at)
            return await self._begin(guest, host.name, file, command.accept, caller, key)

    async def _begin(
        self, guest: Guest, host: str, file: FileMove, accept: list[str], caller: Caller, key: str
    ) -> MigrationDocument:
        session = self._sessions.make(
            guest, host, POLICY, accept=accept, by=caller.user, key=key, trace=caller.trace, file=file
        )
        try:
            await self._sessions.journal(session)
        except JournalError as error:
            raise not_begun(error) from error
        self._sessions.drive(session)
        return session.document()


async def read_saved(saved: SavedGuests | None, host: str, path: str) -> SavedGuest:
    """Return whose state a file of a host has.

    :raise Refusal: it is no saved guest, or the host cannot be asked.
    """
    if saved is None:
        raise Refusal("not-now", "this site has no hosts with files")
    try:
        return await saved.read(host, path)
    except UsageError as error:
        raise Refusal("not-found", str(error)) from error
    except HostError as error:
        raise Refusal("unavailable", str(error)) from error
