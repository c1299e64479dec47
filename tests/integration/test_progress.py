"""What is shown of a migration: its states in their order, a progress that never falls, figures in base units."""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path

from migrator.core.model import State
from migrator.testing.lab import GuestMachine, Habit, Lab
from tests.driven import MIB, PLAIN, SLOW, Phase, catch, driven

#: Several rounds at 40 MiB/s, each shorter than the one before.
DIRTYING = GuestMachine(habit=Habit(region_bytes=32 * MIB, bytes_per_second=20 * MIB))
FORTY = PLAIN.but(max_bandwidth_bytes_per_second=40 * MIB, max_downtime_seconds=0.05)


async def test_progress_of_several_rounds_never_falls_and_ends_at_one(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    pair = await lab.pair(DIRTYING, source=one_crossing[0], destination=one_crossing[1])
    async with driven(pair, policy=FORTY) as drive:
        result = await drive.run()
    assert result.state is State.COMPLETED
    assert result.rounds > 2
    ratios = [status.progress_ratio for status in drive.shown]
    assert all(before <= after for before, after in pairwise(ratios))
    assert all(
        0 <= status.progress_ratio < 1 for status in drive.shown if status.state is not State.COMPLETED
    )
    assert ratios[-1] == 1
    # It is not only a start and an end.
    assert len(set(ratios)) > 4


async def test_states_come_in_their_order(lab: Lab, one_crossing: tuple[Path, Path]) -> None:
    pair = await lab.pair(DIRTYING, source=one_crossing[0], destination=one_crossing[1])
    async with driven(pair, policy=FORTY) as drive:
        await drive.run()
    states = [state for state, _ in groupby(status.state for status in drive.shown)]
    order = [State.PREPARING, State.PRECOPY, State.SWITCHOVER, State.FINISHING, State.COMPLETED]
    assert states == [state for state in order if state in states]
    assert {State.PREPARING, State.PRECOPY, State.COMPLETED} <= set(states)


async def test_progress_of_one_that_fails_does_not_come_to_one(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(DIRTYING, source=one_version, destination=one_version)
    async with driven(pair, policy=SLOW) as drive:
        catch(drive, Phase.ACTIVE, pair.destination.kill)
        result = await drive.run()
    assert result.state is State.FAILED
    assert drive.shown[-1].state is State.FAILED
    assert max(status.progress_ratio for status in drive.shown) < 1


async def test_figures_are_in_base_units(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(DIRTYING, source=one_version, destination=one_version)
    async with driven(pair, policy=FORTY) as drive:
        result = await drive.run()
    samples = [status.sample for status in drive.shown if status.sample is not None]
    assert max(sample.total_bytes for sample in samples) >= DIRTYING.memory_bytes
    assert max(sample.remaining_bytes for sample in samples) <= samples[-1].total_bytes
    assert DIRTYING.habit.region_bytes < result.transferred_bytes < 10 * DIRTYING.habit.region_bytes
    rates = [sample.dirty_rate_bytes_per_second for sample in samples if sample.round > 1]
    assert 2 * MIB < max(rates) < 200 * MIB
    bandwidths = [sample.bandwidth_bytes_per_second for sample in samples if sample.round > 1]
    assert 10 * MIB < max(bandwidths) < 200 * MIB
    assert result.downtime_seconds is not None
    assert 0 < result.downtime_seconds < 2
