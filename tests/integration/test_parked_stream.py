"""A stream that was parked carries next to nothing: nothing is concluded from that once it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migrator.core.migration.convergence_state import Abilities
from migrator.core.model import Sample, State
from migrator.core.policy import PostcopyMode
from migrator.engine.migration.outcome import MigrationProgress
from migrator.engine.migration.steering import Steering
from migrator.errors import TimedOut
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


@contextlib.asynccontextmanager
async def taken_up_parked(lab: Lab, binary: Path) -> AsyncIterator[Drive]:
    """The next controller, of a stream that one who stopped has parked; its guest is whole once it has moved it."""
    pair = await lab.pair(BUSY, source=binary, destination=binary)
    stream = f"unix:{lab.directory}/stream"  # the kernel paces none of these

    async def crawls() -> bool:
        shown = (await pair.source.query("query-migrate"))["ram"]["mbps"]
        return float(shown) * 1e6 / 8 < PARKED_AT_MOST

    async with witness(lab, pair) as seen:
        async with driven(pair, policy=SLOW, listen=stream) as stops:
            stops.shown = StopsAfterAPass(stops)
            await stops.run()
        await until(crawls, what="the stream is parked")
        async with driven(pair, policy=FAST, listen=stream) as goes_on:
            yield goes_on
        await seen.verify(State.COMPLETED)


async def test_the_next_controller_steers_by_what_it_carries_since_it_goes_on(
    lab: Lab, each_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, carried = Steering.step, []

    async def noted(steering: Steering, sample: Sample, abilities: Abilities) -> None:
        carried.append(sample.bandwidth_bytes_per_second)
        await step(steering, sample, abilities)

    async with taken_up_parked(lab, each_qemu) as goes_on:
        tune = goes_on.source.tune

        async def tune_late(tuning: Tuning) -> None:
            await asyncio.sleep(_BUSY_SECONDS)
            await tune(tuning)

        monkeypatch.setattr(goes_on.source, "tune", tune_late)
        monkeypatch.setattr(Steering, "step", noted)
        assert (await goes_on.take_up()).state is State.COMPLETED
    assert min(carried) > PARKED_AT_MOST


async def test_a_limit_that_qemu_did_not_take_in_time_is_given_again(
    lab: Lab, one_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with taken_up_parked(lab, one_version) as goes_on:
        tune, silent = goes_on.source.tune, [True]

        async def tune_later(tuning: Tuning) -> None:
            if silent:
                silent.clear()
                raise TimedOut(goes_on.source.name, "migrate-set-parameters", _BUSY_SECONDS)
            await tune(tuning)

        monkeypatch.setattr(goes_on.source, "tune", tune_later)
        result = await asyncio.wait_for(goes_on.take_up(), 60)
        assert (result.state, silent) == (State.COMPLETED, [])
