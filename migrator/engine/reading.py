"""What the entrances may ask without changing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from migrator.api.documents import (
    EvacuationDocument,
    GuestDocument,
    HostDocument,
    MigrationDocument,
    SampleDocument,
)
from migrator.engine.event_bus import EventBus
from migrator.ports import EventTexts


class Reading(Protocol):
    """The state of the service, from memory and the journal; only :meth:`refresh` asks a QEMU or a host anything."""

    bus: EventBus

    def active_migrations(self) -> Sequence[MigrationDocument]:
        """Those that have not ended, those that are held among them; from memory."""

    def active_evacuations(self) -> Sequence[EvacuationDocument]:
        """Those that run; from memory."""

    def hosts(self) -> Sequence[HostDocument]:
        """All, by name."""

    def host(self, name: str) -> HostDocument | None:
        """One, or ``None``."""

    def guests(self, host: str | None = None) -> Sequence[GuestDocument]:
        """All, or those of one host, by host and name; none of a host that is not known."""

    async def refresh(self, host: str | None = None) -> None:
        """Look at every host, or at that one, before the next question; ends when they have answered, or not."""

    def guest(self, which: str) -> GuestDocument | None:
        """By uuid, name or HOST/NAME.

        :raise Refusal: ``ambiguous``, with the candidates.
        """

    async def migrations(
        self, *, limit: int, before: str | None = None, where: Mapping[str, str] | None = None
    ) -> Sequence[MigrationDocument]:
        """Newest first; see :meth:`migrator.ports.Journal.page`."""

    async def migration(self, identifier: str) -> MigrationDocument | None:
        """One, ended or not."""

    async def samples(self, migration: str) -> Sequence[SampleDocument]:
        """The figures of a migration by time, thinned to a few hundred; empty where none were kept."""

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: Mapping[str, str] | None = None
    ) -> Sequence[EvacuationDocument]:
        """Newest first."""

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        """One, ended or not."""

    async def events(
        self, *, after: int = 0, limit: int = 1000, subject: str | None = None, subject_id: str | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """Journalled events after that one, in order."""

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        """See :meth:`migrator.ports.Journal.event_texts`."""

    def complaints(self) -> Sequence[str]:
        """Why new work is not taken now, in one line each; empty when all is well."""
