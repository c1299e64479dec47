"""Queries that are answered from the journal and from what a process remembers: the same in every process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from migrator.api.documents import EvacuationDocument, MigrationDocument, SampleDocument
from migrator.api.events import Subject, read_event
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter
from migrator.core.migration.downsampling import Point
from migrator.ports.saved_documents import saved_evacuation, saved_migration
from migrator.ports.unreadable import UNREADABLE, say_unreadable

_Row = TypeVar("_Row")
_Read = TypeVar("_Read")


class JournalReader(Protocol):
    """The part of the journal that is read; see :class:`migrator.ports.Journal`."""

    async def page(
        self, kind: str, *, limit: int, before: str | None = None, where: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]: ...

    async def find(self, kind: str, identifier: str) -> dict[str, Any] | None: ...

    async def events(
        self, *, after: int = 0, limit: int = 1000, subject: str | None = None, subject_id: str | None = None
    ) -> list[dict[str, Any]]: ...

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts: ...


class JournalQueries(ABC):
    """Part of :class:`migrator.ports.queries.Queries`. Memory is newer than the journal, and goes before it.

    :param unreadable: rows that were left out, by kind and name; each is logged once.
    """

    def __init__(self, journal: JournalReader, *, unreadable: set[tuple[str, str]] | None = None) -> None:
        self._reader = journal
        self._unreadable = set[tuple[str, str]]() if unreadable is None else unreadable

    @abstractmethod
    def remembered_migration(self, identifier: str) -> MigrationDocument | None:
        """Return a migration that is in memory."""

    @abstractmethod
    def remembered_evacuation(self, identifier: str) -> EvacuationDocument | None:
        """Return an evacuation that is in memory."""

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> list[MigrationDocument]:
        values = where.values() if where else None
        rows = await self._reader.page("migration", limit=limit, before=before, where=values)
        return self._readable(
            "migration", rows, lambda row: self.remembered_migration(row["id"]) or saved_migration(row)
        )

    async def migration(self, identifier: str) -> MigrationDocument | None:
        if (known := self.remembered_migration(identifier)) is not None:
            return known
        row = await self._reader.find("migration", identifier)
        found = self._readable("migration", [row] if row else [], saved_migration)
        return found[0] if found else None

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> list[EvacuationDocument]:
        values = where.values() if where else None
        rows = await self._reader.page("evacuation", limit=limit, before=before, where=values)
        return self._readable(
            "evacuation", rows, lambda row: self.remembered_evacuation(row["id"]) or saved_evacuation(row)
        )

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        if (known := self.remembered_evacuation(identifier)) is not None:
            return known
        row = await self._reader.find("evacuation", identifier)
        found = self._readable("evacuation", [row] if row else [], saved_evacuation)
        return found[0] if found else None

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        rows = await self._reader.events(after=after, limit=limit, subject=subject, subject_id=subject_id)
        items = self._readable("event", rows, read_event)
        numbers = [row["event_id"] for row in rows]
        return EventBatch(
            items=items,
            last=numbers[-1] if numbers else after,
            more=len(rows) == limit,
            unreadable=sorted(set(numbers) - {event.event_id for event in items}),
        )

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        return await self._reader.event_texts(
            after=after, limit=limit, most_bytes=most_bytes, subject=subject, subject_id=subject_id
        )

    def _readable(self, kind: str, rows: Iterable[_Row], read: Callable[[_Row], _Read]) -> list[_Read]:
        """Read rows; one that cannot be read is left out, and logged once."""
        found = []
        for row in rows:
            try:
                found.append(read(row))
            except UNREADABLE as error:
                say_unreadable(self._unreadable, kind, _name(row), error)
        return found


def _name(row: object) -> str:
    if isinstance(row, Mapping):
        return str(row.get("id") or row.get("event_id") or "")
    return str(getattr(row, "key", "") or getattr(row, "name", ""))


def sample_document(point: Point) -> SampleDocument:
    """Return a point of a migration's curves as it is shown."""
    return SampleDocument(
        **{name: each for name, each in asdict(point.sample).items() if name in SampleDocument.model_fields},
        state=point.state,
        downtime_limit_seconds=point.limit_seconds,
    )
