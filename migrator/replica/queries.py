"""Queries of the entrances, answered from the state that another process has sent and from the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from migrator import faults
from migrator.api.commands import Refusal
from migrator.api.documents import (
    EvacuationDocument,
    GuestDocument,
    HostDocument,
    MigrationDocument,
    SampleDocument,
)
from migrator.api.events import Event, EventKind, Subject, read_event
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter
from migrator.core.inventory import find
from migrator.core.migration.downsampling import Point
from migrator.ports.queries import Events
from migrator.ports.store import Samples
from migrator.ports.unreadable import UNREADABLE, say_unreadable
from migrator.replica.requests import SteeringRequests
from migrator.replica.state import ReplicaState

_Made = TypeVar("_Made")
#: Events of a subject that are read at a time, where the last state is looked for: decisions may have come after it.
_LATEST = 20


class JournalReader(Protocol):
    """The part of the journal that is read; see :class:`migrator.ports.Journal`."""

    async def page(
        self, kind: str, *, limit: int, before: str | None = None, where: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]: ...

    async def find(self, kind: str, identifier: str) -> dict[str, Any] | None: ...

    async def events(
        self, *, after: int = 0, limit: int = 1000, subject: str | None = None, subject_id: str | None = None
    ) -> list[dict[str, Any]]: ...

    async def latest_events(
        self, *, subject: str, subject_id: str, limit: int, before: int | None = None
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


class ReplicaQueries:
    """See :class:`migrator.ports.queries.Queries`.

    :param complaints: why the other process may not be up to date, besides what it says itself.
    """

    def __init__(
        self,
        *,
        state: ReplicaState,
        journal: JournalReader,
        samples: Samples,
        requests: SteeringRequests,
        complaints: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._state, self._journal, self._samples = state, journal, samples
        self._requests = requests
        self._complaints = complaints
        self._unreadable: set[tuple[str, str]] = set()
        self.bus: Events = state.events

    def active_migrations(self) -> list[MigrationDocument]:
        return [each for each in self._state.migrations.values() if each.ended_at is None]

    def active_evacuations(self) -> list[EvacuationDocument]:
        return [each for each in self._state.evacuations.values() if each.ended_at is None]

    def hosts(self) -> list[HostDocument]:
        return sorted(self._state.hosts.values(), key=lambda host: host.host)

    def host(self, name: str) -> HostDocument | None:
        return self._state.hosts.get(name)

    def guests(self, host: str | None = None) -> list[GuestDocument]:
        chosen = self._state.guests.values() if host is None else [self._state.guests.get(host, [])]
        found = [known.document for guests in chosen for known in guests]
        return sorted(found, key=lambda guest: (guest.host, guest.name, guest.guest))

    async def refresh(self, host: str | None = None) -> None:
        await self._requests.ask("refresh", host=host)

    def guest(self, which: str) -> GuestDocument | None:
        found = find(which, (known for guests in self._state.guests.values() for known in guests))
        if len(found) > 1:
            candidates = ", ".join(f"{guest.host}/{guest.name} ({guest.key})" for guest in found)
            raise Refusal("ambiguous", f"{which} may be any of {candidates}")
        return found[0].document if found else None

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> list[MigrationDocument]:
        rows = await self._journal.page(
            "migration", limit=limit, before=before, where=where.values() if where else None
        )
        return self._readable("migration", rows, self._migration)

    def _migration(self, row: Mapping[str, Any]) -> MigrationDocument:
        # Memory is newer than the journal.
        return self._state.migrations.get(row["id"]) or MigrationDocument.model_validate(_public(row))

    async def migration(self, identifier: str) -> MigrationDocument | None:
        if (known := self._state.migrations.get(identifier)) is not None:
            return known
        row = await self._journal.find("migration", identifier)
        found = self._readable("migration", [row] if row else [], self._migration)
        return found[0] if found else None

    async def samples(self, migration: str) -> list[SampleDocument]:
        if migration in self._state.migrations:
            await self._requests.ask("flush_samples")
        return [_sample_document(point) for point in await self._samples.of(migration)]

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> list[EvacuationDocument]:
        rows = await self._journal.page(
            "evacuation", limit=limit, before=before, where=where.values() if where else None
        )
        return self._readable("evacuation", rows, self._evacuation)

    def _evacuation(self, row: Mapping[str, Any]) -> EvacuationDocument:
        return self._state.evacuations.get(row["id"]) or EvacuationDocument.model_validate(_public(row))

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        if (known := self._state.evacuations.get(identifier)) is not None:
            return known
        row = await self._journal.find("evacuation", identifier)
        found = self._readable("evacuation", [row] if row else [], self._evacuation)
        return found[0] if found else None

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        rows = await self._journal.events(after=after, limit=limit, subject=subject, subject_id=subject_id)
        items: list[Event] = self._readable("event", rows, read_event)
        numbers = [row["event_id"] for row in rows]
        return EventBatch(
            items=items,
            last=numbers[-1] if numbers else after,
            more=len(rows) == limit,
            unreadable=sorted(set(numbers) - {event.event_id for event in items}),
        )

    async def last_state(self, subject: Subject, subject_id: str) -> Event | None:
        """Return the last journalled event that told of a subject's state; ``None``: none did, or it cannot be read.

        :raise JournalError: the journal cannot be read.
        """
        before: int | None = None
        while rows := await self._journal.latest_events(
            subject=subject, subject_id=subject_id, limit=_LATEST, before=before
        ):
            for row in rows:
                if not (read := self._readable("event", [row], read_event)):
                    return None  # an older one would be wrong
                if read[0].kind is EventKind.STATE:
                    return read[0]
            before = rows[-1]["event_id"]
        return None

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        return await self._journal.event_texts(
            after=after, limit=limit, most_bytes=most_bytes, subject=subject, subject_id=subject_id
        )

    def complaints(self) -> list[str]:
        own = [f"task {name}: {why}" for name, why in faults.complaints.items()]
        return [*self._state.complaints, *self._complaints(), *own]

    def _readable(
        self, kind: str, rows: Iterable[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], _Made]
    ) -> list[_Made]:
        """Return the rows that can be read: one that cannot is left out and said, once."""
        found = []
        for row in rows:
            try:
                found.append(read(row))
            except UNREADABLE as error:
                say_unreadable(self._unreadable, kind, str(row.get("id", row.get("event_id"))), error)
        return found


def _public(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in row.items() if key != "_private"}


def _sample_document(point: Point) -> SampleDocument:
    return SampleDocument(
        **{name: each for name, each in asdict(point.sample).items() if name in SampleDocument.model_fields},
        state=point.state,
        downtime_limit_seconds=point.limit_seconds,
    )
