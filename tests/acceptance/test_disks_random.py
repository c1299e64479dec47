"""Disks are copied while something goes wrong at a random instant: no write is lost, and nothing is left over."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from migrator.testing.lab import Lab, LabQemu
from tests.command import Ended, direct, running
from tests.disks import MIB, WritingGuest, writing_guest
from tests.invariants import records

#: The disk and then the memory take about a second each.
_PACE = ("--max-bandwidth", "16MiB/s")
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.7, 4.0
_FROZEN_SECONDS = 0.5
_FAULTS = ("controller", "controller", "destination", "source", "freeze", "cancel")


async def _left_nothing(guest: WritingGuest, owner: LabQemu) -> None:
    """Assert that nothing of a move is left in the QEMU that has the guest, and that no write was lost."""
    await guest.goes_on(owner)
    assert await owner.query("query-jobs") == []
    assert await owner.query("query-block-exports") == []
    nodes = await owner.query("query-named-block-nodes", flat=True)
    assert [node["node-name"] for node in nodes if node["node-name"].startswith("migrator-")] == []
    assert records() == []
    assert await guest.check(owner) > 0


async def _with_fault(guest: WritingGuest, fault: str, after: float) -> Ended | None:
    """Begin a move, do something to it, and return what the command said in the end; ``None``: it was killed."""
    async with running(guest.pair, *_PACE) as command:
        await asyncio.sleep(after)
        if not command.runs:
            return await command.ended()
        match fault:
            case "controller":
                await command.kill()
                return None
            case "destination":
                guest.pair.destination.kill()
            case "source":
                guest.pair.source.kill()
            case "cancel":
                command.signal(signal.SIGINT)
            case "freeze":
                guest.pair.destination.sigstop()
                await asyncio.sleep(_FROZEN_SECONDS)
                guest.pair.destination.sigcont()
        return await command.ended(within=60)


async def _one(lab: Lab, crossing: tuple[Path, Path], seed: int) -> str:
    chance = random.Random(seed)
    fault, after = chance.choice(_FAULTS), chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
    guest = await writing_guest(
        lab, size_bytes=16 * MIB, filled=True, source=crossing[0], destination=crossing[1]
    )
    await guest.goes_on(guest.pair.source)
    ended = await _with_fault(guest, fault, after)
    if ended is None:
        ended = await direct(guest.pair, within=60)
    if ended.code == 130 and not ended.out:  # it had not come so far that it could tell
        await _left_nothing(guest, guest.pair.source)
        return f"cancelled before it began (seed {seed})"
    told = f"{fault} after {after:.3f} s (seed {seed}): {ended.state}: {ended.error}"
    if ended.state == "completed":
        await _left_nothing(guest, guest.pair.destination)
    elif fault == "source" and not guest.pair.source.alive:
        assert ended.state in ("held", "failed"), told
    elif ended.state in ("failed", "cancelled"):
        # One that was killed as it ended had moved the guest.
        moved = fault == "controller" and not guest.pair.source.alive
        await _left_nothing(guest, guest.pair.destination if moved else guest.pair.source)
    else:
        # Only where the process that had the guest was killed.
        assert (ended.state, fault) == ("held", "destination"), told
    return told


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.matrix) for seed in (1, 2))])
async def test_at_a_random_instant(lab: Lab, one_crossing: tuple[Path, Path], seed: int) -> None:
    print(await _one(lab, one_crossing, seed))  # noqa: T201 - pytest shows it with a failed test


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 200))
async def test_at_a_hundred_random_instants(lab: Lab, each_crossing: tuple[Path, Path], seed: int) -> None:
    print(await _one(lab, each_crossing, seed))  # noqa: T201 - pytest shows it with a failed test
