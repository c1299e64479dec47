"""Receipts for what the broker has delivered, in the order in which it came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from migrator.mqtt.connection import BrokerConnection, Received


def nothing() -> None:
    """Stand for a receipt that nobody waits for."""


class Receipts:
    """Acknowledges what was received, in the order in which it was, as MQTT demands.

    :ivar given: how many it has acknowledged.
    """

    def __init__(self, connection: BrokerConnection) -> None:
        self._connection = connection
        self._open: deque[Received] = deque()
        self._done: set[Received] = set()
        self._changed = asyncio.Event()
        self.given = 0

    def expect(self, received: Received) -> Callable[[], None]:
        """Return the function to call when all is done that a message asks for."""
        if not received.qos:
            return nothing  # the broker waits for none
        self._open.append(received)
        self._changed.set()

        def done() -> None:
            self._done.add(received)
            while self._open and self._open[0] in self._done:
                self._done.discard(self._open[0])
                self._connection.acknowledge(self._open.popleft())
                self.given += 1
            self._changed.set()

        return done

    async def none_for(self, seconds: float) -> None:
        """Wait until nothing has been received for so long, and all was acknowledged."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                if not self._open:
                    return
