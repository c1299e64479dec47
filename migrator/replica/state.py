"""The state of the service as another process has told it."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from migrator.api.documents import EvacuationDocument, GuestDocument, HostDocument, MigrationDocument
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    EventKind,
    HostStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
    read_event,
)
from migrator.replica.channel import MessageKind

#: More than this that nobody takes: the oldest go, and whoever listens finds them in the journal.
_QUEUE_EVENTS = 10_000
#: A decision that is both in a document and in an event is one of the last of the document.
_LAST_DECISIONS = 4


@dataclass(frozen=True, kw_only=True)
class KnownGuest:
    """A guest, and all that it is found by; see :func:`migrator.core.inventory.find`."""

    document: GuestDocument
    socket: str
    arriving: bool

    @property
    def key(self) -> str:
        return self.document.guest

    @property
    def uuid(self) -> str:
        return self.document.uuid

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def host(self) -> str:
        return self.document.host


class _Listener:
    """See :class:`migrator.ports.queries.Listener`."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_QUEUE_EVENTS)
        self._there = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._there.set()

    def close(self) -> None:
        self._closed = True
        self._there.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._closed:
                return
            self._there.clear()
            await self._there.wait()


class RelayedEvents:
    """The events of the other process that its journal has; see :class:`migrator.ports.queries.Events`."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []
        self._sequences: dict[tuple[Subject, str], int] = {}
        self.last_event_id = 0

    def sequence(self, subject: Subject, subject_id: str) -> int:
        return self._sequences.get((subject, subject_id), 0)

    def subscribe(self, callback: Callable[[Event], None], *, journalled: bool = False) -> None:
        del journalled  # all are
        self._subscribers.append(callback)

    @contextmanager
    def listen(self, *, journalled: bool = False) -> Iterator[_Listener]:
        del journalled
        listener = _Listener()
        self._subscribers.append(listener.put)
        try:
            yield listener
        finally:
            self._subscribers.remove(listener.put)

    def began(self, told: Mapping[str, Any]) -> None:
        """Take over how far the events had come when all documents were received."""
        self.last_event_id = max(self.last_event_id, told["last_event_id"])
        for subject, identifier, sequence in told["sequences"]:
            if sequence:
                self._sequences.setdefault((Subject(subject), identifier), sequence)

    def deliver(self, event: Event) -> None:
        """Tell an event to everyone who listens."""
        if event.kind is not EventKind.PROGRESS:
            self.last_event_id = event.event_id
            self._sequences[event.subject, event.subject_id] = event.sequence
            if (event.kind is EventKind.STATE and _ended(event)) or event.kind is EventKind.COMMAND:
                del self._sequences[event.subject, event.subject_id]
        for subscriber in tuple(self._subscribers):
            subscriber(event)


class ReplicaState:
    """Documents and events; :meth:`receive` keeps them up to date."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostDocument] = {}
        self.guests: dict[str, list[KnownGuest]] = {}
        #: In the memory of the other process; those that ended lately among them.
        self.migrations: dict[str, MigrationDocument] = {}
        self.evacuations: dict[str, EvacuationDocument] = {}
        self.complaints: list[str] = []
        self.events = RelayedEvents()
        #: Everything was received once.
        self.complete = asyncio.Event()
        self._undelivered: deque[Event | None] = deque()

    def receive(self, kind: MessageKind, body: bytes) -> None:
        """Take a message over; those that are no state are ignored.

        :raise ValueError: it cannot be read; what it is about stays as it was.
        """
        match kind:
            case MessageKind.HOST:
                self._take_host(json.loads(body))
            case MessageKind.MIGRATION:
                migration = MigrationDocument.model_validate_json(body)
                self.migrations[migration.id] = migration
            case MessageKind.EVACUATION:
                evacuation = EvacuationDocument.model_validate_json(body)
                self.evacuations[evacuation.id] = evacuation
            case MessageKind.FORGOTTEN:
                self._forget(*json.loads(body))
            case MessageKind.STATUS:
                self.complaints = json.loads(body)["complaints"]
            case MessageKind.COMPLETE:
                self.events.began(json.loads(body))
                self.complete.set()
            case _:
                self._receive_event(kind, body)

    def _receive_event(self, kind: MessageKind, body: bytes) -> None:
        match kind:
            case MessageKind.EVENT:
                self._undelivered.append(None)  # in its turn also where it cannot be read
                self._undelivered[-1] = event = _read(body)
                self._apply(event)
            case MessageKind.DELIVERED:
                if (delivered := self._undelivered.popleft()) is not None:
                    if body:
                        number, after = json.loads(body)
                        delivered = delivered.with_number(number, after=after)
                    self.events.deliver(delivered)
            case MessageKind.PAST_EVENT:
                self.events.deliver(_read(body))
            case MessageKind.EVENT_WITHOUT_NUMBER:
                event = _read(body)
                self.events.deliver(event.with_number(0, after=event.event_id))

    def _take_host(self, given: dict[str, Any]) -> None:
        host = HostDocument.model_validate(given["host"])
        self.hosts[host.host] = host
        self.guests[host.host] = [
            KnownGuest(document=GuestDocument.model_validate(document), socket=path, arriving=arriving)
            for document, path, arriving in given["guests"]
        ]

    def _forget(self, subject: str, identifier: str) -> None:
        match subject:
            case Subject.HOST:
                self.hosts.pop(identifier, None)
                self.guests.pop(identifier, None)
            case Subject.MIGRATION:
                self.migrations.pop(identifier, None)
            case Subject.EVACUATION:
                self.evacuations.pop(identifier, None)

    def _apply(self, event: Event) -> None:
        """Apply an event to its document; lists that the event leaves out stay as they were."""
        match event:
            case MigrationStateChanged(migration=new):
                old = self.migrations.get(new.id)
                kept = {"decisions": old.decisions} if old else {}
                self.migrations[new.id] = new.model_copy(update=kept)
            case MigrationProgressed(migration=new):
                if old := self.migrations.get(new.id):
                    lists = {"decisions": old.decisions, "findings": old.findings}
                    self.migrations[new.id] = new.model_copy(update=lists)
            case DecisionTaken(migration=identifier, decision=decision):
                old = self.migrations.get(identifier)
                if old is not None and decision not in old.decisions[-_LAST_DECISIONS:]:
                    decisions = [*old.decisions, decision]
                    self.migrations[identifier] = old.model_copy(update={"decisions": decisions})
            case EvacuationStateChanged(evacuation=evacuation):
                self.evacuations[evacuation.id] = evacuation
            case HostStateChanged(host=host):
                self.hosts[host.host] = host


def _read(body: bytes) -> Event:
    event = read_event(json.loads(body))
    event.__dict__["text"] = body.decode()  # as it was published; it is not made again
    return event


def _ended(event: Event) -> bool:
    match event:
        case MigrationStateChanged(migration=migration):
            return migration.ended_at is not None
        case EvacuationStateChanged(evacuation=evacuation):
            return evacuation.ended_at is not None
    return False
