"""The list of saved guests: what was saved where, whether it is still there, and where it can be loaded.

The journal has an entry of each since before it was saved, until it is known that its guest has gone on; what is true
of a file is what a look at it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from migrator.api import field_errors
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.api.saved_documents import LoadableDocument, SavedGuestDocument, SavedGuestsDocument
from migrator.core.inventory import Host
from migrator.core.saved_guest import SavedState, SavedSummary, SurveyedFile, why_not_there
from migrator.engine.commands.saved_history import ran_since, save_completed
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.saved_entry import SAVED_ENTRY, saved_details
from migrator.engine.registry import Registry
from migrator.errors import HostError
from migrator.ports import SavedGuests

#: Hosts that are asked at a time.
_HOSTS_AT_ONCE = 16


class SavedList:
    """Answers what is saved; an entry whose guest has gone on is ended on the way.

    :param saved: files with guests; ``None`` where the site has none.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        inventory: Inventory,
        journal_writer: JournalWriter,
        saved: SavedGuests | None,
    ) -> None:
        self._registry, self._inventory = registry, inventory
        self._journal_writer, self._journal, self._saved = journal_writer, journal_writer.journal, saved

    async def read(self, only: str | None, caller: Caller) -> SavedGuestsDocument:
        """Return what is saved, the oldest first; asks every host that is up and that his rights reach.

        :param only: files of this host alone.
        :param caller: is told of files on hosts that his rights reach, and of these alone whether they can load one.
        """
        if only is not None and self._inventory.host(only) is None:
            known = (each.name for each in self._inventory.hosts())
            raise Refusal("not-found", field_errors.no_such_host(only, known))
        entries = [
            entry
            for entry in await self._journal.unfinished(SAVED_ENTRY)
            if only in (None, entry["host"]) and caller.covers(str(entry["host"]))
        ]
        surveys = await self._survey(sorted({str(entry["file"]) for entry in entries}), caller)
        found = [await self._document(entry, surveys, caller) for entry in entries]
        return SavedGuestsDocument(items=[each for each in found if each is not None])

    async def _survey(self, paths: Sequence[str], caller: Caller) -> dict[str, Mapping[str, SurveyedFile]]:
        """Return what there is of these files, by host; those that cannot be asked, or not for him, are missing."""
        surveys: dict[str, Mapping[str, SurveyedFile]] = {}
        turns = asyncio.Semaphore(_HOSTS_AT_ONCE)
        saved = self._saved

        async def ask(host: Host) -> None:
            if saved is None or not paths:
                return
            async with turns:
                try:
                    surveys[host.name] = await saved.survey(host.name, paths)
                except HostError:
                    return  # said of each file there

        hosts = [host for host in self._inventory.hosts() if host.up and caller.covers(host.name)]
        await asyncio.gather(*(ask(host) for host in hosts))
        return surveys

    async def _document(
        self, entry: Mapping[str, Any], surveys: Mapping[str, Mapping[str, SurveyedFile]], caller: Caller
    ) -> SavedGuestDocument | None:
        """Return what is known of one; ``None``: there is nothing saved any more."""
        migration, path = str(entry["id"]), str(entry["file"])
        session = self._registry.migrations.get(migration)
        saving = session is not None and not session.ended
        completed = await save_completed(self._journal, migration)
        there = surveys.get(str(entry["host"]))
        seen = there.get(path) if there is not None else None
        own = seen.saved if seen is not None and seen.saved is not None else None
        if own is not None and own.migration != migration:
            own = None
        ran = await self._ran(entry, own, caller)
        gone = seen is not None and seen.size is None
        if (own is not None and own.state is SavedState.LOADED) or (gone and bool(ran) and not saving):
            self._end(entry)
            return None
        state, reason = "saved", ""
        if saving:
            state, reason = "saving", f"migration {migration} has not ended"
        elif ran:
            state, reason = "outdated", ran
        elif seen is None:
            state, reason = "unknown", f"{entry['host']} cannot be asked"
        elif gone:
            state, reason = "missing", f"{path} is not there any more on {entry['host']}"
        elif own is None or seen.problem or own.bytes != seen.size:
            state = "unreadable"
            reason = why_not_there(seen, migration, completed=completed, qemus={})
        elif own.state is SavedState.LOADING:
            state, reason = "loading", f"by migration {own.loaded_by}, on {caller.told_of(own.loaded_at)}"
        return SavedGuestDocument.model_validate(
            {
                "migration": migration,
                "guest": entry["guest"],
                "guest_name": entry.get("guest_name", ""),
                "host": entry["host"],
                "file": path,
                "state": state,
                "reason": reason,
                **_details(entry, own),
                "hosts": self._loadable(migration, path, surveys, completed=completed)
                if state not in ("saving", "outdated")
                else [],
            }
        )

    async def _ran(self, entry: Mapping[str, Any], own: SavedSummary | None, caller: Caller) -> str:
        """Return where the guest runs, or has run since; empty where nobody knows of it."""
        guest = str(entry["guest"])
        if there := self._inventory.find(guest):
            return f"the guest is on {caller.told_of(there[0].host)}"
        saved_at = own.saved_at if own is not None else entry.get("saved_at")
        if saved_at is None:
            return ""
        later = await ran_since(self._journal, guest=guest, migration=str(entry["id"]), saved_at=saved_at)
        return "" if later is None else f"the guest has run since (migration {later['id']})"

    def _loadable(
        self,
        migration: str,
        path: str,
        surveys: Mapping[str, Mapping[str, SurveyedFile]],
        *,
        completed: bool,
    ) -> list[LoadableDocument]:
        found = []
        for name, files in sorted(surveys.items()):
            host = self._inventory.host(name)
            if host is None or path not in files:
                continue
            why = why_not_there(files[path], migration, completed=completed, qemus=host.facts.qemus)
            found.append(LoadableDocument(host=name, loadable=not why, reason=why))
        return found

    def _end(self, entry: Mapping[str, Any]) -> None:
        """Have the journal forget an entry in its time."""
        self._journal_writer.schedule(SAVED_ENTRY, {**entry, "ended_at": datetime.now(UTC).isoformat()})


def _details(entry: Mapping[str, Any], own: SavedSummary | None) -> dict[str, Any]:
    """Return what its file says, else what was noted when it was saved."""
    known = entry if own is None else saved_details(own)
    at = known.get("saved_at")
    return {
        "saved_at": None if at is None else datetime.fromtimestamp(at, UTC),
        "size_bytes": known.get("size_bytes"),
        "qemu": known.get("qemu", ""),
        "qemu_version": known.get("qemu_version", ""),
        "machine": known.get("machine", ""),
    }
