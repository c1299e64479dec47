"""A stream that was parked carries next to nothing: nothing is concluded from that once it goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from migrator.core.migration.convergence_state import Abilities
from migrator.core.model import Sample, State
from migrator.core.policy import PostcopyMode
from migrator.engine.migration.outcome import MigrationProgress
from migrator.engine.migration.steering import Steering
from migrator.ports import Tuning
from migrator.testing.lab import GuestMachine, Habit, Lab, until
from tests.driven import MIB, PLAIN, Drive, driven
from tests.invariants import witness

BUSY = GuestMachine(habit=Habit(region_bytes=12 * MIB, bytes_per_second=6 * MIB), image_locking="off")
ALLOWED = PLAIN.but(postcopy=PostcopyMode.ALLOW, max_downtime_seconds=0.05)
SLOW, FAST = (ALLOWED.but(max_bandwidth_bytes_per_second=each * MIB) for each in (5, 16))
#: Bytes per second: more than any QEMU sends while it is parked.
PARKED_AT_MOST = 2 * MIB
#: So late a busy host carries out what it is told.
_BUSY_SECONDS = 0.4


class StopsAfterAPass(list[MigrationProgress]):
    """What is shown; the controller is told to stop when the guest's memory was copied once, before it decides."""

    def __init__(self, drive: Drive) -> None:
        super().__init__()
        self._requests = drive.requests

    def append(self, progress: MigrationProgress) -> None:
        super().append(progress)
        if progress.sample is not None and progress.sample.round > 1:
            self._requests.park = True


async def test_the_next_controller_steers_by_what_it_carries_since_it_goes_on(
    lab: Lab, each_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await lab.pair(BUSY, source=each_qemu, destination=each_qemu)
    stream = f"unix:{lab.directory}/stream"  # the kernel paces none of these
    step, carried = Steering.step, []

    async def noted(steering: Steering, sample: Sample, abilities: Abilities) -> None:
        carried.append(sample.bandwidth_bytes_per_second)
        await step(steering, sample, abilities)

    async def crawls() -> bool:
        shown = (await pair.source.query("query-migrate"))["ram"]["mbps"]
        return float(shown) * 1e6 / 8 < PARKED_AT_MOST

    async with witness(lab, pair) as seen:
        async with driven(pair, policy=SLOW, listen=stream) as stops:
            stops.shown = StopsAfterAPass(stops)
            await stops.run()
        await until(crawls, what="the stream is parked")
        monkeypatch.setattr(Steering, "step", noted)
        async with driven(pair, policy=FAST, listen=stream) as goes_on:
            tune = goes_on.source.tune

            async def tune_late(tuning: Tuning) -> None:
                await asyncio.sleep(_BUSY_SECONDS)
                await tune(tuning)

            monkeypatch.setattr(goes_on.source, "tune", tune_late)
            result = await goes_on.take_up()
        assert result.state is State.COMPLETED
        assert min(carried) > PARKED_AT_MOST
        await seen.verify(State.COMPLETED)
