"""The network between a simulated process and the places that it talks to: it has latency, and it can be cut.

What was sent is on its way whatever becomes of the sender: it arrives, and is carried out, while that is frozen or
after it was killed.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

T = TypeVar("T")

#: ``silent``: what is sent waits, and arrives later. ``refused``: the sender is told at once.
Cut = Literal["silent", "refused"]


class Lost(Exception):
    """A message that was sent, or its answer, did not arrive; it may have been carried out.

    :ivar sent: it cannot be ruled out that it was.
    """

    def __init__(self, *, sent: bool) -> None:
        super().__init__("lost on its way")
        self.sent = sent


def elsewhere(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Begin work that belongs to no process."""
    return asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())


class Wire:
    """The connections of one process; it lives as long as that does.

    :ivar cut: places that cannot be reached now.
    :ivar over: everything fails from now on; at the end of a test.
    """

    def __init__(self, *, latency: Callable[[], float]) -> None:
        self.cut: dict[str, Cut] = {}
        self.over = False
        self._latency = latency
        self._healed = asyncio.Event()

    def heal(self, place: str) -> None:
        """Let what is sent to a place arrive again; what waits on a connection that is still open arrives now."""
        self.cut.pop(place, None)
        self._healed.set()
        self._healed = asyncio.Event()

    async def call(
        self,
        place: str,
        work: Callable[[], Awaitable[T]],
        *,
        seconds: float,
        open_still: Callable[[], bool] | None = None,
        lock: asyncio.Lock | None = None,
    ) -> T:
        """Have `work` done at `place`.

        :param seconds: how long the answer is waited for.
        :param open_still: whether the connection is still open: what waits is lost once it is not.
        :param lock: of a connection on which everything arrives in order.
        :raise Lost: it cannot be reached, or does not answer in time.
        """
        if self.over:
            raise asyncio.CancelledError
        if self.cut.get(place) == "refused":
            await asyncio.sleep(self._latency())
            raise Lost(sent=False)
        task = elsewhere(self._carried(place, work, open_still, lock or asyncio.Lock()), f"call to {place}")
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if self.over:
            raise asyncio.CancelledError
        if not done:
            raise Lost(sent=True)
        return task.result()

    async def _carried(
        self,
        place: str,
        work: Callable[[], Awaitable[T]],
        open_still: Callable[[], bool] | None,
        lock: asyncio.Lock,
    ) -> T:
        async with lock:
            await asyncio.sleep(self._latency())
            while place in self.cut:
                await self._healed.wait()
            if open_still is not None and not open_still():
                raise Lost(sent=True)
            answer = await work()
        await asyncio.sleep(self._latency())
        while place in self.cut:
            await self._healed.wait()
        if open_still is not None and not open_still():
            raise Lost(sent=True)
        return answer
