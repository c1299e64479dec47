"""Queries of the entrances, answered from the state that another process has sent and from the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from migrator import faults
from migrator.api.documents import MigrationDocument, SampleDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import Event, EventKind, Subject, read_event
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.replies import Refusal
from migrator.core.inventory import find
from migrator.ports.journal_queries import JournalQueries, JournalReader, sample_document
from migrator.ports.queries import Events
from migrator.ports.store import Samples
from migrator.replica.requests import SteeringRequests
from migrator.replica.state import ReplicaState

#: Events of a subject that are read at a time, where the last state is looked for: decisions may have come after it.
_LATEST = 20


class ReplicaJournal(JournalReader, Protocol):
    """The part of the journal that is read; see :class:`migrator.ports.Journal`."""

    async def latest_events(
        self, *, subject: str, subject_id: str, limit: int, before: int | None = None
    ) -> list[dict[str, Any]]: ...


class ReplicaQueries(JournalQueries):
    """See :class:`migrator.ports.queries.Queries`.

    :param complaints: why the other process may not be up to date, besides what it says itself.
    """

    def __init__(
        self,
        *,
        state: ReplicaState,
        journal: ReplicaJournal,
        samples: Samples,
        requests: SteeringRequests,
        complaints: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        super().__init__(journal, unreadable=set())
        self._state, self._journal, self._samples = state, journal, samples
        self._requests = requests
        self._complaints = complaints
        self.bus: Events = state.events

    def active_migrations(self) -> list[MigrationDocument]:
        return [each for each in self._state.migrations.values() if each.ended_at is None]

    def active_evacuations(self) -> list[EvacuationDocument]:
        return [each for each in self._state.evacuations.values() if each.ended_at is None]

    def hosts(self) -> list[HostDocument]:
        return sorted(self._state.hosts.values(), key=lambda host: host.host)

    def host(self, name: str) -> HostDocument | None:
        return self._state.hosts.get(name)

    def guests(self, host: str | None = None) -> Sequence[GuestDocument]:
        if host is None:
            return self._state.listed_guests()
        return [known.document for known in self._state.guests.get(host, ())]

    async def refresh(self, host: str | None = None) -> None:
        await self._requests.ask("refresh", host=host)

    def guest(self, which: str) -> GuestDocument | None:
        found = find(which, (known for guests in self._state.guests.values() for known in guests))
        if len(found) > 1:
            candidates = ", ".join(f"{guest.host}/{guest.name} ({guest.key})" for guest in found)
            raise Refusal("ambiguous", f"{which} may be any of {candidates}")
        return found[0].document if found else None

    def _known_migration(self, identifier: str) -> MigrationDocument | None:
        return self._state.migrations.get(identifier)

    def _known_evacuation(self, identifier: str) -> EvacuationDocument | None:
        return self._state.evacuations.get(identifier)

    async def samples(self, migration: str) -> list[SampleDocument]:
        if migration in self._state.migrations:
            await self._requests.ask("flush_samples")
        return [sample_document(point) for point in await self._samples.of(migration)]

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

    def complaints(self) -> list[str]:
        own = [f"task {name}: {why}" for name, why in faults.complaints.items()]
        return [*self._state.complaints, *self._complaints(), *own]
