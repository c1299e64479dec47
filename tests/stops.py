"""Lives of the engine that end at a chosen instant: killed, or asked to stop, at any call to what is outside of it.

Every call of the site, of a QEMU, of the journal and of a record is two instants: before it has done anything, and
after it has, when its answer has not been heard yet. After a kill nothing of that life does anything any more.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from migrator.engine.controller import Engine
from migrator.testing.simulated_service import LATENCY_SECONDS, SimulatedService
from migrator.testing.simulated_site import SimulatedSite

#: Of a call that is made again and again these are instants; the others look like them.
_TIMES = 3
_OFTEN = ("observe", "look", "round_trip", "dirty_rate")


class Life:
    """Counts instants, and ends at one of them.

    :param end_at: number of the instant; ``None``: never.
    :param kill: then nothing is done any more; else :attr:`asked` is set.
    """

    def __init__(self, end_at: int | None = None, *, kill: bool = True) -> None:
        self.end_at, self.kill = end_at, kill
        self.instants: list[str] = []
        self.dead = False
        self.asked = asyncio.Event()
        self._calls: Counter[str] = Counter()

    def at(self, instant: str, *, counted: bool = True) -> None:
        """:raise CancelledError: this life has ended."""
        if self.dead:
            raise asyncio.CancelledError
        if not counted:
            return
        self.instants.append(instant)
        if len(self.instants) == self.end_at:
            self.asked.set()
            if self.kill:
                self.dead = True
                raise asyncio.CancelledError

    def counts(self, name: str) -> bool:
        """Whether this call is an instant."""
        self._calls[name] += 1
        return self._calls[name] <= _TIMES or not name.endswith(_OFTEN)


class Outside:
    """Stands before something outside: all that is asked of it goes by :meth:`Life.at`."""

    def __init__(self, inner: Any, life: Life, name: str) -> None:
        self._inner, self._life, self._name = inner, life, name

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if inspect.iscoroutinefunction(found):
            return functools.partial(self._call, name, found)
        if name in ("note_behind", "create") and callable(found):
            return functools.partial(self._call_at_once, name, found)
        if name == "release" and self._name == "records":
            return lambda record: found(_inner(record))
        if name == "qemu":
            return Outside(found, self._life, "qemu")
        return found

    async def _call(self, name: str, what: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        called = f"{self._name}.{name}"
        counted = self._life.counts(called)
        self._life.at(called, counted=counted)
        if self._name == "journal":
            await asyncio.sleep(LATENCY_SECONDS)  # while it is asked for, and not while a test looks into it
        answer = await what(*[_inner(each) for each in args], **kwargs)
        self._life.at(f"{called}, done", counted=counted)
        if name == "take_up" and self._name == "records" and answer is not None:
            return (Outside(answer[0], self._life, "record"), *answer[1:])
        return _wrapped(answer, self._life)

    def _call_at_once(self, name: str, what: Callable[..., Any], *args: Any) -> Any:
        self._life.at(f"{self._name}.{name}")
        answer = what(*args)
        self._life.at(f"{self._name}.{name}, done")
        return Outside(answer, self._life, "record") if name == "create" else answer


def _inner(value: Any) -> Any:
    return value._inner if isinstance(value, Outside) else value


def _wrapped(answer: Any, life: Life) -> Any:
    kinds = {"SimulatedQemu": "qemu", "_Waiting": "waiting"}
    kind = kinds.get(type(answer).__name__)
    return answer if kind is None else Outside(answer, life, kind)


class Lives(SimulatedService):
    """A service that ends at chosen instants of its lives."""

    def __init__(self, directory: Path, site: SimulatedSite) -> None:
        super().__init__(directory, site, latency_seconds=0.0)

    @asynccontextmanager
    async def engine(self, life: Life) -> AsyncIterator[Engine]:
        """Started as the service does it. At the end of the block it is let go, or was killed before."""
        service = await self.make(outside=lambda inner, name: Outside(inner, life, name))
        try:
            await service.start(settling=False)
            yield service.engine
        finally:
            if not life.dead:
                await service.engine.stop(timeout=30.0)
            life.dead = True
            await service.kill()
