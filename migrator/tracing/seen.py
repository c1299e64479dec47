"""What traces read of the service, as far as they need it; the engine's documents and events fit as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol


class SeenEvent(Protocol):
    """Something that happened."""

    @property
    def event_id(self) -> int: ...
    @property
    def time(self) -> datetime: ...
    @property
    def kind(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def subject_id(self) -> str: ...
    @property
    def body(self) -> Mapping[str, Any]: ...


class SeenMigration(Protocol):
    """One that has not ended."""

    @property
    def id(self) -> str: ...


class Events(Protocol):
    """Where events come from."""

    def subscribe(self, callback: Callable[[SeenEvent], None], *, journalled: bool = False) -> None:
        """Call `callback` with every event from now on; with `journalled` once the journal has it."""


class Seen(Protocol):
    """The state of the service; the engine's ``Reading`` is one."""

    @property
    def bus(self) -> Events:
        """Its events."""

    def active_migrations(self) -> Sequence[SeenMigration]:
        """Those that have not ended, those that are held among them."""

    async def events(
        self, *, after: int = 0, limit: int = 1000, subject: str | None = None, subject_id: str | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """From the journal, oldest first, as JSON has them."""
