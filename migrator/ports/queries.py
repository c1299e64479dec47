"""The interface for questions that change nothing: documents and events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from migrator.api.documents import DirtyRatesDocument, MigrationDocument, SampleDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import Event, Subject
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter


class Listener(Protocol):
    """A bounded queue of events, which ends when it is closed. The oldest are dropped where nobody takes them."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def close(self) -> None:
        """End the iteration once what is there has been taken."""


class Events(Protocol):
    """The events of a service from now on; the engine's bus is one."""

    @property
    def last_event_id(self) -> int:
        """Number of the last counted event that was delivered as journalled; a new listener gets all larger ones."""

    def sequence(self, subject: Subject, subject_id: str) -> int:
        """Sequence of the last counted event of a subject that was delivered as journalled; 0 where none is known."""

    def subscribe(self, callback: Callable[[Event], None], *, journalled: bool = False) -> None:
        """Call `callback` with every event from now on; it must return at once and never raise.

        :param journalled: only once the journal has the event.
        """

    def listen(self, *, journalled: bool = False) -> AbstractContextManager[Listener]:
        """Queue every event from now on, for as long as the block lasts; see :meth:`subscribe`."""


class Queries(Protocol):
    """The state of the service, from memory and the journal; only :meth:`refresh` asks a QEMU or a host anything.

    What reads the journal raises :class:`~migrator.errors.JournalError` where it cannot be read.
    """

    @property
    def bus(self) -> Events:
        """Events from now on."""

    def active_migrations(self) -> Sequence[MigrationDocument]:
        """Return those that have not ended, those that are held among them; from memory."""

    def active_evacuations(self) -> Sequence[EvacuationDocument]:
        """Return those that run; from memory."""

    def hosts(self) -> Sequence[HostDocument]:
        """Return all, by name."""

    def host(self, name: str) -> HostDocument | None:
        """Return one, or ``None``."""

    def guests(self, host: str | None = None) -> Sequence[GuestDocument]:
        """Return all, or those of one host, by host and name; none of a host that is not known."""

    async def refresh(self, host: str | None = None) -> None:
        """Look at every host, or at that one, before the next question; ends when they have answered, or not."""

    def guest(self, which: str) -> GuestDocument | None:
        """Return one by its key, uuid, name or HOST/NAME.

        :raise Refusal: ``ambiguous``, with the candidates.
        """

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> Sequence[MigrationDocument]:
        """Return a page, newest first; see :meth:`migrator.ports.Journal.page`."""

    async def migration(self, identifier: str) -> MigrationDocument | None:
        """Return one, ended or not."""

    async def samples(self, migration: str) -> Sequence[SampleDocument]:
        """Return a few hundred figures of a migration by time; none where none were kept."""

    async def dirty_rates(self, guest: str) -> DirtyRatesDocument:
        """Return how fast the guest of that key was seen to write, by hour of the day, as far as that is known."""

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> Sequence[EvacuationDocument]:
        """Return a page, newest first."""

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        """Return one, ended or not."""

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        """Return journalled events after that one."""

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        """Return journalled events as text; see :meth:`migrator.ports.Journal.event_texts`."""

    def complaints(self) -> Sequence[str]:
        """Return why new work is not taken now, in one line each; none when all is well."""
