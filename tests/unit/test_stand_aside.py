"""While a guest stands still for its switch, neither end is asked before one is heard, or a moment has passed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from migrator.core.migration.situation import Intent
from migrator.core.model import State
from migrator.engine import clock
from migrator.engine.migration.observer import Observer
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.ports import QemuEvent

pytestmark = pytest.mark.looptime


class End:
    """An end that says what it is told to say, and cannot be asked."""

    shares_clock = False
    round_trip_seconds = 0.001

    def __init__(self) -> None:
        self._events: list[QemuEvent] = []
        self._tell: Callable[[], None] = lambda: None

    def on_change(self, callback: Callable[[], None]) -> None:
        self._tell = callback

    def take_events(self) -> Sequence[QemuEvent]:
        events, self._events = self._events, []
        return events

    def says(self, name: str) -> None:
        self._events.append(QemuEvent(name=name, arrived=clock.now(), stamped=0.0))
        self._tell()


class Pair:
    """Both ends, and who watches them."""

    def __init__(self) -> None:
        self.source, self.destination = End(), End()
        self.result = MigrationOutcome(id="m", state=State.PRECOPY)
        ends: tuple[Any, Any] = self.source, self.destination
        self.observer = Observer(*ends, timeouts=PhaseTimeouts(), result=self.result)
        self.ended = False

    async def waited(self) -> float:
        """Return for how long it stands aside, a second at most."""
        began = asyncio.get_running_loop().time()
        await self.observer.stand_aside(Intent(), 1.0, over=lambda: self.ended)
        return asyncio.get_running_loop().time() - began


async def test_until_it_is_heard_to_go_on_at_the_other_end() -> None:
    pair, loop = Pair(), asyncio.get_running_loop()
    pair.source.says("STOP")
    loop.call_later(0.1, pair.source.says, "MIGRATION_PASS")  # which tells nothing of the switch
    loop.call_later(0.3, pair.destination.says, "RESUME")
    assert await pair.waited() == pytest.approx(0.3)
    assert pair.result.downtime_seconds == pytest.approx(0.3)


async def test_until_its_manager_has_ended_the_move_or_for_a_moment() -> None:
    pair, loop = Pair(), asyncio.get_running_loop()
    pair.source.says("STOP")
    assert pair.observer.stopped_at(Intent()) is not None
    assert await pair.waited() == pytest.approx(1.0)
    pair.ended = True
    loop.call_later(0.2, pair.observer.wake)
    assert await pair.waited() == 0.0


async def test_not_at_all_while_it_runs() -> None:
    pair = Pair()
    assert await pair.waited() == 0.0
    pair.source.says("STOP")
    pair.source.says("RESUME")
    assert await pair.waited() == 0.0
