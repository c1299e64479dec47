"""Queries answered from the journal, but for what memory knows better; the same for every process that answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from migrator.api.documents import DirtyRateHour, DirtyRatesDocument, MigrationDocument, SampleDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import Event, Subject, read_event
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter
from migrator.core.guest_experience import GuestExperience
from migrator.core.migration.downsampling import Point
from migrator.ports.unreadable import UNREADABLE, say_unreadable

_Row = TypeVar("_Row")
_Made = TypeVar("_Made")


class JournalReader(Protocol):
    """The part of the journal that is read; see :class:`migrator.ports.Journal`."""

    async def page(
        self,
        kind: str,
        *,
        limit: int,
        before: str | None = None,
        where: Mapping[str, str | Sequence[str]] | None = None,
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
    """Base of :class:`migrator.ports.queries.Queries`: pages and single documents, events.

    :param unreadable: rows that cannot be read, by kind and name; each is said once.
    """

    def __init__(self, journal: JournalReader, *, unreadable: set[tuple[str, str]]) -> None:
        self._reader, self._unreadable = journal, unreadable

    @abstractmethod
    def _known_migration(self, identifier: str) -> MigrationDocument | None:
        """Return a migration that is in memory, which is newer than the journal."""

    @abstractmethod
    def _known_evacuation(self, identifier: str) -> EvacuationDocument | None:
        """Return an evacuation that is in memory, likewise."""

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> list[MigrationDocument]:
        """See :meth:`migrator.ports.queries.Queries.migrations`."""
        rows = await self._reader.page(
            "migration", limit=limit, before=before, where=where.values() if where else None
        )
        return self._readable("migration", rows, self._migration)

    def _migration(self, row: Mapping[str, Any]) -> MigrationDocument:
        return self._known_migration(row["id"]) or MigrationDocument.model_validate(public(row))

    async def migration(self, identifier: str) -> MigrationDocument | None:
        """See :meth:`migrator.ports.queries.Queries.migration`."""
        if (known := self._known_migration(identifier)) is not None:
            return known
        row = await self._reader.find("migration", identifier)
        found = self._readable("migration", [row] if row else [], self._migration)
        return found[0] if found else None

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> list[EvacuationDocument]:
        """See :meth:`migrator.ports.queries.Queries.evacuations`."""
        rows = await self._reader.page(
            "evacuation", limit=limit, before=before, where=where.values() if where else None
        )
        return self._readable("evacuation", rows, self._evacuation)

    def _evacuation(self, row: Mapping[str, Any]) -> EvacuationDocument:
        return self._known_evacuation(row["id"]) or EvacuationDocument.model_validate(public(row))

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        """See :meth:`migrator.ports.queries.Queries.evacuation`."""
        if (known := self._known_evacuation(identifier)) is not None:
            return known
        row = await self._reader.find("evacuation", identifier)
        found = self._readable("evacuation", [row] if row else [], self._evacuation)
        return found[0] if found else None

    async def dirty_rates(self, guest: str) -> DirtyRatesDocument:
        """See :meth:`migrator.ports.queries.Queries.dirty_rates`."""
        row = await self._reader.find("guest-experience", guest)
        known = self._readable("guest-experience", [row] if row else [], GuestExperience.from_fields)
        hours = known[0].hours_of_day() if known else {}
        return DirtyRatesDocument(
            guest=guest,
            hours=[
                DirtyRateHour(hour=hour, bytes_per_second=rate, weight=weight)
                for hour, (rate, weight) in hours.items()
            ],
        )

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        """See :meth:`migrator.ports.queries.Queries.events`."""
        rows = await self._reader.events(after=after, limit=limit, subject=subject, subject_id=subject_id)
        items: list[Event] = self._readable("event", rows, read_event)
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
        """See :meth:`migrator.ports.queries.Queries.event_texts`."""
        return await self._reader.event_texts(
            after=after, limit=limit, most_bytes=most_bytes, subject=subject, subject_id=subject_id
        )

    def _readable(self, kind: str, rows: Iterable[_Row], read: Callable[[_Row], _Made]) -> list[_Made]:
        """Return the rows that can be read: one that cannot is left out and said, once."""
        found = []
        for row in rows:
            try:
                found.append(read(row))
            except UNREADABLE as error:
                say_unreadable(self._unreadable, kind, _name(row), error)
        return found


def _name(row: object) -> str:
    if isinstance(row, Mapping):
        return str(row.get("id", row.get("event_id")))
    return str(getattr(row, "key", None) or getattr(row, "name", ""))


def public(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the journal without what the engine keeps there for itself."""
    return {key: each for key, each in row.items() if key != "_private"}


def sample_document(point: Point) -> SampleDocument:
    """Return the figures of a migration at one moment as they are shown."""
    return SampleDocument(
        **{name: each for name, each in asdict(point.sample).items() if name in SampleDocument.model_fields},
        state=point.state,
        downtime_limit_seconds=point.limit_seconds,
    )
