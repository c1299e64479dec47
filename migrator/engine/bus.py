"""Where the engine says what happens, and whoever wants to hear it listens: journal, HTTP, MQTT, metrics."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from migrator.engine.documents import EventDocument, EventKind, Subject

#: More than this unheard means that nobody listens: the oldest go, and the gap shows in ``event_id``.
_QUEUE_EVENTS = 10_000


class Listener:
    """A bounded queue of events; iterate over it until it is closed."""

    def __init__(self) -> None:
        self._events: deque[EventDocument] = deque(maxlen=_QUEUE_EVENTS)
        self._there = asyncio.Event()
        self._closed = False

    def put(self, event: EventDocument) -> None:
        """Never blocks."""
        self._events.append(event)
        self._there.set()

    def close(self) -> None:
        """End the iteration once what is there has been taken."""
        self._closed = True
        self._there.set()

    async def __aiter__(self) -> AsyncIterator[EventDocument]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._closed:
                return
            self._there.clear()
            await self._there.wait()


class Bus:
    """Numbers events and hands them to everyone who listens.

    :param last_event_id: the last that the journal holds.
    :param sequences: the last sequence of every subject that may go on, by ``(subject, id)``.
    :param now: the clock of events; only tests need another.
    """

    def __init__(
        self,
        *,
        last_event_id: int = 0,
        sequences: Mapping[tuple[Subject, str], int] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._last = last_event_id
        self._sequences = dict(sequences or {})
        self._now = now
        self._listeners: list[Listener] = []
        self._callbacks: list[Callable[[EventDocument], None]] = []

    def publish(
        self, kind: EventKind, subject: Subject, subject_id: str, body: Mapping[str, Any]
    ) -> EventDocument:
        """Say it; returns at once. Callbacks have run when this returns, in the order they were added."""
        key = (subject, subject_id)
        if kind is not EventKind.PROGRESS:
            self._last += 1
            self._sequences[key] = self._sequences.get(key, 0) + 1
        event = EventDocument(
            event_id=self._last,
            sequence=self._sequences.get(key, 0),
            time=self._now(),
            kind=kind,
            subject=subject,
            subject_id=subject_id,
            body=dict(body),
        )
        for callback in self._callbacks:
            callback(event)
        for listener in self._listeners:
            listener.put(event)
        return event

    def call(self, callback: Callable[[EventDocument], None]) -> None:
        """Call `callback` with every event from now on; it must return at once and never raise."""
        self._callbacks.append(callback)

    def forget(self, subject: Subject, subject_id: str) -> None:
        """Nothing more will be said about it."""
        self._sequences.pop((subject, subject_id), None)

    @property
    def last_event_id(self) -> int:
        """Of the last event that was counted; whoever begins to listen now gets all that are larger."""
        return self._last

    def sequence(self, subject: Subject, subject_id: str) -> int:
        """Of the last counted event of that subject; 0 where none is known."""
        return self._sequences.get((subject, subject_id), 0)

    def listening(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @contextmanager
    def listen(self) -> Any:
        """A :class:`Listener` of every event from now on, for as long as the block lasts."""
        listener = Listener()
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)
