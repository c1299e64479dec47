"""A service's state made by hand, with the real documents and the real bus, for tests of what shows it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from migrator.api.documents import DecisionDocument, DirtyRatesDocument, MigrationDocument, SampleDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    EventKind,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
)
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter
from migrator.core.model import State
from migrator.engine.event_bus import EventBus
from migrator.errors import JournalError


class FakeQueries:
    """What a service would show; the maps are changed by the test."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.by_id: dict[str, MigrationDocument] = {}
        self.evacuations_by_id: dict[str, EvacuationDocument] = {}
        self.hosts_by_name: dict[str, HostDocument] = {}
        self.guests_by_key: dict[str, GuestDocument] = {}
        self.said: list[str] = []
        #: Hosts that were looked at on demand; ``None``: all.
        self.refreshed: list[str | None] = []
        self.samples_of: dict[str, list[SampleDocument]] = {}
        #: Newest first.
        self.journal: list[MigrationDocument] = []
        self.broken_journal = False

    # What a service does ---------------------------------------------------------------------------------

    def put(self, document: MigrationDocument, *, kind: EventKind = EventKind.STATE) -> MigrationDocument:
        """Show it and say so, as the service does; one that has ended is not shown any more."""
        if document.ended_at is None:
            self.by_id[document.id] = document
        else:
            self.by_id.pop(document.id, None)
            self.journal.insert(0, document)
        said = MigrationProgressed if kind is EventKind.PROGRESS else MigrationStateChanged
        self.bus.publish(said(migration=document))
        return document

    def change(
        self, identifier: str, *, kind: EventKind = EventKind.STATE, **fields: Any
    ) -> MigrationDocument:
        """Change fields of an active migration."""
        return self.put(self.by_id[identifier].model_copy(update=fields), kind=kind)

    def end(self, identifier: str, state: State, **fields: Any) -> MigrationDocument:
        """End an active migration."""
        return self.change(identifier, state=state, ended_at=datetime.now(UTC), **fields)

    def put_evacuation(self, document: EvacuationDocument) -> None:
        """Show it and say so."""
        if document.ended_at is None:
            self.evacuations_by_id[document.id] = document
        else:
            self.evacuations_by_id.pop(document.id, None)
        self.bus.publish(EvacuationStateChanged(evacuation=document))

    def decide(self, identifier: str, action: str, **numbers: Any) -> None:
        """Say a decision."""
        decision = DecisionDocument(at_seconds=1.0, action=action, reason="because", numbers=numbers)
        self.bus.publish(DecisionTaken(migration=identifier, decision=decision))

    # What is asked of it -----------------------------------------------------------------------------------

    def active_migrations(self) -> Sequence[MigrationDocument]:
        """Those put and not ended."""
        return list(self.by_id.values())

    def active_evacuations(self) -> Sequence[EvacuationDocument]:
        """Those put and not ended."""
        return list(self.evacuations_by_id.values())

    def hosts(self) -> Sequence[HostDocument]:
        """All."""
        return list(self.hosts_by_name.values())

    def host(self, name: str) -> HostDocument | None:
        """One."""
        return self.hosts_by_name.get(name)

    async def refresh(self, host: str | None = None) -> None:
        self.refreshed.append(host)

    def guests(self, host: str | None = None) -> Sequence[GuestDocument]:
        """All, or those of one host."""
        return [guest for guest in self.guests_by_key.values() if host in (None, guest.host)]

    def guest(self, which: str) -> GuestDocument | None:
        """One, by its key."""
        return self.guests_by_key.get(which)

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> Sequence[MigrationDocument]:
        """What the journal holds."""
        if self.broken_journal:
            raise JournalError("the journal cannot be read")
        return self.journal[:limit]

    async def migration(self, identifier: str) -> MigrationDocument | None:
        """One."""
        ended = {document.id: document for document in self.journal}
        return self.by_id.get(identifier) or ended.get(identifier)

    async def dirty_rates(self, guest: str) -> DirtyRatesDocument:
        """Nothing was measured."""
        return DirtyRatesDocument(guest=guest)

    async def samples(self, migration: str) -> Sequence[SampleDocument]:
        """What was put there."""
        return self.samples_of.get(migration, [])

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> Sequence[EvacuationDocument]:
        """Those that run."""
        return self.active_evacuations()[:limit]

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        """One that runs."""
        return self.evacuations_by_id.get(identifier)

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        """None are kept."""
        return EventBatch(items=[], last=after, more=False)

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        """None are kept."""
        return EventTexts(items=[], last=after, more=False)

    def complaints(self) -> Sequence[str]:
        """What was put there."""
        return self.said
