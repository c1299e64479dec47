"""Retained messages as the broker shall have them: the last state of everything that has not long ended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from migrator import logs
from migrator.api.documents import MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import (
    EvacuationStateChanged,
    Event,
    HostStateChanged,
    MigrationStateChanged,
    Subject,
)
from migrator.errors import JournalError
from migrator.mqtt.outbox import Outgoing, Priority
from migrator.mqtt.topics import Topics
from migrator.ports.queries import Queries

#: Documents asked for at a time. So many in a row without one to retain, and older ones are not looked at.
_PAGE = 200

_log = logs.logger(interface="mqtt")

Key = tuple[Subject, str]


@dataclass(frozen=True, kw_only=True)
class _Retained:
    """The last state of a subject as the broker shall have it; no more is kept of it, for there may be many."""

    payload: bytes
    event_id: int
    sequence: int


class StateQueries(Queries, Protocol):
    """Queries, and the last state that was said of a subject."""

    async def last_state(self, subject: Subject, subject_id: str) -> Event | None:
        """Return the last journalled event that told of a subject's state; ``None``: none did, or it cannot be read.

        :raise JournalError: the journal cannot be read.
        """


class RetainedStates:
    """Keeps the last state of each subject, and says what is wrong with what a broker has.

    :param keep: how long the state of what has ended stays.
    """

    def __init__(
        self, *, queries: StateQueries, topics: Topics, keep: timedelta, now: Callable[[], datetime]
    ) -> None:
        self._queries = queries
        self._topics = topics
        self._keep = keep
        self._now = now
        self._last: dict[Key, _Retained] = {}
        self._clear_at: dict[Key, datetime] = {}

    def note(self, event: Event) -> None:
        """A state that was said on the bus; an older one than the last is ignored."""
        self._set((event.subject, event.subject_id), event)

    def _set(self, key: Key, event: Event) -> None:
        last = self._last.get(key)
        # An event may repeat a number, but its sequence tells which is newer.
        if last is not None and (last.event_id, last.sequence) >= (event.event_id, event.sequence):
            return
        self._last[key] = _Retained(
            payload=event.text.encode(), event_id=event.event_id, sequence=event.sequence
        )
        ended = ended_at(event)
        if ended is None:
            self._clear_at.pop(key, None)
        else:
            self._clear_at[key] = ended + self._keep

    def forget_all(self) -> None:
        """Know nothing, as at first."""
        self._last.clear()
        self._clear_at.clear()

    async def load(self) -> None:
        """Take in what was last said of hosts, of what goes on and of what ended lately."""
        active = [
            *((Subject.HOST, each.host) for each in self._queries.hosts()),
            *((Subject.MIGRATION, each.id) for each in self._queries.active_migrations()),
            *((Subject.EVACUATION, each.id) for each in self._queries.active_evacuations()),
        ]
        try:
            for key in active:
                await self._recall(key)
            async for key in self._lately():
                await self._recall(key)
        except JournalError as error:
            # Those are not published anew should the broker have lost them; nothing that it has is cleared for that.
            _log.warning("recent states unknown", error=str(error))

    async def _recall(self, key: Key) -> None:
        if key in self._last:
            return
        event = await self._queries.last_state(*key)
        # Meanwhile something newer may have been said.
        if event is not None and key not in self._last:
            self._set(key, event)

    async def _lately(self) -> AsyncIterator[Key]:
        for subject, pages in (
            (Subject.MIGRATION, self._queries.migrations),
            (Subject.EVACUATION, self._queries.evacuations),
        ):
            before, wanted = None, True
            while wanted:
                wanted = False
                page: Sequence[MigrationDocument | EvacuationDocument] = await pages(
                    limit=_PAGE, before=before
                )
                for document in page:
                    before = document.id
                    if document.ended_at is None:
                        wanted = True
                    elif document.ended_at + self._keep > self._now():
                        wanted = True
                        yield subject, document.id
                wanted = wanted and len(page) == _PAGE

    def forget_hosts(self) -> list[Outgoing]:
        """Forget hosts that are no more; the messages that make the broker forget them."""
        known = {each.host for each in self._queries.hosts()}
        gone = [key for key in self._last if key[0] is Subject.HOST and key[1] not in known]
        for key in gone:
            del self._last[key]
        topics = [self._topics.about(*key, "state") for key in gone]
        return [clearing(topic) for topic in topics if topic is not None]

    async def differences(
        self, retained: Mapping[str, bytes], *, waits: Callable[[str], bool]
    ) -> list[Outgoing]:
        """Return the messages that make the broker's retained states right, to be queued at once.

        :param retained: what it has, by topic.
        :param waits: whether a newer state for that topic waits to be published anyway.
        """
        stale = [
            (topic, whose)
            for topic, payload in retained.items()
            if payload and (whose := self._topics.whose_state(topic)) is not None and await self._stale(whose)
        ]
        # Nothing is waited for from here on: what is newer by then waits, or is the last that is known.
        messages, overdue = [], set(self.overdue())
        for key, last in self._last.items():
            topic = self._topics.about(*key, "state")
            if topic is None or waits(topic) or key in overdue:
                continue
            if topic in retained and _same(retained[topic], last):
                continue
            messages.append(
                Outgoing(priority=Priority.CORRECTION, topic=topic, payload=last.payload, retain=True)
            )
        for topic, whose in stale:
            if not waits(topic) and (whose not in self._last or whose in overdue):
                messages.append(clearing(topic))
        return messages

    def overdue(self) -> list[Key]:
        """Return the subjects that have ended long ago."""
        now = self._now()
        return [key for key, when in self._clear_at.items() if when <= now]

    def clear(self) -> list[Outgoing]:
        """Forget what has ended long ago; the messages that make the broker forget it."""
        messages = []
        for key in self.overdue():
            self._last.pop(key, None)
            del self._clear_at[key]
            topic = self._topics.about(*key, "state")
            if topic is not None:
                messages.append(clearing(topic))
        return messages

    async def _stale(self, key: Key) -> bool:
        if key in self._last:
            return self._clear_at.get(key, self._now() + self._keep) <= self._now()
        subject, subject_id = key
        if subject is Subject.HOST:
            return self._queries.host(subject_id) is None
        find: Callable[[str], Awaitable[MigrationDocument | EvacuationDocument | None]] = (
            self._queries.migration if subject is Subject.MIGRATION else self._queries.evacuation
        )
        try:
            document = await find(subject_id)
        except JournalError as error:
            _log.warning("retained state not checked", subject=subject_id, error=str(error))
            return False
        if document is None:
            return True
        return document.ended_at is not None and document.ended_at + self._keep <= self._now()


def clearing(topic: str) -> Outgoing:
    """Makes the broker forget what it has retained there."""
    return Outgoing(priority=Priority.CORRECTION, topic=topic, payload=b"", retain=True)


def ended_at(event: Event) -> datetime | None:
    """Return when the migration or evacuation ended that a state is about; ``None`` while it goes on."""
    match event:
        case MigrationStateChanged(migration=document) | EvacuationStateChanged(evacuation=document):
            return document.ended_at
    return None


def is_stateful(event: Event) -> bool:
    """Return whether an event is a state that is retained."""
    return isinstance(event, MigrationStateChanged | EvacuationStateChanged | HostStateChanged)


def _same(payload: bytes, last: _Retained) -> bool:
    if payload == last.payload:
        return True
    try:
        there = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    if not isinstance(there, dict) or there.get("sequence") != last.sequence:
        return False
    return bool(there.get("body") == json.loads(last.payload)["body"])
