"""A stream of several channels cannot be parked: QEMU sends a hundred pages at a time, whatever its limit."""

from __future__ import annotations

import asyncio
from pathlib import Path

from migrator.core.model import State
from migrator.testing.lab import GuestMachine, Habit, Lab
from tests.driven import MIB, SLOW, driven, reaches
from tests.invariants import witness

FILLED = GuestMachine(habit=Habit(region_bytes=48 * MIB, passes=1))


async def test_controller_that_stops_takes_it_back_and_the_guest_runs_on(lab: Lab, each_qemu: Path) -> None:
    pair = await lab.pair(FILLED, source=each_qemu, destination=each_qemu)
    async with witness(lab, pair) as seen:
        async with driven(pair, policy=SLOW.but(streams=2)) as drive:
            running = asyncio.create_task(drive.run(), name="a controller that stops")
            await reaches(pair.source, "active")
            drive.requests.park = True
            result = await running
        assert (result.state, result.streams) == (State.CANCELLED, 2)
        assert "cannot be parked" in str(result.error)
        await seen.verify(State.CANCELLED)
