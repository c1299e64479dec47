"""The command that deletes a file with a saved guest: one of no use any more, or, said twice, the last of its guest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from migrator.api.commands import Discard
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.api.saved_documents import SavedGuestDocument
from migrator.core.model import RUNNING_STATES
from migrator.core.saved_guest import SavedGuest, SavedState, SurveyedFile, why_not
from migrator.engine.commands.lookups import Lookups
from migrator.engine.commands.saved_history import ran_since
from migrator.engine.commands.saving import read_saved
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.saved_entry import SAVED_ENTRY
from migrator.engine.registry import Registry
from migrator.engine.reservations import Reservations
from migrator.errors import HostError, JournalError
from migrator.ports import SavedGuests


class DiscardCommand:
    """Carries it out.

    :param saved: files with guests; ``None`` where the site has none.
    """

    def __init__(
        self,
        *,
        lookups: Lookups,
        registry: Registry,
        reservations: Reservations,
        inventory: Inventory,
        journal_writer: JournalWriter,
        saved: SavedGuests | None,
    ) -> None:
        self._lookups, self._registry, self._reservations = lookups, registry, reservations
        self._inventory, self._journal_writer, self._saved = inventory, journal_writer, saved

    async def discard(self, command: Discard, caller: Caller) -> SavedGuestDocument:
        """Delete a file and what is beside it; what was deleted is returned, and why it could be.

        :raise Refusal: a migration uses it; it is no saved guest; its guest may be nowhere else, and that was not
            said to be known. Nothing was deleted, unless its host went away while it was asked to.
        """
        host, path = self._lookups.host(command.host).name, command.file
        seen = await self._survey(host, path)
        if seen.saved is None:
            return await self._off_the_list(command, seen, caller)
        key = (await read_saved(self._saved, host, path)).guest["key"]
        async with self._reservations.hold(("guest", key)):
            found = await read_saved(self._saved, host, path)
            if not caller.covers(found.host):
                raise caller.outside(f"the guest in {path} was not saved there")
            self._not_in_use(found, path)
            reason = await self._of_no_use(found, caller)
            if not reason and not command.only_copy:
                raise Refusal("conflict", _may_be_the_last(found, path))
            await self._delete(host, path, found)
            await self._forget(found.migration)
        return SavedGuestDocument(
            migration=found.migration,
            guest=found.guest["key"],
            guest_name=found.guest.get("name", ""),
            host=host,
            file=path,
            state="discarded",
            reason=reason or "nobody knew of its guest anywhere else: it is lost",
            saved_at=datetime.fromtimestamp(found.saved_at, UTC),
            size_bytes=found.bytes,
            machine=found.machine,
        )

    async def _survey(self, host: str, path: str) -> SurveyedFile:
        if self._saved is None:
            raise Refusal("not-now", "this site has no hosts with files")
        try:
            seen = (await self._saved.survey(host, [path]))[path]
        except HostError as error:
            raise Refusal("unavailable", str(error)) from error
        if seen.problem:
            raise Refusal("conflict", f"{path} is not deleted: {seen.problem}; look at it on {host}")
        return seen

    def _not_in_use(self, found: SavedGuest, path: str) -> None:
        """Refuse a file that a migration writes or reads."""
        session = self._registry.migrations.get(found.migration)
        if session is not None and not session.ended:
            raise Refusal("conflict", f"{path} is being written by migration {found.migration}")
        if found.state is SavedState.LOADING:
            raise Refusal("conflict", why_not(found, path, completed=True))
        if (other := self._registry.of_guest(found.guest["key"])) is not None:
            raise Refusal("conflict", f"its guest is {other.state}: migration {other.id} has to end first")

    async def _of_no_use(self, found: SavedGuest, caller: Caller) -> str:
        """Return why a file is of no use any more: its guest has gone on; empty where nobody knows that it has."""
        if found.state is SavedState.LOADED:
            return (
                f"its guest was loaded by migration {found.loaded_by}, on {caller.told_of(found.loaded_at)}"
            )
        key, uuid = found.guest["key"], found.guest.get("uuid", "")
        await self._inventory.look_at_all(only_up=True)
        for known in filter(None, (key, uuid)):
            for guest in self._inventory.find(known):
                host = self._inventory.host(guest.host)
                # What was seen on one that is away may be older than the file, and a QEMU that waits has no guest.
                if host is not None and host.up and guest.run in RUNNING_STATES:
                    return f"its guest runs on {caller.told_of(guest.host)}"
        later = await ran_since(
            self._journal_writer.journal, guest=key, migration=found.migration, saved_at=found.saved_at
        )
        return "" if later is None else f"its guest has run since (migration {later['id']})"

    async def _delete(self, host: str, path: str, found: SavedGuest) -> None:
        if self._saved is None:
            raise Refusal("not-now", "this site has no hosts with files")
        try:
            if not await self._saved.discard(host, path, found):
                raise Refusal("conflict", f"somebody else has used {path} meanwhile: ask again")
        except HostError as error:
            raise Refusal("unavailable", str(error)) from error

    async def _off_the_list(self, command: Discard, seen: SurveyedFile, caller: Caller) -> SavedGuestDocument:
        """Have the journal forget a saved guest whose file is gone already."""
        entry = await self._entry(host=command.host, file=command.file)
        if entry is None or seen.size is not None:
            there = "there is no description of one beside it" if seen.size is not None else "it is not there"
            raise Refusal("not-found", f"{command.file} on {command.host} is no saved guest: {there}")
        label = entry.get("guest_name") or entry["guest"]
        migration = str(entry["id"])
        session = self._registry.migrations.get(migration)
        if session is not None and not session.ended:
            raise Refusal("conflict", f"{command.file} is being written by migration {migration}")
        if not command.only_copy:
            raise Refusal(
                "conflict",
                f"{command.file} is not there any more on {command.host}, and was the only copy of {label} as far "
                "as is known: look for it first; to take it off the list all the same, say only_copy (--only-copy)",
            )
        await self._forget(migration)
        return SavedGuestDocument(
            migration=migration,
            guest=str(entry["guest"]),
            guest_name=str(entry.get("guest_name", "")),
            host=command.host,
            file=command.file,
            state="discarded",
            reason=f"it was not there any more on {caller.told_of(command.host)}",
        )

    async def _entry(self, **where: str) -> Mapping[str, Any] | None:
        """Return the journal's entry of what is saved, with these values in it."""
        entries = await self._journal_writer.journal.unfinished(SAVED_ENTRY)
        fits = (each for each in entries if all(each.get(name) == value for name, value in where.items()))
        return next(fits, None)

    async def _forget(self, migration: str) -> None:
        """Have the journal end the entry of what a migration saved; a loaded one has ended before."""
        if (entry := await self._entry(id=migration)) is not None:
            ended = {**entry, "ended_at": datetime.now(UTC).isoformat()}
            try:
                await self._journal_writer.commit((SAVED_ENTRY, ended), then=lambda: None)
            except JournalError:  # it is deleted, whatever the journal takes now
                self._journal_writer.schedule(SAVED_ENTRY, ended)


def _may_be_the_last(found: SavedGuest, path: str) -> str:
    label = found.guest.get("name") or found.guest["key"]
    return (
        f"nobody knows {label} anywhere but in {path}: it is lost when that is deleted; to have it deleted all the "
        "same, say only_copy (--only-copy)"
    )
