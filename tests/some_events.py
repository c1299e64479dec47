"""Events of every kind, for tests that care for little in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from migrator.api.documents import CommandDocument, DecisionDocument
from migrator.api.events import (
    CommandAnswered,
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    EventKind,
    HostStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
    read_event,
)
from migrator.api.queries import EventBatch
from tests.documents import a_host, a_migration, an_evacuation


def migration_state(identifier: str = "m1", **fields: Any) -> MigrationStateChanged:
    return MigrationStateChanged(migration=a_migration(identifier, **fields))


def progress(identifier: str = "m1", **fields: Any) -> MigrationProgressed:
    return MigrationProgressed(migration=a_migration(identifier, **fields))


def decision(identifier: str = "m1", action: str = "wait", reason: str = "because") -> DecisionTaken:
    made = DecisionDocument(at_seconds=1.0, action=action, reason=reason)
    return DecisionTaken(migration=identifier, decision=made)


def evacuation_state(identifier: str = "e1", **fields: Any) -> EvacuationStateChanged:
    return EvacuationStateChanged(evacuation=an_evacuation(identifier, **fields))


def host_state(name: str = "a", **fields: Any) -> HostStateChanged:
    return HostStateChanged(host=a_host(name, **fields))


def command(key: str) -> CommandAnswered:
    answered = CommandDocument(verb="plan", user="u", interface="http", answer="accepted")
    return CommandAnswered(key=key, command=answered)


def of_migration(kind: EventKind, identifier: str) -> Event:
    match kind:
        case EventKind.STATE:
            return migration_state(identifier)
        case EventKind.PROGRESS:
            return progress(identifier)
    return decision(identifier)


def page_of(rows: Sequence[Mapping[str, Any]], *, after: int, limit: int) -> EventBatch:
    """What was found in a journal, as queries answer it."""
    return EventBatch(
        items=[read_event(row) for row in rows],
        last=rows[-1]["event_id"] if rows else after,
        more=len(rows) == limit,
    )
