"""A stream that was parked carries next to nothing: nothing is concluded from that once it goes on."""

from __future__ import annotations

from pathlib import Path

from migrator.core.migration.convergence_state import ActionKind
from migrator.core.model import State
from migrator.core.policy import PostcopyMode
from migrator.engine.migration.outcome import MigrationProgress
from migrator.testing.lab import GuestMachine, Habit, Lab, until
from tests.driven import MIB, PLAIN, Drive, driven
from tests.invariants import witness

#: It writes less than the path carries, and far more than a parked stream does.
BUSY = GuestMachine(habit=Habit(region_bytes=32 * MIB, bytes_per_second=24 * MIB), image_locking="off")
ALLOWED = PLAIN.but(postcopy=PostcopyMode.ALLOW, max_downtime_seconds=0.05)
SLOW, FAST = (ALLOWED.but(max_bandwidth_bytes_per_second=each * MIB) for each in (20, 80))


class StopsAfterAPass(list[MigrationProgress]):
    """What is shown; the controller is told to stop when the guest's memory was copied once, before it decides."""

    def __init__(self, drive: Drive) -> None:
        super().__init__()
        self._requests = drive.requests

    def append(self, progress: MigrationProgress) -> None:
        super().append(progress)
        if progress.sample is not None and progress.sample.round > 1:
            self._requests.park = True


async def test_a_guest_that_can_move_by_precopy_is_not_switched_to_postcopy_for_it(
    lab: Lab, each_qemu: Path
) -> None:
    pair = await lab.pair(BUSY, source=each_qemu, destination=each_qemu)
    stream = f"unix:{lab.directory}/stream"  # the kernel paces none of these

    async def crawls() -> bool:
        shown = (await pair.source.query("query-migrate"))["ram"]["mbps"]
        return float(shown) * 1e6 / 8 < 2 * MIB

    async with witness(lab, pair) as seen:
        async with driven(pair, policy=SLOW, listen=stream) as stops:
            stops.shown = StopsAfterAPass(stops)
            await stops.run()
        await until(crawls, what="the stream is parked")
        async with driven(pair, policy=FAST, listen=stream) as goes_on:
            result = await goes_on.take_up()
        assert result.state is State.COMPLETED
        assert ActionKind.START_POSTCOPY not in {each.action for each in result.decisions}
        await seen.verify(State.COMPLETED)
