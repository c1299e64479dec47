"""Publishing of the service's state to another process: a snapshot first, then each change, in small portions.

Documents follow from events, which are made into text once. What no event tells is found by comparing: a host after
each look at it, everything else a few documents at a time. A portion takes a millisecond or two of the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from migrator.api.documents import MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import Event, EventKind, HostStateChanged, MigrationStateChanged, Subject
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.ports.queries import Events
from migrator.ports.unreadable import UNREADABLE, say_unreadable
from migrator.replica.channel import MessageKind

#: Documents are compared so often; whether hosts were looked at, which may be many, is seen every so many times.
_TICK_SECONDS, _TICKS_A_LOOK = 0.05, 4
#: When all were compared and none was different, they are compared again after so long, or after the next event: one
#: host with all its guests would be gone through at each tick otherwise.
_REST_SECONDS = 0.5
#: A portion takes so long, and then others have their turn for as long. Of a tick so much is spent on comparing.
_PORTION_SECONDS = 0.001
_STATUS_SECONDS = 1.0


#: A guest's document, the path of its QMP socket (empty: it has none), and whether it is only on its way to this host.
KnownGuest = tuple[GuestDocument, str, bool]


#: A guest's key, and the path of its socket: one may run twice on a host.
_Place = tuple[str, str]


class Source(Protocol):
    """The state of the service in memory, document by document."""

    def looked_at(self) -> Mapping[str, datetime | None]:
        """Every host, and when it last answered."""

    def host(self, name: str) -> HostDocument | None:
        """Return one, or ``None``."""

    def known_guests(self, host: str) -> Sequence[KnownGuest]:
        """Return the guests of a host; the same objects as before where nothing of them is different."""

    def remembered(self, subject: Subject) -> Collection[str]:
        """Return the ids of migrations or evacuations that are in memory, those that ended lately among them."""

    def remembered_migration(self, identifier: str) -> MigrationDocument | None:
        """Return one that is in memory."""

    def remembered_evacuation(self, identifier: str) -> EvacuationDocument | None:
        """Return one that is in memory; the same object as before where nothing of it is different."""

    def complaints(self) -> Sequence[str]:
        """Return why new work is not taken now."""


class MessageSender(Protocol):
    """A channel to the other process."""

    def send(self, kind: MessageKind, body: bytes = b"", number: int = 0) -> None:
        """Send a message soon; never waits."""


_Key = tuple[Subject, str]


class Publisher:
    """Keeps the process at the other end of a channel up to date, one channel at a time.

    :param events: those of the service.
    """

    def __init__(self, *, source: Source, events: Events) -> None:
        self._source, self._events = source, events
        self._channel: MessageSender | None = None
        #: Documents that may be different from what was sent, the longest known first.
        self._changed: dict[_Key, None] = {}
        self._sending = False
        self._all_sent = asyncio.Event()
        self._complete = False
        #: What the other process has, and of each document that no event has changed since the hash of its text.
        self._there: set[_Key] = set()
        self._sent: dict[_Key, int] = {}
        #: The guests of each host as they were sent, and the text of each.
        self._guests: dict[str, dict[_Place, tuple[KnownGuest, str]]] = {}
        #: Documents of evacuations that were sent; the same object has the same text.
        self._evacuations: dict[str, EvacuationDocument] = {}
        #: Events that were sent and that the journal does not have yet.
        self._undelivered: deque[Event] = deque()
        self._looked_at: Mapping[str, datetime | None] = {}
        self._status = b""
        self._status_at = 0.0
        #: Documents whose turn to be compared comes in this round, whether one of them was different, and when the next
        #: round may begin, on the loop's clock.
        self._compared: deque[_Key] = deque()
        self._different = False
        self._next_round = 0.0
        self._unreadable: set[tuple[str, str]] = set()
        events.subscribe(self._published)
        events.subscribe(self._delivered, journalled=True)

    def attach(self, channel: MessageSender) -> None:
        """Send everything to `channel`, then what changes, until :meth:`detach`."""
        self.detach()
        self._channel = channel
        self._next_round = 0.0
        channel.send(MessageKind.BEGIN)
        self._look_for_changes()
        for subject in (Subject.MIGRATION, Subject.EVACUATION):
            for identifier in self._source.remembered(subject):
                self._mark(subject, identifier)
        if not self._changed:
            self._send_complete()

    def detach(self) -> None:
        """Send nothing more."""
        self._channel = None
        self._changed.clear()
        self._there.clear()
        self._sent.clear()
        self._guests.clear()
        self._evacuations.clear()
        self._undelivered.clear()
        self._looked_at = {}
        self._status = b""
        self._complete = False
        self._compared.clear()
        self._all_sent.set()

    async def run(self) -> None:
        """Look for what no event tells, until cancelled."""
        for tick in itertools.count():
            await asyncio.sleep(_TICK_SECONDS)
            if self._channel is not None:
                if tick % _TICKS_A_LOOK == 0:
                    self._look_for_changes()
                self._compare()

    async def flush(self) -> None:
        """Send what has changed until now; whatever is sent then comes after it."""
        if self._channel is None:
            return
        self._look_for_changes()
        await self._all_sent.wait()

    # --- events ------------------------------------------------------------------------------------------------------

    def _published(self, event: Event) -> None:
        if self._channel is None:
            return
        self._different, self._next_round = True, 0.0  # where something happens, more may that no event tells
        self._channel.send(MessageKind.EVENT, event.text.encode())
        self._undelivered.append(event)
        key = (event.subject, event.subject_id)
        self._sent.pop(key, None)
        if event.kind is EventKind.STATE:
            self._there.add(key)
        match event:
            case MigrationStateChanged(migration=migration):
                # Guests say which migration they are in.
                for host in (migration.source, migration.destination):
                    if host in self._looked_at:
                        self._mark(Subject.HOST, host)
            case HostStateChanged(host=host_document):
                self._mark(Subject.HOST, host_document.host)

    def _delivered(self, event: Event) -> None:
        if self._channel is None:
            return
        if self._undelivered and self._undelivered[0].identity == event.identity:
            told = self._undelivered.popleft()
            number = event.event_id if event.has_number else 0
            renumbered = told.event_id != event.event_id
            self._channel.send(
                MessageKind.DELIVERED, json.dumps([number, event.event_id]).encode() if renumbered else b""
            )
        else:  # published before the channel was there
            kind = MessageKind.PAST_EVENT if event.has_number else MessageKind.EVENT_WITHOUT_NUMBER
            self._channel.send(kind, event.text.encode())

    # --- documents ---------------------------------------------------------------------------------------------------

    def _mark(self, subject: Subject, identifier: str) -> None:
        self._changed[subject, identifier] = None
        self._all_sent.clear()
        if not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send_portion)

    def _send_portion(self) -> None:
        until = time.perf_counter() + _PORTION_SECONDS
        while self._changed:
            key = next(iter(self._changed))
            del self._changed[key]
            self._send_readable(key)
            if time.perf_counter() > until:
                break
        self._sending = bool(self._changed)
        if self._sending:
            asyncio.get_running_loop().call_later(_PORTION_SECONDS, self._send_portion)
            return
        self._all_sent.set()
        if not self._complete:
            self._send_complete()

    def _send_complete(self) -> None:
        if self._channel is not None:
            self._complete = True
            sequences = [(*key, self._events.sequence(*key)) for key in self._there]
            told = {"last_event_id": self._events.last_event_id, "sequences": sequences}
            self._channel.send(MessageKind.COMPLETE, json.dumps(told).encode())

    def _send_readable(self, key: _Key) -> None:
        """Send like :meth:`_send`; one that cannot be read stays as it was there, and is said once."""
        try:
            self._send(key)
        except UNREADABLE as error:
            say_unreadable(self._unreadable, *key, error)

    def _send(self, key: _Key) -> None:
        """Send a document as it is now, if it is not as it was sent."""
        if self._channel is None:
            return
        subject, identifier = key
        found: HostDocument | MigrationDocument | EvacuationDocument | None
        match subject:
            case Subject.HOST:
                kind, found = MessageKind.HOST, self._source.host(identifier)
            case Subject.MIGRATION:
                kind, found = MessageKind.MIGRATION, self._source.remembered_migration(identifier)
            case _:
                kind, found = MessageKind.EVACUATION, self._source.remembered_evacuation(identifier)
        if found is None:
            self._sent.pop(key, None)
            self._guests.pop(identifier, None)
            self._evacuations.pop(identifier, None)
            self._there.discard(key)
            self._different = True
            self._channel.send(MessageKind.FORGOTTEN, json.dumps([subject, identifier]).encode())
            return
        if isinstance(found, HostDocument):
            self._send_host(self._channel, key, found)
            return
        if isinstance(found, EvacuationDocument):
            if key in self._sent and self._evacuations.get(identifier) is found:
                return
            self._evacuations[identifier] = found
        text = found.model_dump_json()
        if self._sent.get(key) != (digest := hash(text)):
            self._sent[key] = digest
            self._there.add(key)
            self._different = True
            self._channel.send(kind, text.encode())

    def _send_host(self, channel: MessageSender, key: _Key, host: HostDocument) -> None:
        """Send a host with its guests; of guests that are there already those that are different, if that will do."""
        before, now = self._guests.get(host.host), dict[_Place, tuple[KnownGuest, str]]()
        changed = list[str]()
        for guest in self._source.known_guests(host.host):
            place = (guest[0].guest, guest[1])
            made = before.get(place) if before is not None else None
            if made is None or made[0] is not guest:
                text = _guest(guest)
                if made is None or made[1] != text:
                    changed.append(text)
                made = (guest, text)
            now[place] = made
        text = host.model_dump_json()
        digest, same = hash(text), self._sent.get(key)
        gone = before.keys() - now.keys() if before is not None else set()
        if same == digest and not changed and not gone:
            self._guests[host.host] = now
            return
        self._sent[key], self._guests[host.host] = digest, now
        self._there.add(key)
        self._different = True
        if before is None or not _follows(now, before):
            guests = ",".join(text for _, text in now.values())
            channel.send(MessageKind.HOST, f'{{"host":{text},"guests":[{guests}]}}'.encode())
            return
        left = json.dumps(sorted(gone))
        body = f'{{"host":{text},"changed":[{",".join(changed)}],"gone":{left}}}'
        channel.send(MessageKind.GUESTS, body.encode())

    def _look_for_changes(self) -> None:
        """Hosts that were looked at or are new or gone, and the status."""
        looked_at = self._source.looked_at()
        if looked_at != self._looked_at:
            for name in looked_at.keys() | self._looked_at.keys():
                if name not in self._looked_at or looked_at.get(name) != self._looked_at[name]:
                    self._mark(Subject.HOST, name)
            self._looked_at = dict(looked_at)
        status = json.dumps({"complaints": list(self._source.complaints())}).encode()
        now = asyncio.get_running_loop().time()
        if self._channel is not None and (status != self._status or now - self._status_at >= _STATUS_SECONDS):
            self._status, self._status_at = status, now
            self._channel.send(MessageKind.STATUS, status)

    def _compare(self) -> None:
        """Compare some documents with what was sent; in a while it was each one's turn."""
        now = asyncio.get_running_loop().time()
        if self._changed or (not self._compared and now < self._next_round):
            return
        if not self._compared:
            self._different = False
            self._compared.extend((Subject.HOST, name) for name in self._looked_at)
            for subject in (Subject.MIGRATION, Subject.EVACUATION):
                there = {(subject, identifier) for identifier in self._source.remembered(subject)}
                gone = [key for key in self._there if key[0] is subject and key not in there]
                self._compared.extend((*there, *gone))
        until = time.perf_counter() + _PORTION_SECONDS
        while self._compared and time.perf_counter() < until:
            self._send_readable(self._compared.popleft())
        if not self._compared and not self._different:
            self._next_round = now + _REST_SECONDS


def _follows(now: Collection[_Place], before: Collection[_Place]) -> bool:
    """Return whether those who stayed are in their order, and who came is after them."""
    there = set(now)
    stayed = [place for place in before if place in there]
    return stayed == list(now)[: len(stayed)]


def _guest(known: KnownGuest) -> str:
    document, path, arriving = known
    return f"[{document.model_dump_json()},{json.dumps(path)},{json.dumps(arriving)}]"
