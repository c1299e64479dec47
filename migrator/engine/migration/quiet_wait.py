"""Waits until the guest writes little, where its policy says so; nothing is changed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from migrator.core.guest_experience import GuestExperience
from migrator.core.migration import quiet_start
from migrator.engine import clock
from migrator.errors import Occupied, QemuError

#: A measurement of the write rate takes so long, ...
_MEASURING_SECONDS = 1.0
#: ...and its answer is waited for so much longer.
_ANSWER_SECONDS = 5.0
#: So often it is looked whether the migration is still wanted.
_LOOK_SECONDS = 0.5


class MeasuredGuest(Protocol):
    """The part of :class:`migrator.ports.Qemu` that measures how fast its guest writes."""

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None: ...

    async def dirty_rate(self) -> float | None: ...

    async def release_monitor(self) -> None: ...


class GuestHistory(Protocol):
    """Experience with all guests, kept and added to."""

    def of(self, guest: str) -> GuestExperience | None:
        """Return what is known of the guest of that key; ``None``: nothing."""

    def note_rate(self, guest: str, bytes_per_second: float) -> None:
        """Learn how fast it writes now."""


async def measured_rate(source: MeasuredGuest, *, seconds: float = _MEASURING_SECONDS) -> float | None:
    """Return how many bytes of distinct pages the guest dirties a second; ``None`` where that cannot be measured."""
    try:
        await source.start_dirty_rate(seconds, exact=True)
        async with asyncio.timeout(_ANSWER_SECONDS):
            await asyncio.sleep(seconds)
            while (rate := await source.dirty_rate()) is None:
                await asyncio.sleep(0.1)
            return rate
    except (TimeoutError, QemuError):
        return None


class QuietWait:
    """One guest that is to be moved when it writes little.

    :param guest: its key.
    :param since: when its migration was asked for, seconds since the epoch: another controller goes on from there.
    :param last_start: the last safe start, seconds since the epoch; asked at every look.
    :param unwanted: whether the migration is not wanted any more; asked at every look.
    :param tell: is told what has to end first whenever that changes; nothing (an empty text) once it is over.
    """

    def __init__(
        self,
        source: MeasuredGuest,
        *,
        guest: str,
        since: float,
        last_start: Callable[[], float],
        history: GuestHistory | None,
        unwanted: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._source, self._guest, self._since = source, guest, since
        self._last_start, self._history = last_start, history
        self._unwanted, self._tell = unwanted, tell
        #: So long it was waited; 0 where nothing had to be waited for.
        self.waited_seconds = 0.0
        #: Why it begins now; empty where it is unwanted.
        self.reason = ""

    async def come(self) -> None:
        """Return once it is to begin, or is unwanted."""
        began, told, usual = clock.now(), "", 0.0
        try:
            while not self._unwanted():
                rate = await measured_rate(self._source)
                if rate is not None:
                    usual = max(usual, rate)
                decision = quiet_start.decide(
                    now=clock.wall(),
                    since=self._since,
                    last_start=self._last_start(),
                    rate_bytes_per_second=rate,
                    usual_bytes_per_second=usual,
                    experience=self._history.of(self._guest) if self._history is not None else None,
                )
                if rate is not None and self._history is not None:
                    self._history.note_rate(self._guest, rate)
                if decision.begin:
                    self.reason = decision.text
                    return
                if told != decision.topic:
                    told = decision.topic
                    self._tell(decision.text)
                await self._pause(decision.pause_seconds)
                self.waited_seconds = clock.now() - began
        finally:
            if told:
                self._tell("")

    async def _pause(self, seconds: float) -> None:
        """Leave the guest and its monitor alone for so long, or until the migration is unwanted."""
        try:
            await self._source.release_monitor()
        except Occupied:
            pass  # somebody else took it meanwhile; the next look tells
        until = clock.now() + seconds
        while not self._unwanted() and (left := until - clock.now()) > 0:
            await asyncio.sleep(min(_LOOK_SECONDS, left))
