"""Where the destination's process cannot be killed and seen dead from here, what needs that is held; else undone."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from migrator.core.model import State
from migrator.qemu.address import Address
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, until
from tests.driven import MIB, PLAIN, SHORT, SLOW, CaughtEnd, Drive, Phase, catch, driven, hurry
from tests.invariants import witness

#: With a monitor of each end over TCP, which tells nothing of the process.
#: It writes little enough for the sockets to hold what is left at the switch.
DISTANT = GuestMachine(
    habit=Habit(region_bytes=16 * MIB, bytes_per_second=1 * MIB),
    image_locking="off",
    extra=(
        "-chardev",
        "socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off",
        "-mon",
        "chardev=tcp,mode=control",
    ),
)


async def port(qemu: LabQemu) -> int:
    """Where its TCP monitor listens."""
    (found,) = [each for each in await qemu.query("query-chardev") if each["label"] == "tcp"]
    return int(found["filename"].removesuffix(",server=on").rpartition(":")[2])


async def end(
    qemu: LabQemu, role: str, pid: int | None = None, fence_command: str | None = None
) -> CaughtEnd:
    address = Address(kind="tcp", host="127.0.0.1", port=await port(qemu))
    return CaughtEnd(qemu, role=role, address=address, pid=pid, fence_command=fence_command)


@pytest.fixture
async def distant(lab: Lab, one_version: Path) -> Pair:
    return await lab.pair(DISTANT, source=one_version, destination=one_version)


async def from_afar(drive: Drive, *, pid: int | None = None, fence_command: str | None = None) -> None:
    """Drive both ends over TCP, with these means against the destination."""
    drive.source = await end(drive.pair.source, "source")
    drive.destination = await end(drive.pair.destination, "destination", pid, fence_command)


async def test_good_path_needs_no_fence(lab: Lab, distant: Pair) -> None:
    async with witness(lab, distant) as seen:
        async with driven(distant) as drive:
            await from_afar(drive)
            result = await drive.run()
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)


async def test_cancel_while_memory_is_copied_needs_no_fence(lab: Lab, distant: Pair) -> None:
    async with witness(lab, distant) as seen:
        async with driven(distant, policy=SLOW.but(max_duration_seconds=0.3)) as drive:
            await from_afar(drive)
            result = await drive.run()
        assert result.state is State.FAILED
        await seen.verify(State.FAILED)


@pytest.mark.parametrize("phase", [Phase.CONTINUE, pytest.param(Phase.DEVICE, marks=pytest.mark.matrix)])
async def test_destination_frozen_at_the_switch_is_held(lab: Lab, distant: Pair, phase: Phase) -> None:
    # Its silence proves nothing: it may run the guest the moment it wakes, were the source told to go on.
    async with witness(lab, distant) as seen:
        async with driven(distant, timeouts=SHORT) as drive:
            await from_afar(drive)
            catch(drive, phase, distant.destination.sigstop)
            result = await drive.run()
        assert result.state is State.HELD
        assert not drive.source.given["cancel"]
        assert distant.source.alive
        assert await distant.source.run_state() == "finish-migrate"
        await seen.verify(State.HELD)
        async with driven(distant) as second:
            await from_afar(second)
            assert (await second.take_up()).state is State.COMPLETED
        await seen.verify(State.COMPLETED)


@pytest.mark.parametrize("how", ["pid", "command"])
async def test_destination_frozen_at_the_switch_is_fenced_as_was_told(
    lab: Lab, distant: Pair, how: str
) -> None:
    pid = distant.destination.pid
    command = f"kill -9 {pid}; while [ -e /proc/{pid}/exe ]; do sleep 0.02; done"
    async with witness(lab, distant) as seen:
        async with driven(distant, timeouts=SHORT) as drive:
            if how == "pid":
                await from_afar(drive, pid=pid)
            else:
                await from_afar(drive, fence_command=command)
            catch(drive, Phase.CONTINUE, distant.destination.sigstop)
            result = await drive.run()
        assert result.state is State.FAILED
        await seen.verify(State.FAILED)


async def test_fence_command_that_fails_is_no_proof(lab: Lab, distant: Pair, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    async with witness(lab, distant) as seen:
        async with driven(distant, timeouts=SHORT) as drive:
            await from_afar(drive, fence_command=f"touch {shlex.quote(str(asked))}; false")
            catch(drive, Phase.CONTINUE, distant.destination.sigstop)
            result = await drive.run()
        assert result.state is State.HELD
        assert asked.exists()
        assert not drive.source.given["cancel"]
        await seen.verify(State.HELD)


async def test_destination_killed_unseen_while_memory_is_copied_is_undone(lab: Lab, distant: Pair) -> None:
    # No proof of its death is needed: the switch was never sent.
    async with witness(lab, distant) as seen:
        async with driven(distant, policy=SLOW, timeouts=SHORT) as drive:
            await from_afar(drive)
            catch(drive, Phase.ACTIVE, distant.destination.kill)
            result = await drive.run()
        assert result.state is State.FAILED
        await seen.verify(State.FAILED)


async def test_destination_killed_unseen_at_the_switch_leaves_a_source_that_qemu_itself_lets_run(
    lab: Lab, distant: Pair
) -> None:
    async with witness(lab, distant) as seen:
        async with driven(distant, timeouts=SHORT) as drive:
            await from_afar(drive)
            catch(drive, Phase.CONTINUE, distant.destination.kill)
            result = await drive.run()
        assert result.state in (State.FAILED, State.HELD)
        await seen.verify(result.state)


async def has_sent_everything(source: LabQemu) -> None:
    """Wait until a source whose guest is stopped has nothing left to do but to wait for its destination."""
    rested = 0

    def rests() -> bool:
        nonlocal rested
        states = {
            stat.read_text().rpartition(")")[2].split()[0]
            for stat in Path(f"/proc/{source.pid}/task").glob("*/stat")
        }
        rested = rested + 1 if states == {"S"} else 0
        return rested >= 5

    await until(rests, what="a source that has sent everything")


async def test_frozen_source_that_cannot_be_killed_is_held(lab: Lab, distant: Pair) -> None:
    # The destination has everything, and nobody knows that the source does not run.
    async with witness(lab, distant) as seen:
        async with driven(distant, policy=PLAIN, timeouts=SHORT) as drive:
            await from_afar(drive, pid=distant.destination.pid)

            async def freeze() -> None:
                await has_sent_everything(distant.source)
                distant.source.sigstop()
                distant.destination.sigcont()

            catch(drive, Phase.DEVICE, freeze)
            result = await drive.run()
        assert result.state is State.HELD
        assert distant.destination.alive
        await seen.verify(State.HELD)


async def test_frozen_destination_while_memory_is_copied_is_left_over_and_said_so(
    lab: Lab, distant: Pair
) -> None:
    async with witness(lab, distant) as seen:
        async with driven(distant, policy=SLOW, timeouts=SHORT) as drive:
            await from_afar(drive)

            async def freeze() -> None:
                await hurry(distant)
                distant.destination.sigstop()

            catch(drive, Phase.ACTIVE, freeze)
            result = await drive.run()
        assert result.state is State.FAILED
        assert "destination-left-over" in [finding.code for finding in result.findings]
        await seen.verify(State.FAILED, left_over=(distant.destination,))
