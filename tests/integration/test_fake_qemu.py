"""The fake QEMU beside the real one: the same commands, the same statuses, events and refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from migrator.testing.fake_qemu import FakeQemu
from migrator.testing.lab import GuestMachine, Habit, Lab
from migrator.testing.workload import MIB, from_habit
from tests.scenarios import SCENARIOS, Stage, play

HABIT = Habit(region_bytes=16 * MIB, bytes_per_second=MIB)


#: QEMU 7.2 that is cancelled at pre-switchover races with itself: it may say ``device`` first, and whether a guest
#: resumes that was on its way to postcopy is a matter of luck. What the fake does has to be among what it does.
ATTEMPTS = 4


#: Those in which both versions do the same; the older one plays them in `make test-all`.
ALIKE = {
    *("precopy", "precopy_to_one_that_starts_by_itself", "precopy_of_a_paused_guest", "stopped_while_active"),
    *("cancel_while_active", "cancel_at_pre_switchover", "destination_dies_while_active"),
    *("destination_dies_at_pre_switchover", "source_dies_while_active", "yanked_while_active"),
    *("powered_off_while_active", "reset_while_active", "nobody_listens"),
}


@pytest.mark.parametrize(
    ("scenario", "version"),
    [
        pytest.param(
            scenario,
            version,
            id=f"{scenario.__name__}-{version}",
            marks=[pytest.mark.matrix] if version == "7.2" and scenario.__name__ in ALIKE else [],
        )
        for scenario in SCENARIOS
        for version in ("7.2", "10.0")
    ],
)
async def test_fake_does_as_the_real_one(
    scenario: Callable[[Stage], Awaitable[None]],
    version: str,
    qemu_binary: Callable[[str], Path],
    lab: Lab,
) -> None:
    async with (
        FakeQemu(version=version, workload=from_habit(HABIT)) as source,
        FakeQemu(version=version, incoming=True) as destination,
    ):
        fake = await play(scenario, (source, destination))
    binary = qemu_binary(version)
    real: list[str] = []
    for _ in range(ATTEMPTS):
        # Without locks on the image: the fake has none.
        machine = GuestMachine(habit=HABIT, image_locking="off")
        pair = await lab.pair(machine, source=binary, destination=binary)
        real = await play(scenario, (pair.source, pair.destination))
        if real == fake:
            return
    assert fake == real
