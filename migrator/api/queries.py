"""Parts of questions and answers that are no documents: filters, and batches of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from migrator.api.documents import MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import Event
from migrator.core.drain.states import EvacuationState
from migrator.core.model import State


@dataclass(frozen=True, kw_only=True)
class _Filter:
    #: One of these hosts, as far as ``host`` names none: who asks is limited to them. ``None``: whichever.
    hosts: tuple[str, ...] | None = None

    def values(self) -> dict[str, str | Sequence[str]]:
        """Return what is asked for by name, as the journal's `where` takes it."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "hosts"}
        found: dict[str, str | Sequence[str]] = {
            name: str(value) for name, value in given.items() if value is not None
        }
        return found if self.hosts is None else {"host": self.hosts, **found}


@dataclass(frozen=True, kw_only=True)
class MigrationFilter(_Filter):
    """Migrations that are asked for: those that agree with every field that is not ``None``."""

    state: State | None = None
    #: The guest's key.
    guest: str | None = None
    #: Source or destination.
    host: str | None = None
    evacuation: str | None = None

    def fits(self, migration: MigrationDocument) -> bool:
        """Return whether `migration` is asked for."""
        return (
            self.state in (None, migration.state)
            and self.guest in (None, migration.guest)
            and self.host in (None, migration.source, migration.destination)
            and self.evacuation in (None, migration.evacuation)
        )


@dataclass(frozen=True, kw_only=True)
class EvacuationFilter(_Filter):
    """Evacuations that are asked for: those that agree with every field that is not ``None``."""

    state: EvacuationState | None = None
    host: str | None = None

    def fits(self, evacuation: EvacuationDocument) -> bool:
        """Return whether `evacuation` is asked for."""
        return self.state in (None, evacuation.state) and self.host in (None, evacuation.host)


@dataclass(frozen=True, kw_only=True)
class EventBatch:
    """A page of journalled events."""

    #: In order, without those that cannot be read.
    items: Sequence[Event]
    #: Number of the last one on this page, also if it cannot be read: give it as `after` for the next page.
    last: int
    #: There are later ones.
    more: bool
    #: Numbers of those that cannot be read.
    unreadable: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class EventTexts:
    """A page of journalled events as the JSON they are kept as, for those who hand them on."""

    #: ``event_id`` and JSON of each, in order.
    items: Sequence[tuple[int, str]]
    #: Number of the last one of this page, also if it is not among the items: it is not for everyone.
    last: int
    #: There are later ones.
    more: bool
