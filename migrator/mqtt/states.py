"""What the broker shall have retained: the last state of everything that has not long ended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from migrator import logs
from migrator.api.documents import EvacuationDocument, MigrationDocument
from migrator.api.events import EventDocument, EventKind, Subject
from migrator.engine.reading import Reading
from migrator.errors import JournalError
from migrator.mqtt.outbox import Outgoing, Rank
from migrator.mqtt.topics import STATEFUL, Topics

#: Documents asked for at a time. So many in a row without one to retain, and older ones are not looked at.
_PAGE = 200

_log = logs.logger(interface="mqtt")

Key = tuple[Subject, str]


class States:
    """Keeps the last state of each subject, and says what is wrong with what a broker has.

    :param keep: how long the state of what has ended stays.
    """

    def __init__(
        self, *, reading: Reading, topics: Topics, keep: timedelta, now: Callable[[], datetime]
    ) -> None:
        self._reading = reading
        self._topics = topics
        self._keep = keep
        self._now = now
        self._events: dict[Key, EventDocument] = {}
        self._clear_at: dict[Key, datetime] = {}

    def note(self, event: EventDocument) -> None:
        """A state that was said on the bus."""
        self._set((event.subject, event.subject_id), event)

    def _set(self, key: Key, event: EventDocument) -> None:
        self._events[key] = event
        ended = ended_at(event.body)
        if ended is None:
            self._clear_at.pop(key, None)
        else:
            self._clear_at[key] = ended + self._keep

    async def load(self) -> None:
        """Take in what was last said of what goes on and of what ended lately, before there was anyone to note it.

        Hosts are told of anew by every service, as soon as it has looked at them.
        """
        active = [
            *((Subject.MIGRATION, each.id) for each in self._reading.active_migrations()),
            *((Subject.EVACUATION, each.id) for each in self._reading.active_evacuations()),
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
        if key in self._events:
            return
        event = await self._last_event(key)
        # Meanwhile something newer may have been said.
        if event is not None and key not in self._events:
            self._set(key, event)

    async def _lately(self) -> AsyncIterator[Key]:
        for subject, pages in (
            (Subject.MIGRATION, self._reading.migrations),
            (Subject.EVACUATION, self._reading.evacuations),
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
        known = {each.host for each in self._reading.hosts()}
        gone = [key for key in self._events if key[0] is Subject.HOST and key[1] not in known]
        for key in gone:
            del self._events[key]
        topics = [self._topics.about(*key, "state") for key in gone]
        return [clearing(topic) for topic in topics if topic is not None]

    async def differences(
        self, retained: Mapping[str, bytes], *, waits: Callable[[str], bool]
    ) -> list[Outgoing]:
        """What must be published so that the broker has it right.

        :param retained: what it has, by topic.
        :param waits: whether a newer state for that topic waits to be published anyway.
        """
        messages, overdue = [], set(self.overdue())
        for key, event in list(self._events.items()):
            topic = self._topics.about(*key, "state")
            if topic is None or waits(topic) or key in overdue:
                continue
            if topic in retained and _same(retained[topic], event):
                continue
            messages.append(Outgoing(rank=Rank.TRUTH, topic=topic, payload=event, retain=True))
        for topic, payload in retained.items():
            whose = self._topics.whose_state(topic)
            if whose is not None and payload and not waits(topic) and await self._stale(whose):
                messages.append(clearing(topic))
        return messages

    def overdue(self) -> list[Key]:
        """What has ended long ago."""
        now = self._now()
        return [key for key, when in self._clear_at.items() if when <= now]

    def clear(self) -> list[Outgoing]:
        """Forget what has ended long ago; the messages that make the broker forget it."""
        messages = []
        for key in self.overdue():
            self._events.pop(key, None)
            del self._clear_at[key]
            topic = self._topics.about(*key, "state")
            if topic is not None:
                messages.append(clearing(topic))
        return messages

    async def _stale(self, key: Key) -> bool:
        if key in self._events:
            return self._clear_at.get(key, self._now() + self._keep) <= self._now()
        subject, subject_id = key
        if subject is Subject.HOST:
            return self._reading.host(subject_id) is None
        find: Callable[[str], Awaitable[MigrationDocument | EvacuationDocument | None]] = (
            self._reading.migration if subject is Subject.MIGRATION else self._reading.evacuation
        )
        try:
            document = await find(subject_id)
        except JournalError as error:
            _log.warning("retained state not checked", subject=subject_id, error=str(error))
            return False
        if document is None:
            return True
        return document.ended_at is not None and document.ended_at + self._keep <= self._now()

    async def _last_event(self, key: Key) -> EventDocument | None:
        """The journalled event that told of its last state; nothing is said of it that is not journalled."""
        after, last = 0, None
        while True:
            page = await self._reading.events(after=after, limit=1000, subject=key[0], subject_id=key[1])
            for event in page:
                after = event["event_id"]
                if event["kind"] == EventKind.STATE:
                    last = event
            if len(page) < 1000:
                break
        return EventDocument.model_validate(last) if last else None


def clearing(topic: str) -> Outgoing:
    """Makes the broker forget what it has retained there."""
    return Outgoing(rank=Rank.TRUTH, topic=topic, payload=b"", retain=True)


def ended_at(body: Mapping[str, Any]) -> datetime | None:
    """When the migration or evacuation ended that a state is about."""
    value = body.get("ended_at")
    return datetime.fromisoformat(value) if isinstance(value, str) and value else value or None


def is_stateful(event: EventDocument) -> bool:
    """Whether it is a state that is retained."""
    return event.kind is EventKind.STATE and event.subject in STATEFUL


def _same(payload: bytes, event: EventDocument) -> bool:
    try:
        there = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    here = event.model_dump(mode="json")
    return isinstance(there, dict) and all(there.get(name) == here[name] for name in ("sequence", "body"))
