"""What the guest felt is measured, whoever watched: exactly where somebody noted it, else between honest bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.core.model import State
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, RawMonitor
from tests.driven import MIB, PLAIN, SLOW, Drive, driven, reaches
from tests.invariants import witness

BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB), image_locking="off")
_AWAY_SECONDS = 1.0


@contextlib.asynccontextmanager
async def dies(drive: Drive, when: Callable[[Drive, Callable[[], object]], None]) -> AsyncIterator[None]:
    """As a controller that is killed at that step; the body is what happens while it is away."""
    gone = asyncio.Event()

    async def die() -> None:
        gone.set()
        await asyncio.Event().wait()

    when(drive, die)
    driving = asyncio.create_task(drive.run(), name="a controller that dies")
    await gone.wait()
    driving.cancel()
    await asyncio.wait({driving})
    await drive.close()
    yield


class Stamps:
    """The stop and the start of the guest by the clock of both QEMUs, which is this machine's.

    :ivar source: a monitor of the source for whatever else is asked of it meanwhile.
    """

    def __init__(self, source: RawMonitor, destination: RawMonitor) -> None:
        self.source, self._destination = source, destination
        self._stopped: dict[str, Any] | None = None

    async def stopped(self) -> dict[str, Any]:
        """Wait until the guest is stopped."""
        if self._stopped is None:
            self._stopped = await self.source.event("STOP")
        return self._stopped

    async def stood_seconds(self) -> float:
        """Return how long the guest stood still; it did once."""
        stopped, resumed = await self.stopped(), await self._destination.event("RESUME")
        assert [each["event"] for each in self.source.events if each["event"] in ("STOP", "RESUME")] == [
            "STOP"
        ]
        return _stamp(resumed) - _stamp(stopped)


def _stamp(event: dict[str, Any]) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


@contextlib.asynccontextmanager
async def stamped(pair: Pair) -> AsyncIterator[Stamps]:
    """Listen to both ends while the block lasts. Nobody else can use their rescue monitors meanwhile."""
    async with pair.source.monitor() as source, pair.destination.monitor() as destination:
        yield Stamps(source, destination)


def exceeded(result: MigrationOutcome) -> bool:
    return "ceiling-exceeded" in [each.action for each in result.decisions]


@pytest.mark.parametrize(
    "when",
    [
        lambda drive, die: drive.source.after("switch", die),
        lambda drive, die: drive.destination.before("cont", die),
    ],
    ids=["past the switch", "before it is handed over"],
)
async def test_controller_that_was_away_while_it_stood_still_is_no_excuse(
    lab: Lab, one_version: Path, when: Callable[[Drive, Callable[[], object]], None]
) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with stamped(pair) as stamps:
            async with dies(Drive(pair, policy=PLAIN), when):
                await asyncio.sleep(_AWAY_SECONDS)  # the time that is measured
            async with driven(pair) as drive:
                result = await drive.take_up()
            stood = await stamps.stood_seconds()
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)
    felt(result, stood, seen.watch.longest_silence_seconds)
    assert result.standstill_uncertainty_seconds is not None
    assert result.standstill_uncertainty_seconds < 0.01
    assert exceeded(result)


async def test_switch_that_was_reached_with_nobody_there_is_known_between_bounds(
    lab: Lab, one_version: Path
) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    # The kernel paces no Unix socket: what one who died had set of a TCP one would go on holding the stream.
    slow = Drive(pair, policy=SLOW, listen=f"unix:{lab.directory}/stream")
    async with witness(lab, pair) as seen:
        async with dies(slow, lambda drive, die: drive.source.after("migrate", die)):
            await reaches(pair.source, "active")
            async with stamped(pair) as stamps:
                await stamps.source.execute(
                    "migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=2000
                )
                await stamps.stopped()
                await asyncio.sleep(_AWAY_SECONDS)
                async with driven(pair) as drive:
                    result = await drive.take_up()
                stood = await stamps.stood_seconds()
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)
    felt(result, stood, seen.watch.longest_silence_seconds)
    assert result.standstill_uncertainty_seconds is not None
    assert result.standstill_uncertainty_seconds > _AWAY_SECONDS / 3


async def test_measure_of_a_controller_that_died_later_is_kept(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with stamped(pair) as stamps:
            async with dies(Drive(pair, policy=PLAIN), lambda drive, die: drive.source.before("quit", die)):
                await asyncio.sleep(_AWAY_SECONDS)
            stood = await stamps.stood_seconds()
        async with driven(pair) as drive:
            result = await drive.take_up()
        await seen.verify(State.COMPLETED)
    assert result.standstill_seconds is not None
    assert result.standstill_seconds < _AWAY_SECONDS
    felt(result, stood, seen.watch.longest_silence_seconds)


async def test_switch_that_is_watched_is_all_that_it_felt(lab: Lab, one_version: Path) -> None:
    pair: Pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with stamped(pair) as stamps, driven(pair) as drive:
            driving = asyncio.create_task(drive.run(), name="a controller that watches")
            stood = await stamps.stood_seconds()
            result = await driving
        await seen.verify(State.COMPLETED)
    felt(result, stood, seen.watch.longest_silence_seconds)
    assert result.standstill_seconds == result.downtime_seconds
    assert result.standstill_uncertainty_seconds == result.downtime_uncertainty_seconds
    assert exceeded(result) == ((result.downtime_seconds or 0.0) > result.max_downtime_seconds)


def felt(result: MigrationOutcome, stood_seconds: float, silence_seconds: float) -> None:
    """What is reported is what both QEMUs say of it, and no more than what was seen of the guest from outside.

    The guest beats every 20 ms. On a busy machine it may be silent for longer than it stood: it waits for a CPU.
    """
    assert result.standstill_seconds is not None
    around = (result.standstill_uncertainty_seconds or 0.0) + 0.002
    assert abs(result.standstill_seconds - stood_seconds) < around, stood_seconds
    assert stood_seconds < silence_seconds + 0.1
    assert result.downtime_seconds == result.standstill_seconds
