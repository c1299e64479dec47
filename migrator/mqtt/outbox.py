"""Queues of messages to publish: in order, within bounds, each kept until the broker has taken it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from migrator.api.events import Event


class Priority(IntEnum):
    """Priority of a message, the most urgent first. Within a priority the order is kept."""

    #: Somebody waits for it.
    REPLY = 0
    #: Retained state that the broker has wrong: older than every event that waits.
    CORRECTION = 1
    #: States and decisions, as they happened.
    EVENT = 2
    #: Dropped while nobody can take it.
    PROGRESS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Outgoing:
    """One message."""

    priority: Priority
    topic: str
    #: An event is written out when its turn comes.
    payload: bytes | Event
    retain: bool = False
    correlation: bytes | None = None
    #: Called once the broker has taken it.
    then: Callable[[], None] | None = None

    @property
    def qos(self) -> int:
        """0 only where the next one makes up for it."""
        return 0 if self.priority is Priority.PROGRESS else 1

    @property
    def data(self) -> bytes:
        """The payload as it travels."""
        if isinstance(self.payload, bytes):
            return self.payload
        return self.payload.text.encode()


class Outbox:
    """Queues by priority, of `limit` messages each; the oldest is dropped for a new one.

    Progress is kept as the latest of each migration, goes out at most once in `interval` seconds, and only while
    :meth:`opened`.
    """

    def __init__(self, *, limit: int, interval: float) -> None:
        self._limit = limit
        self._interval = interval
        self._queues: dict[Priority, deque[Outgoing]] = {
            priority: deque() for priority in (Priority.REPLY, Priority.CORRECTION, Priority.EVENT)
        }
        #: How many states wait or are on their way, by topic.
        self._states: Counter[str] = Counter()
        self._progress: dict[str, Outgoing] = {}
        self._sent_at: dict[str, float] = {}
        self._open = False
        self._wake = asyncio.Event()
        self._taken: set[Outgoing] = set()
        self._taken_less = asyncio.Event()
        #: Messages that were dropped because too many waited.
        self.dropped = 0

    def opened(self) -> None:
        """There is a broker."""
        self._open = True

    def closed(self) -> None:
        """There is none: what was only of use now is forgotten."""
        self._open = False
        self._progress.clear()
        self._sent_at.clear()
        while self._queues[Priority.CORRECTION]:
            self._forget(self._queues[Priority.CORRECTION].popleft())

    def put(self, outgoing: Outgoing) -> None:
        """Never blocks."""
        if outgoing.priority is Priority.PROGRESS:
            if not self._open:
                return
            self._progress[outgoing.topic] = outgoing
        else:
            queue = self._queues[outgoing.priority]
            queue.append(outgoing)
            if outgoing.retain:
                self._states[outgoing.topic] += 1
            self._trim(queue)
        self._wake.set()

    def put_back(self, outgoing: Iterable[Outgoing]) -> None:
        """The broker may not have taken these, oldest first: they go out again before everything of their priority."""
        for each in reversed(list(outgoing)):
            self._taken.discard(each)
            if each.priority in (Priority.REPLY, Priority.EVENT):
                self._queues[each.priority].appendleft(each)
            else:
                self._forget(each)
        for queue in self._queues.values():
            self._trim(queue)
        self._wake.set()
        self._taken_less.set()

    def done(self, outgoing: Outgoing) -> None:
        """The broker has taken it."""
        self._forget(outgoing)
        self._taken.discard(outgoing)
        self._taken_less.set()
        if outgoing.then is not None:
            outgoing.then()

    def waits(self, topic: str) -> bool:
        """Return whether a state for that topic waits or is on its way."""
        return self._states[topic] > 0

    @property
    def waiting(self) -> int:
        """Messages that the broker has not taken yet, progress left out."""
        return len(self._taken) + sum(map(len, self._queues.values()))

    @property
    def first_event_id(self) -> int | None:
        """Number of the first event that the broker has not taken yet; ``None``: it has all of them."""
        queued = self._queues[Priority.EVENT]
        numbers = [
            each.payload.event_id
            for each in (*self._taken, *([queued[0]] if queued else ()))
            if each.priority is Priority.EVENT and isinstance(each.payload, Event)
        ]
        return min(numbers, default=None)

    async def drained(self) -> None:
        """Returns once everything but progress has gone, and the broker has it."""
        while self._taken or any(self._queues.values()):
            self._taken_less.clear()
            await self._taken_less.wait()

    def _next(self) -> Outgoing | None:
        for queue in self._queues.values():
            if queue:
                return queue.popleft()
        now = asyncio.get_running_loop().time()
        for topic, outgoing in self._progress.items():
            if now - self._sent_at.get(topic, -self._interval) >= self._interval:
                self._sent_at[topic] = now
                del self._progress[topic]
                return outgoing
        return None

    async def get(self) -> Outgoing:
        """Wait for the next one; to be followed by :meth:`done` or :meth:`put_back`."""
        while True:
            self._wake.clear()
            outgoing = self._next()
            if outgoing is not None:
                self._taken.add(outgoing)
                return outgoing
            try:
                async with asyncio.timeout(self._interval / 4 if self._progress else None):
                    await self._wake.wait()
            except TimeoutError:
                pass  # some progress may be due

    def ended(self, topic: str) -> None:
        """No more progress is said there."""
        self._progress.pop(topic, None)
        self._sent_at.pop(topic, None)

    def forget_events(self) -> None:
        """States, decisions and progress that wait are not published."""
        for priority in (Priority.CORRECTION, Priority.EVENT):
            while self._queues[priority]:
                self._forget(self._queues[priority].popleft())
        self._progress.clear()

    def _trim(self, queue: deque[Outgoing]) -> None:
        while len(queue) > self._limit:
            self._forget(queue.popleft())
            self.dropped += 1

    def _forget(self, outgoing: Outgoing) -> None:
        if outgoing.retain:
            self._states[outgoing.topic] -= 1
            if self._states[outgoing.topic] <= 0:
                del self._states[outgoing.topic]
