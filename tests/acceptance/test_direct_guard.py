"""``migrator direct`` is killed while its guest comes to the switch: the guest does not stand still."""

from __future__ import annotations

from pathlib import Path

from migrator.testing.lab import GuestMachine, Habit, Lab, Pair
from tests.command import direct, running
from tests.guards import WITHOUT_END, comes_to_its_switch, guarded, runs_on

MIB = 1 << 20
BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB), image_locking="off")


async def test_guest_whose_direct_is_killed_runs_on_and_direct_typed_again_clears_away(
    lab: Lab, one_version: Path
) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with running(pair, *WITHOUT_END) as command:
        await guarded(under=lambda: [command.pid])
        await command.kill()
        await comes_to_its_switch(pair.source)
        await runs_on(pair.source)
    again = await direct(pair, *WITHOUT_END)
    assert (again.code, again.state) == (4, "cancelled")
    assert "guard" in again.actions
    assert await lab.counting() == [pair.source]
    onward = Pair(pair.source, await lab.start(BUSY, incoming=True, binary=one_version))
    assert (await direct(onward, "--postcopy", "never")).code == 0
    assert await lab.counting() == [onward.destination]
