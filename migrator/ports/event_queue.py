"""The queue in which somebody who listens finds events; the same in every process that has any."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from migrator.api.events import Event

#: More than this unheard means that nobody listens: the oldest go, and the gap shows in ``event_id``.
_QUEUE_EVENTS = 10_000


class QueuedListener:
    """See :class:`migrator.ports.queries.Listener`: a bounded queue, to be iterated over until it is closed."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_QUEUE_EVENTS)
        self._there = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        """Queue an event; never blocks, as the oldest is dropped where there is no room."""
        self._events.append(event)
        self._there.set()

    def close(self) -> None:
        """End the iteration once what is there has been taken."""
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
