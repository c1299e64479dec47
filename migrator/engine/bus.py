"""Where the engine says what happens, and whoever wants to hear it listens: journal, HTTP, MQTT, metrics."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from migrator.api.events import EventDocument, EventKind, Subject

#: More than this unheard means that nobody listens: the oldest go, and the gap shows in ``event_id``.
_QUEUE_EVENTS = 10_000
#: Commands whose sequence is kept. All that is ever said of one comes soon; nobody says when it was the last.
_COMMANDS = 10_000

#: Is told an event; returns at once and never raises.
Hears = Callable[[EventDocument], None]


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
    """Numbers events and hands them to everyone who listens, in order.

    Some hear at once (the journal itself, metrics). What leaves the process is for those who hear `journalled` ones:
    an event, and all that follow it, once :meth:`journalled` was told so of its number. As long as nobody ever calls
    that there is no journal to wait for.

    :param last_event_id: the last that was ever given.
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
        self._last = self._told = last_event_id
        self._sequences = dict(sequences or {})
        self._told_sequences = dict(self._sequences)
        self._now = now
        self._at_once: list[Hears] = []
        self._listening = 0
        self._when_journalled: list[Hears] = []
        self._journalled: float = math.inf
        self._waiting: deque[EventDocument] = deque()
        self._commands = deque(one for subject, one in self._sequences if subject is Subject.COMMAND)

    def publish(
        self, kind: EventKind, subject: Subject, subject_id: str, body: Mapping[str, Any]
    ) -> EventDocument:
        """Say it; returns at once. Those who hear at once have, in the order in which they came."""
        key = (subject, subject_id)
        if kind is not EventKind.PROGRESS:
            self._last += 1
            self._sequences[key] = self._sequences.get(key, 0) + 1
            if subject is Subject.COMMAND and self._sequences[key] == 1:
                self._new_command(subject_id)
        event = EventDocument(
            event_id=self._last,
            sequence=self._sequences.get(key, 0),
            time=self._now(),
            kind=kind,
            subject=subject,
            subject_id=subject_id,
            body=dict(body),
        )
        for hear in tuple(self._at_once):
            hear(event)
        # Progress too: it must not overtake the state whose number it repeats.
        self._waiting.append(event)
        self._tell()
        return event

    def journalled(self, upto: int | None) -> None:
        """The journal has every event up to and with this number; later ones wait. ``None``: none waits any more."""
        self._journalled = math.inf if upto is None else upto
        self._tell()

    def _new_command(self, command: str) -> None:
        self._commands.append(command)
        while len(self._commands) > _COMMANDS:
            self.forget(Subject.COMMAND, self._commands.popleft())

    def _tell(self) -> None:
        while self._waiting and self._waiting[0].event_id <= self._journalled:
            event = self._waiting.popleft()
            if event.kind is not EventKind.PROGRESS:
                self._told = event.event_id
                if (event.subject, event.subject_id) in self._sequences:
                    self._told_sequences[event.subject, event.subject_id] = event.sequence
            for hear in tuple(self._when_journalled):
                hear(event)

    def call(self, callback: Hears, *, journalled: bool = False) -> None:
        """Call `callback` with every event from now on; it must return at once and never raise.

        :param journalled: only once the journal has it.
        """
        (self._when_journalled if journalled else self._at_once).append(callback)

    def forget(self, subject: Subject, subject_id: str) -> None:
        """Nothing more will be said about it."""
        self._sequences.pop((subject, subject_id), None)
        self._told_sequences.pop((subject, subject_id), None)

    @property
    def last_event_id(self) -> int:
        """Of the last counted event that the journal has; who begins to hear journalled ones gets all larger ones."""
        return self._told

    def sequence(self, subject: Subject, subject_id: str) -> int:
        """Of the last counted event of that subject that the journal has; 0 where none is known."""
        return self._told_sequences.get((subject, subject_id), 0)

    def listening(self) -> int:
        """How many listen."""
        return self._listening

    @contextmanager
    def listen(self, *, journalled: bool = False) -> Iterator[Listener]:
        """A :class:`Listener` of every event from now on, for as long as the block lasts; see :meth:`call`."""
        listener = Listener()
        hearing = self._when_journalled if journalled else self._at_once
        hearing.append(listener.put)
        self._listening += 1
        try:
            yield listener
        finally:
            hearing.remove(listener.put)
            self._listening -= 1
