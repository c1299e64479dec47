"""QEMU is frozen (SIGSTOP) at either end in every phase, for good or for a while.

What a frozen QEMU was told it may do when it wakes, so each test wakes it in the end and looks again.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from migrator.core.model import State
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, until
from tests.disks import writing_guest
from tests.driven import LONG, MIB, PLAIN, SHORT, SLOW, Drive, Phase, catch, driven, hurry
from tests.invariants import witness

BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB), image_locking="off")
SOURCE, DESTINATION = "source", "destination"
COMPLETED, FAILED, HELD = State.COMPLETED, State.FAILED, State.HELD


def freeze(drive: Drive, side: str, phase: Phase) -> None:
    """Freeze one end in this phase, and it alone."""
    pair, frozen = drive.pair, getattr(drive.pair, side)

    async def hook() -> None:
        if phase is Phase.ACTIVE:
            await hurry(pair)  # else it takes seconds until what lies between the ends is full
        frozen.sigstop()
        if side == SOURCE:
            pair.destination.sigcont()

    catch(drive, phase, hook)


#: How a migration ends whose source or destination is frozen for good in a phase; and, if it is held then, how a
#: second controller ends it once that end has woken.
FOR_GOOD = [
    # Broken off, so that the source cannot reach the switch by itself when it wakes.
    (SOURCE, Phase.SETUP, HELD, FAILED),
    (SOURCE, Phase.ACTIVE, HELD, FAILED),
    (SOURCE, Phase.PRE_SWITCHOVER, HELD, FAILED),
    # It may yet carry out migrate-continue, but nobody takes it in.
    (SOURCE, Phase.CONTINUE, HELD, FAILED),
    # It has sent everything: it is seen dead, and the destination goes on.
    (SOURCE, Phase.DEVICE, COMPLETED, None),
    (SOURCE, Phase.LOADED, COMPLETED, None),
    (SOURCE, Phase.HANDED_OVER, COMPLETED, None),
    (DESTINATION, Phase.SETUP, FAILED, None),
    (DESTINATION, Phase.ACTIVE, FAILED, None),
    (DESTINATION, Phase.PRE_SWITCHOVER, FAILED, None),
    # No cancel before the destination was seen dead.
    (DESTINATION, Phase.CONTINUE, FAILED, None),
    (DESTINATION, Phase.DEVICE, FAILED, None),
    # The point of no return: it may run when it wakes, and does.
    (DESTINATION, Phase.LOADED, HELD, COMPLETED),
    (DESTINATION, Phase.HANDED_OVER, HELD, COMPLETED),
]

#: The ends and phases that differ in what is done about a frozen one; the others are tried in `make test-all`.
TOLD_APART = {
    *itertools.product((SOURCE, DESTINATION), (Phase.ACTIVE, Phase.CONTINUE, Phase.DEVICE)),
    (DESTINATION, Phase.LOADED),
}


@pytest.mark.parametrize(
    ("side", "phase", "first", "second"),
    [
        pytest.param(*row, id="-".join(row[:2]), marks=() if row[:2] in TOLD_APART else pytest.mark.matrix)
        for row in FOR_GOOD
    ],
)
async def test_for_good(
    lab: Lab, one_version: Path, side: str, phase: Phase, first: State, second: State | None
) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with driven(pair, policy=SLOW if phase is Phase.ACTIVE else PLAIN, timeouts=SHORT) as drive:
            freeze(drive, side, phase)
            result = await drive.run()
        assert result.state is first
        if phase in (Phase.CONTINUE, Phase.DEVICE) and first is FAILED:
            assert not drive.source.given["cancel"] or drive.destination.given["fence"]
        await seen.verify(first)
        if second is not None:
            async with driven(pair) as drive:
                assert (await drive.take_up()).state is second
            await seen.verify(second)


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(phase, marks=() if phase in (Phase.ACTIVE, Phase.DEVICE) else pytest.mark.matrix)
        for phase in Phase
        if phase not in (Phase.PREPARED, Phase.SETUP)
    ],
)
@pytest.mark.parametrize("side", [SOURCE, DESTINATION])
async def test_for_a_while(lab: Lab, one_version: Path, side: str, phase: Phase) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with driven(pair, policy=SLOW if phase is Phase.ACTIVE else PLAIN) as drive:
            freeze(drive, side, phase)
            waking = asyncio.create_task(wake(drive, side), name="wake")
            result = await drive.run()
            await waking
        assert result.state is COMPLETED
        await seen.verify(COMPLETED)


@pytest.mark.parametrize("phase", [pytest.param(Phase.PREPARED, marks=pytest.mark.matrix), Phase.SETUP])
@pytest.mark.parametrize("side", [SOURCE, DESTINATION])
async def test_for_a_while_before_anything_was_sent(
    lab: Lab, one_version: Path, side: str, phase: Phase
) -> None:
    # A `migrate` that was not answered in time is carried out all the same, when the source wakes.
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with driven(pair) as drive:
            freeze(drive, side, phase)
            waking = asyncio.create_task(wake(drive, side), name="wake")
            result = await drive.run()
            await waking
        assert result.state is COMPLETED
        await seen.verify(COMPLETED)


async def wake(drive: Drive, side: str) -> None:
    """Once the controller has looked in vain and more than once."""
    end, qemu = getattr(drive, side), getattr(drive.pair, side)
    await until(lambda: end.unanswered >= 2, what="a look that is not answered")
    qemu.sigcont()


async def test_paused_guest_whose_destination_freezes_at_the_switch_stays_paused_and_can_migrate(
    lab: Lab, one_version: Path
) -> None:
    # The way back through fence and cancel is where 7.2 leaves a paused guest in postmigrate.
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    await pair.source.query("stop")
    async with witness(lab, pair) as seen:
        async with driven(pair, timeouts=SHORT) as drive:
            freeze(drive, DESTINATION, Phase.CONTINUE)
            assert (await drive.run()).state is FAILED
        await seen.verify(FAILED, run_state="paused")
    again = Pair(pair.source, await lab.start(BUSY, binary=one_version, incoming=True))
    async with witness(lab, again) as seen, driven(again, timeouts=LONG) as drive:
        assert (await drive.run()).state is COMPLETED
        await seen.verify(COMPLETED, run_state="paused")


async def test_a_guest_that_is_stopped_while_a_disk_waits_for_a_frozen_destination_goes_on_soon(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    # QEMU stops a guest once what is on its way to its disks has arrived, and answers nobody before.
    guest = await writing_guest(lab, source=one_crossing[0], destination=one_crossing[1])
    pair = guest.pair
    stops: list[asyncio.Task[object]] = []

    async def freeze_and_stop() -> None:
        pair.destination.sigstop()
        for _ in range(3):  # a mirror that had nothing to do looks ten times a second
            await guest.goes_on(pair.source)
        stops.append(asyncio.create_task(pair.source.query("stop"), name="somebody stops the guest"))

    timeouts = PhaseTimeouts(copying=120.0, switching=1.0)
    async with driven(pair, timeouts=timeouts) as drive:
        catch(drive, Phase.SETUP, freeze_and_stop)  # its disk is the same there, and follows
        async with asyncio.timeout(60):
            result = await drive.run()
        assert (result.state, pair.destination.alive) == (FAILED, False)
    await asyncio.gather(*stops)
    await pair.source.query("cont")
    await guest.goes_on(pair.source)
    assert await guest.check(pair.source) > 0
