"""What QEMU may send unasked in postcopy, as it is told by whoever drives it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest

from migrator.core.model import MigrationStatus, ProcessState, RunState, Sample, State, View
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.postcopy_steering import PostcopySteering
from migrator.ports import Qemu, Tuning


@dataclass
class Source:
    """Notes what it is told."""

    told: list[int | None] = field(default_factory=list)

    async def tune(self, tuning: Tuning) -> None:
        self.told.append(tuning.max_postcopy_bandwidth_bytes_per_second)


def steering(source: Source) -> PostcopySteering:
    return PostcopySteering(cast(Qemu, source), result=MigrationOutcome(id="m1", state=State.POSTCOPY))


def ends(requests: int) -> tuple[View, View]:
    sample = Sample(remaining_bytes=1 << 30, bandwidth_bytes_per_second=4e6, postcopy_requests=requests)
    serves = View(
        process=ProcessState.ALIVE, answers=True, status=MigrationStatus.POSTCOPY_ACTIVE, sample=sample
    )
    return serves, View(process=ProcessState.ALIVE, answers=True, run=RunState.RUNNING)


async def test_whoever_begins_it_holds_back_what_is_unasked() -> None:
    source = Source()
    own = steering(source)
    own.expect(40e6)
    await own.begin()
    await own.step(*ends(requests=1), handed_over=True)
    assert source.told == [8_000_000]


async def test_a_limit_of_a_controller_that_is_gone_is_lifted_and_no_measure_of_the_path() -> None:
    source = Source()
    taken_up = steering(source)
    for requests in range(1, 5):
        await taken_up.step(*ends(requests), handed_over=True)
    assert source.told == [0]


@pytest.mark.looptime
async def test_a_destination_that_waits_for_a_page_with_its_monitor_is_not_held_back_for_longer() -> None:
    source = Source()
    own = steering(source)
    own.expect(40e6)
    await own.begin()
    serves, _ = ends(requests=1)
    silent = View(process=ProcessState.ALIVE)
    await own.step(serves, silent, handed_over=True)
    assert source.told == [8_000_000]
    await asyncio.sleep(27)  # in which a GiB would have come
    await own.step(serves, silent, handed_over=True)
    assert source.told == [8_000_000, 0]
