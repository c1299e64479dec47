"""The state of the service as another process has told it."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from migrator.api.documents import MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
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
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.ports.controllers import LiveDocument
from migrator.ports.event_queue import QueuedListener
from migrator.replica.channel import MessageKind

#: A decision that is both in a document and in an event is one of the last of the document.
_LAST_DECISIONS = 4


#: Documents that have gone and of which events may still come; more are not remembered.
_GONE = 10_000
#: Kind and id of a document, as live documents have them.
DocumentKey = tuple[str, str]


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
    def listen(self, *, journalled: bool = False) -> Iterator[QueuedListener]:
        del journalled
        listener = QueuedListener()
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


#: How a live document is received.
_MESSAGES: dict[str, MessageKind] = {
    Subject.HOST: MessageKind.HOST,
    Subject.MIGRATION: MessageKind.MIGRATION,
    Subject.EVACUATION: MessageKind.EVACUATION,
}


class ReplicaState:
    """Documents and events; :meth:`receive` keeps them up to date."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostDocument] = {}
        #: Those of each host, by name.
        self.guests: dict[str, list[KnownGuest]] = {}
        self._listed: list[GuestDocument] | None = None
        #: In the memory of the other process; those that ended lately among them.
        self.migrations: dict[str, MigrationDocument] = {}
        self.evacuations: dict[str, EvacuationDocument] = {}
        self.complaints: list[str] = []
        self.events = RelayedEvents()
        #: Everything was received once.
        self.complete = asyncio.Event()
        self._undelivered: deque[Event | None] = deque()
        #: Documents that have changed since somebody took them from here; ``None``: nobody wants to know.
        self.changed: dict[DocumentKey, None] | None = None
        #: Sequence of the last event that a document takes into account.
        self._sequences: dict[DocumentKey, int] = {}
        #: Likewise, of documents that are not there any more.
        self._gone: dict[DocumentKey, int] = {}
        #: Of a snapshot that is being received: documents that have not come yet.
        self._missing: set[DocumentKey] = set()

    def listed_guests(self) -> list[GuestDocument]:
        """Return the guests of all hosts, by host and name: the same list until one of them is different."""
        if self._listed is None:
            self._listed = [each.document for host in sorted(self.guests) for each in self.guests[host]]
        return self._listed

    # --- a snapshot, from whoever has one ----------------------------------------------------------------------------

    def begin(self) -> None:
        """All that there is follows; what has not come before :meth:`end` is not there any more."""
        self._missing = set(self.all_keys())
        self._undelivered.clear()

    def end(self) -> None:
        """All has come."""
        for subject, identifier in self._missing:
            self._forget(subject, identifier)
        self._missing = set()

    # --- for other controllers, and from them ------------------------------------------------------------------------

    def all_keys(self) -> dict[DocumentKey, None]:
        """Return every document that is there."""
        found: dict[DocumentKey, None] = dict.fromkeys((str(Subject.HOST), each) for each in self.hosts)
        found.update(dict.fromkeys((str(Subject.MIGRATION), each) for each in self.migrations))
        found.update(dict.fromkeys((str(Subject.EVACUATION), each) for each in self.evacuations))
        return found

    def text(self, kind: str, identifier: str) -> tuple[str | None, int]:
        """Return a document as :meth:`receive` takes it, and the sequence of the last event in it; ``None``: gone."""
        key = (kind, identifier)
        sequence = self._sequences.get(key) or self._gone.get(key, 0)
        found: HostDocument | MigrationDocument | EvacuationDocument | None
        match kind:
            case Subject.HOST:
                if (found := self.hosts.get(identifier)) is None:
                    return None, sequence
                guests = ",".join(
                    f"[{each.document.model_dump_json()},{json.dumps(each.socket)},{json.dumps(each.arriving)}]"
                    for each in self.guests.get(identifier, [])
                )
                return f'{{"host":{found.model_dump_json()},"guests":[{guests}]}}', sequence
            case Subject.MIGRATION:
                found = self.migrations.get(identifier)
            case _:
                found = self.evacuations.get(identifier)
        return None if found is None else found.model_dump_json(), sequence

    def take(self, document: LiveDocument) -> None:
        """Take over a document of another controller; one that knows of fewer events than this one is let pass.

        :raise ValueError: it cannot be read; what it is about stays as it was.
        """
        key = (document.kind, document.id)
        if document.text is None:
            self._sequences[key] = max(document.sequence, self._sequences.get(key, 0))
            self._forget(document.kind, document.id)
        elif document.kind not in _MESSAGES or document.sequence < self._sequences.get(key, 0):
            self._missing.discard(key)
        else:
            self.receive(_MESSAGES[document.kind], document.text.encode())
            self._sequences[key] = document.sequence

    def take_event(self, event: Event) -> None:
        """Take over a journalled event of another controller; a document may know of it already, and of more."""
        key = (str(event.subject), event.subject_id)
        if event.sequence > max(self._sequences.get(key, 0), self._gone.get(key, 0)):
            self._apply(event)
        self.events.deliver(event)

    def _note(self, subject: str, identifier: str) -> None:
        key = (str(subject), identifier)
        self._missing.discard(key)
        if self.changed is not None:
            self.changed[key] = None

    # --- what is received --------------------------------------------------------------------------------------------

    def receive(self, kind: MessageKind, body: bytes) -> None:
        """Take a message over; those that are no state are ignored.

        :raise ValueError: it cannot be read; what it is about stays as it was.
        """
        match kind:
            case MessageKind.HOST:
                self._take_host(json.loads(body))
            case MessageKind.GUESTS:
                self._change_guests(json.loads(body))
            case MessageKind.MIGRATION:
                migration = MigrationDocument.model_validate_json(body)
                self.migrations[migration.id] = migration
                self._note(Subject.MIGRATION, migration.id)
            case MessageKind.EVACUATION:
                evacuation = EvacuationDocument.model_validate_json(body)
                self.evacuations[evacuation.id] = evacuation
                self._note(Subject.EVACUATION, evacuation.id)
            case MessageKind.FORGOTTEN:
                self._forget(*json.loads(body))
            case MessageKind.STATUS:
                self.complaints = json.loads(body)["complaints"]
            case MessageKind.COMPLETE:
                self.events.began(json.loads(body))
                self.end()
                self.complete.set()
            case MessageKind.BEGIN:
                self.begin()
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
        self._note(Subject.HOST, host.host)
        self.hosts[host.host] = host
        self.guests[host.host] = sorted((_known_guest(*each) for each in given["guests"]), key=_by_name)
        self._listed = None

    def _change_guests(self, given: dict[str, Any]) -> None:
        host = HostDocument.model_validate(given["host"])
        self._note(Subject.HOST, host.host)
        self.hosts[host.host] = host
        if not given["gone"] and not given["changed"]:
            return
        guests = {(each.key, each.socket): each for each in self.guests[host.host]}
        for key, path in given["gone"]:
            del guests[key, path]
        for one in given["changed"]:
            each = _known_guest(*one)
            guests[each.key, each.socket] = each
        self.guests[host.host] = sorted(guests.values(), key=_by_name)
        self._listed = None

    def _forget(self, subject: str, identifier: str) -> None:
        key = (str(subject), identifier)
        if key in self._sequences:  # events of it may still come
            self._gone[key] = self._sequences.pop(key)
            while len(self._gone) > _GONE:
                del self._gone[next(iter(self._gone))]
        if self.changed is not None:
            self.changed[str(subject), identifier] = None
        match subject:
            case Subject.HOST:
                self.hosts.pop(identifier, None)
                self.guests.pop(identifier, None)
                self._listed = None
            case Subject.MIGRATION:
                self.migrations.pop(identifier, None)
            case Subject.EVACUATION:
                self.evacuations.pop(identifier, None)

    def _apply(self, event: Event) -> None:
        """Apply an event to its document; lists that the event leaves out stay as they were."""
        key = (str(event.subject), event.subject_id)
        if event.subject is not Subject.COMMAND:
            self._sequences[key] = max(event.sequence, self._sequences.get(key, 0))
            self._note(*key)
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


def _by_name(guest: KnownGuest) -> tuple[str, str]:
    return guest.name, guest.key


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


def _known_guest(document: dict[str, Any], path: str, arriving: bool) -> KnownGuest:
    return KnownGuest(document=GuestDocument.model_validate(document), socket=path, arriving=arriving)
