"""QEMU is killed (kill -9) at either end in every phase: a guest is lost only with the process that held its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.model import State
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, until
from tests.driven import MIB, PLAIN, SHORT, SLOW, Phase, catch, driven
from tests.invariants import witness

#: Enough to check, and to be in precopy for a while. No lock of the image hides that it would run twice.
BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB), image_locking="off")


def kill(qemu: LabQemu, *, wake: LabQemu | None = None):
    async def hook() -> None:
        qemu.kill()
        await qemu.wait_dead()
        if wake is not None:
            wake.sigcont()

    return hook


async def busy_pair(lab: Lab, binary: Path) -> Pair:
    return await lab.pair(BUSY, source=binary, destination=binary)


def policy(phase: Phase):
    return SLOW if phase is Phase.ACTIVE else PLAIN


class TestDestination:
    async def test_killed_while_it_is_set_up_is_told(self, lab: Lab, one_version: Path) -> None:
        pair = await busy_pair(lab, one_version)
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.destination.before("listen", kill(pair.destination))
                result = await drive.run()
            assert result.state is State.FAILED
            assert result.error is not None
            assert "the destination's process has ended" in result.error
            await seen.verify(State.FAILED)

    async def test_seen_dead_only_after_the_source_noticed_is_told(self, lab: Lab, one_version: Path) -> None:
        pair = await busy_pair(lab, one_version)
        async with witness(lab, pair) as seen:
            async with driven(pair, policy=SLOW) as drive:
                # As a process that ends: its connections are closed before it is gone.
                async def cut() -> None:
                    pair.destination.sigstop()
                    await pair.source.query("yank", {"instances": [{"type": "migration"}]})

                catch(drive, Phase.ACTIVE, cut)
                drive.source.before("restore", kill(pair.destination))
                result = await drive.run()
            assert result.state is State.FAILED
            assert result.error is not None
            assert "the destination's process has ended" in result.error
            await seen.verify(State.FAILED)

    @pytest.mark.parametrize(
        "phase", [Phase.SETUP, Phase.ACTIVE, Phase.PRE_SWITCHOVER, Phase.CONTINUE, Phase.DEVICE]
    )
    async def test_killed_before_it_was_handed_the_guest_leaves_the_source_as_it_was(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await busy_pair(lab, one_version)
        async with witness(lab, pair) as seen:
            async with driven(pair, policy=policy(phase)) as drive:
                catch(drive, phase, kill(pair.destination))
                result = await drive.run()
            assert result.state is State.FAILED
            assert result.error
            await seen.verify(result.state)

    @pytest.mark.parametrize("phase", [Phase.CONTINUE, Phase.DEVICE])
    async def test_killed_at_the_switch_leaves_a_paused_guest_paused_and_able_to_migrate(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        # 7.2 leaves a paused guest in postmigrate, from where it cannot migrate again.
        pair = await busy_pair(lab, one_version)
        await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                catch(drive, phase, kill(pair.destination))
                assert (await drive.run()).state is State.FAILED
            await seen.verify(State.FAILED, run_state="paused")
        again = Pair(pair.source, await lab.start(pair.source.machine, binary=one_version, incoming=True))
        async with witness(lab, again) as seen:
            async with driven(again) as drive:
                assert (await drive.run()).state is State.COMPLETED
            await seen.verify(State.COMPLETED, run_state="paused")

    @pytest.mark.parametrize("phase", [Phase.LOADED, Phase.HANDED_OVER])
    async def test_killed_after_the_point_of_no_return_is_held_and_the_source_never_runs_again(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        # It may have written to the disks; only a person can know that it did not.
        pair = await busy_pair(lab, one_version)
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                catch(drive, phase, kill(pair.destination))
                result = await drive.run()
            assert result.state is State.HELD
            assert result.held_code == "destination-died-after-hand-over"
            assert await pair.source.run_state() == "postmigrate"
            await seen.verify(State.HELD)
            assert await lab.counting(within=0.1) == []

    async def test_killed_when_only_the_source_was_left_to_quit_is_held(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.source.before("quit", kill(pair.destination))
                assert (await drive.run()).state is State.HELD
            await seen.verify(State.HELD, lost=True)


class TestSource:
    @pytest.mark.parametrize("phase", [Phase.SETUP, Phase.ACTIVE, Phase.PRE_SWITCHOVER, Phase.CONTINUE])
    async def test_killed_before_the_switch_takes_the_guest_with_it(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await busy_pair(lab, one_version)
        async with witness(lab, pair) as seen:
            async with driven(pair, policy=policy(phase)) as drive:
                catch(drive, phase, kill(pair.source))
                result = await drive.run()
            assert result.state is State.HELD
            assert result.held_code == "source-died"
            await pair.destination.wait_dead()
            await seen.verify(State.HELD, lost=True)

    async def test_killed_in_device_with_everything_sent_leaves_the_guest_to_a_destination_that_was_frozen(
        self, lab: Lab, one_version: Path
    ) -> None:
        # What it has received decides, so it is waited for. What is left at the switch has room in the connection.
        small = replace(BUSY, habit=replace(BUSY.habit, region_bytes=MIB))
        pair = await lab.pair(small, source=one_version, destination=one_version)

        async def sent() -> bool:
            # It says that it is in this phase a moment before it sends what is left, and answers no more until it has.
            shown = await pair.source.query("query-migrate")
            return bool(shown["status"] == "device" and shown["ram"]["remaining"] == 0)

        async def kill_when_sent() -> None:
            await until(sent, what="a source that has sent all of it")
            await kill(pair.source, wake=pair.destination)()

        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                catch(drive, Phase.DEVICE, kill_when_sent)
                assert (await drive.run()).state is State.COMPLETED
            await seen.verify(State.COMPLETED)

    async def test_killed_in_device_and_a_destination_that_stays_frozen_is_held_until_a_person_decides(
        self, lab: Lab
    ) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen:
            async with driven(pair, timeouts=SHORT) as drive:
                catch(drive, Phase.DEVICE, kill(pair.source))
                result = await drive.run()
            assert result.held_code == "source-gone-destination-silent"
            await seen.verify(State.HELD)
            # Nobody watched the source then: it may have run on after a switch that failed, so a person decides.
            async with driven(pair) as second:
                assert (await second.take_up()).held_code == "source-gone-unwatched"
            assert await pair.destination.run_state() == "paused"
            await pair.destination.query("cont")
            async with driven(pair) as third:
                assert (await third.take_up()).state is State.COMPLETED
            await seen.verify(State.COMPLETED)

    @pytest.mark.parametrize("phase", [Phase.LOADED, Phase.HANDED_OVER])
    async def test_killed_once_the_destination_has_everything_harms_nobody(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await busy_pair(lab, one_version)
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                catch(drive, phase, kill(pair.source))
                result = await drive.run()
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)
