"""The event bus: the engine publishes what happens, and journal, HTTP, MQTT, metrics and traces subscribe to it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypeVar

from migrator.api.events import Event, EventKind, Subject
from migrator.ports.event_queue import QueuedListener

#: Commands whose sequence is kept. All that is ever said of one comes soon; nobody says when it was the last.
_COMMANDS = 10_000

#: Takes an event; returns at once and never raises.
Subscriber = Callable[[Event], None]

_Published = TypeVar("_Published", bound=Event)


class EventBus:
    """Numbers events and delivers them to every subscriber, in order.

    Some subscribers get an event at once (the journal itself, metrics). What leaves the process is for subscribers of
    `journalled` events: they get an event, and those that follow it, once :meth:`mark_journalled` was called with its
    place. As long as nobody ever calls that there is no journal to wait for.

    :param last_event_id: the last that was ever given.
    :param numbered_by_journal: several controllers share the journal, which gives each event its number when it is
        written. Until then it has 0; one that has to be told before repeats the number of the last.
    :param sequences: the last sequence of every subject that may go on, by ``(subject, id)``.
    :param now: the clock of events; only tests need another.
    """

    def __init__(
        self,
        *,
        last_event_id: int = 0,
        sequences: Mapping[tuple[Subject, str], int] | None = None,
        numbered_by_journal: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.numbered_by_journal = numbered_by_journal
        #: Place of the last counted event that was published: its number, unless the journal gives that.
        self.place = self._delivered = last_event_id
        self._sequences = dict(sequences or {})
        self._delivered_sequences = dict(self._sequences)
        self._now = now
        self._immediate: list[Subscriber] = []
        self._listeners = 0
        self._after_journal: list[Subscriber] = []
        self._journalled: float = math.inf
        #: Each with its place; progress has that of the event before it.
        self._undelivered: deque[tuple[int, Event]] = deque()
        self._commands = deque(one for subject, one in self._sequences if subject is Subject.COMMAND)

    def publish(self, event: _Published) -> _Published:
        """Number an event and deliver it; returns at once. Immediate subscribers have it then, in order of arrival."""
        key = (event.subject, event.subject_id)
        if event.kind is not EventKind.PROGRESS:
            self.place += 1
            self._sequences[key] = self._sequences.get(key, 0) + 1
            if event.subject is Subject.COMMAND and self._sequences[key] == 1:
                self._new_command(event.subject_id)
        number = 0 if self.numbered_by_journal else self.place
        event = event.published(event_id=number, sequence=self._sequences.get(key, 0), time=self._now())
        for subscriber in tuple(self._immediate):
            subscriber(event)
        # Progress too: it must not overtake the state whose number it repeats.
        self._undelivered.append((self.place, event))
        self._deliver({})
        return event

    def mark_journalled(self, up_to: int | None, numbers: Mapping[int, int] = MappingProxyType({})) -> None:
        """Deliver events up to and with this place, which the journal has; later ones wait. ``None``: none waits.

        :param numbers: by place, of events that the journal has given one.
        """
        self._journalled = math.inf if up_to is None else up_to
        self._deliver(numbers)

    def _new_command(self, command: str) -> None:
        self._commands.append(command)
        while len(self._commands) > _COMMANDS:
            self.forget(Subject.COMMAND, self._commands.popleft())

    def _deliver(self, numbers: Mapping[int, int]) -> None:
        while self._undelivered and self._undelivered[0][0] <= self._journalled:
            place, event = self._undelivered.popleft()
            if event.kind is not EventKind.PROGRESS:
                number = numbers.get(place, 0) if self.numbered_by_journal else event.event_id
                self._delivered = number or self._delivered
                event = event if event.event_id else event.with_number(number, after=self._delivered)
                if (event.subject, event.subject_id) in self._sequences:
                    self._delivered_sequences[event.subject, event.subject_id] = event.sequence
            elif self.numbered_by_journal:
                event = event.with_number(0, after=self._delivered)
            for subscriber in tuple(self._after_journal):
                subscriber(event)

    def subscribe(self, callback: Subscriber, *, journalled: bool = False) -> None:
        """Call `callback` with every event from now on; it must return at once and never raise.

        :param journalled: only once the journal has it.
        """
        (self._after_journal if journalled else self._immediate).append(callback)

    def forget(self, subject: Subject, subject_id: str) -> None:
        """Drop the sequence of a subject about which nothing more will be published."""
        self._sequences.pop((subject, subject_id), None)
        self._delivered_sequences.pop((subject, subject_id), None)

    def resume(self, sequences: Mapping[tuple[Subject, str], int]) -> None:
        """Go on with subjects that another controller has published events of; see the parameter of that name."""
        for key, sequence in sequences.items():
            self._sequences[key] = self._delivered_sequences[key] = sequence

    @property
    def last_event_id(self) -> int:
        """Return the number of the last counted event delivered as journalled; a new listener gets all larger ones."""
        return self._delivered

    def sequence(self, subject: Subject, subject_id: str) -> int:
        """Return the sequence of a subject's last counted event that was delivered as journalled; 0: none is known."""
        return self._delivered_sequences.get((subject, subject_id), 0)

    def listening(self) -> int:
        """Return how many listeners there are."""
        return self._listeners

    @contextmanager
    def listen(self, *, journalled: bool = False) -> Iterator[QueuedListener]:
        """Queue every event from now on, for as long as the block lasts; see :meth:`subscribe`."""
        listener = QueuedListener()
        subscribers = self._after_journal if journalled else self._immediate
        subscribers.append(listener.put)
        self._listeners += 1
        try:
            yield listener
        finally:
            subscribers.remove(listener.put)
            self._listeners -= 1
