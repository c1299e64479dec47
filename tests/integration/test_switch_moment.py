"""The switch of a writing guest is ours: QEMU keeps copying under the parked limit, and gets the real one once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.testing.lab import Habit, Lab, LabQemu, until
from tests.conftest import MakePair
from tests.integration.test_under_way import Move

#: It rewrites its whole working set in far less than a round, so that no round ever leaves less than all of it.
HOT = Habit(region_bytes=8 << 20, bytes_per_second=400 << 20)
#: The first pass takes longer than it has its limit as a small guest; 8 MiB are sent in half a second.
POLICY = builtin("gentle").but(max_downtime_seconds=2.0, max_bandwidth_bytes_per_second=16 << 20)


async def limit_of(qemu: LabQemu) -> int:
    async with qemu.monitor() as monitor:
        found = await monitor.execute("query-migrate-parameters")
    return int(found["downtime-limit"])


async def parked(qemu: LabQemu) -> bool:
    return await limit_of(qemu) == 1


async def test_the_limit_is_parked_while_memory_is_copied_and_given_once_at_the_moment(
    pair: MakePair, lab: Lab, each_qemu: Path
) -> None:
    made = await pair((each_qemu, each_qemu), habit=HOT)
    async with Move(made, POLICY) as move:
        await move.migration.check()
        running = asyncio.create_task(move.migration.run())
        await until(lambda: State.PRECOPY in move.states, what="it copies")
        await until(lambda: parked(made.source), what="the limit is parked")
        result = await asyncio.wait_for(running, 60)
    assert result.state is State.COMPLETED, result.error
    given = [each for each in result.decisions if each.action == "downtime-limit"]
    # While the first pass of a small guest may be over at once; parked; at the end of that pass; at the moment.
    assert 1 <= len(given) <= 4
    assert "moment" in given[-1].reason or "first pass ends" in given[-1].reason
    assert len([each for each in given if "parked" in each.reason]) <= 1
    assert result.downtime_seconds is not None
    assert result.downtime_seconds <= POLICY.max_downtime_seconds
    await made.destination.check_memory()
    assert await lab.counting() == [made.destination]


async def test_without_a_controller_a_guest_that_does_not_converge_goes_on_running_at_the_source(
    pair: MakePair, lab: Lab, one_version: Path
) -> None:
    made = await pair(
        (one_version, one_version), habit=Habit(region_bytes=32 << 20, bytes_per_second=400 << 20)
    )
    policy = POLICY.but(max_downtime_seconds=0.05, max_bandwidth_bytes_per_second=16 << 20)
    async with Move(made, policy) as move:
        await move.migration.check()
        running = asyncio.create_task(move.migration.run())
        await until(lambda: State.PRECOPY in move.states, what="it copies")
        running.cancel()
        await asyncio.wait({running})
        async with made.source.monitor() as monitor:

            async def second_round() -> bool:
                return int((await monitor.execute("query-migrate"))["ram"]["dirty-sync-count"]) >= 3

            await until(second_round, what="rounds without a controller", within=60)
            assert (await monitor.execute("query-status"))["running"]
            await monitor.execute("migrate_cancel")
    assert await lab.counting() == [made.source]
