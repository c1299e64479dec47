"""Watch over this process itself: one that was stopped for a while must not judge others by the time it missed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

#: The loop is asked so often whether it runs, and one that is late by more was away.
_TICK_SECONDS, _LATE_SECONDS = 0.5, 1.0


class _Watch:
    """Notes for how long nothing of this process ran, for all of one loop that want to know it."""

    def __init__(self) -> None:
        self._readers = 0
        self._missed, self._at = 0.0, -math.inf
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        self._readers += 1
        if self._timer is None:
            self._at = loop.time()
            self._timer = loop.call_later(_TICK_SECONDS, self._tick, loop)

    def leave(self) -> None:
        self._readers -= 1

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.missed(loop)
        self._timer = loop.call_later(_TICK_SECONDS, self._tick, loop) if self._readers else None

    def missed(self, loop: asyncio.AbstractEventLoop) -> float:
        """Return the seconds that were missed until now, of all in which somebody wanted to know it."""
        now = loop.time()
        late = now - self._at - _TICK_SECONDS
        self._missed += late if late > _LATE_SECONDS else 0.0
        self._at = now
        return self._missed


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = WeakKeyDictionary()


class Absence:
    """``with Absence() as away:`` and :attr:`seconds` is for how long nothing of this process ran meanwhile."""

    def __enter__(self) -> Self:
        self._loop = loop = asyncio.get_running_loop()
        watch = _watches.get(loop)
        if watch is None:
            watch = _watches[loop] = _Watch()
        self._watch = watch
        watch.enter(loop)
        self._before = watch.missed(loop)
        self._in_all: float | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_all = self.seconds
        self._watch.leave()

    @property
    def seconds(self) -> float:
        """Until now, or the end of the block."""
        if self._in_all is not None:
            return self._in_all
        return self._watch.missed(self._loop) - self._before


class AwakeTimer:
    """Calls `callback` once this process has run for `seconds`; time in which it was stopped does not count.

    After a stop whatever was due meanwhile has its turn first.
    """

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self._left, self._callback = seconds, callback
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time()
        self._arm()

    def cancel(self) -> None:
        """Do not call it any more."""
        self._timer.cancel()

    def _arm(self) -> None:
        self._step = min(_TICK_SECONDS, max(0.0, self._left))
        self._timer = self._loop.call_later(self._step, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        passed = now - self._at
        # Of a gap no more counts than the tick that it began in.
        self._left -= passed if passed - self._step <= _LATE_SECONDS else self._step
        self._at = now
        if self._left <= 0.001:
            self._callback()
        else:
            self._arm()


class timeout_while_awake:  # noqa: N801 - it is used like asyncio.timeout
    """A timeout like :func:`asyncio.timeout` that does not count the time in which this process did not run."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._timer = AwakeTimer(self._seconds, lambda: self._timeout.reschedule(loop.time()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)
