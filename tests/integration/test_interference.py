"""Somebody else pauses, resumes, reboots or powers off the guest in every phase: it ends as that somebody wanted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from migrator.core.model import MigrationStatus, State
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.testing.guest import NotBooted
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, RawQmpError, until
from tests.driven import MIB, PLAIN, SHORT, SLOW, Phase, catch, driven, hurry, reaches
from tests.invariants import witness

HABIT = Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB)
BUSY = GuestMachine(habit=HABIT)
#: Its process stays when it powers off.
STAYING = GuestMachine(habit=HABIT, extra=("-no-shutdown",))
RUNNING, PAUSED, SHUTDOWN = "running", "paused", "shutdown"
#: Before the source stops the guest for the last time.
EARLY = (Phase.PREPARED, Phase.ACTIVE)
#: After it.
LATE = (Phase.PRE_SWITCHOVER, Phase.CONTINUE, Phase.DEVICE)
#: When the guest's memory is at the destination.
OVER = (Phase.LOADED, Phase.HANDED_OVER)


async def interfered(pair: Pair, phase: Phase, act: Callable[[], Awaitable[object]]) -> MigrationOutcome:
    """Migrate; in this phase, somebody acts."""

    async def hook() -> None:
        await act()
        if phase is Phase.ACTIVE and pair.source.alive:
            await hurry(pair)
        pair.destination.sigcont()

    async with driven(pair, policy=SLOW if phase is Phase.ACTIVE else PLAIN) as drive:
        catch(drive, phase, hook)
        return await drive.run()


async def boots(qemu: LabQemu) -> int:
    """How often the guest has started in its life, by its own count; 0 while it is starting."""
    try:
        return (await qemu.counters()).boots
    except NotBooted:
        return 0


class TestPaused:
    @pytest.mark.parametrize("phase", EARLY)
    async def test_before_the_switch_it_arrives_paused(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, lambda: pair.source.query("stop"))
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED, run_state=PAUSED)
            assert seen.watch.course == [pair.source]

    @pytest.mark.parametrize("phase", LATE)
    async def test_while_qemu_has_stopped_it_is_forgotten_by_qemu(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        # QEMU says yes and shows nothing of it afterwards: no event, no run state.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, lambda: pair.source.query("stop"))
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)

    async def test_at_the_destination_right_after_it_was_handed_over(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.HANDED_OVER, lambda: pair.destination.query("stop"))
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED, run_state=PAUSED)

    async def test_in_active_and_the_destination_dies_stays_paused(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.source.query("stop")
            pair.destination.kill()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.ACTIVE, act)
            assert result.state is State.FAILED
            await seen.verify(State.FAILED, run_state=PAUSED)


class TestResumed:
    @pytest.mark.parametrize("phase", EARLY)
    async def test_before_the_switch_it_arrives_running(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, lambda: pair.source.query("cont"))
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED, run_state=RUNNING)

    @pytest.mark.parametrize("phase", [Phase.PRE_SWITCHOVER, Phase.DEVICE])
    async def test_while_qemu_has_stopped_it_is_refused_by_qemu(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        await pair.source.query("stop")

        async def act() -> None:
            with pytest.raises(RawQmpError, match="not finalized"):
                await pair.source.query("cont")

        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, act)
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED, run_state=PAUSED)

    async def test_at_a_source_that_is_done_never_makes_two(self, lab: Lab, one_version: Path) -> None:
        # 10.0 lets it run: its image is not locked. The destination cannot any more then.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        resumed = False

        async def act() -> None:
            nonlocal resumed
            try:
                await pair.source.query("cont")
                resumed = True
            except RawQmpError as error:
                assert "lock" in str(error)  # noqa: PT017 - some versions refuse it

        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.LOADED, act)
            assert result.state is (State.HELD if resumed else State.COMPLETED)
            if resumed:
                assert await lab.counting() == [pair.source]
                assert pair.destination.alive
            await seen.verify(result.state)

    @pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.ACTIVE, Phase.CONTINUE, Phase.LOADED])
    async def test_at_a_destination_that_has_not_got_it_yet_never_makes_two(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        # While it waits, 10.0 says yes and will run the guest by itself once it is complete.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            try:
                await pair.destination.query("cont")
            except RawQmpError as error:
                assert "lock" in str(error)  # noqa: PT017 - some versions refuse it

        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, act)
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)


class TestRebooted:
    @pytest.mark.parametrize("phase", [*EARLY, Phase.PRE_SWITCHOVER, Phase.CONTINUE])
    async def test_before_its_memory_is_over_it_starts_afresh_in_one_place(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, lambda: pair.source.query("system_reset"))
            assert result.state is State.COMPLETED
            await started_afresh(pair.destination)
            await seen.verify(State.COMPLETED)

    async def test_during_the_switch_is_lost_with_what_is_left_at_the_source(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.DEVICE, lambda: pair.source.query("system_reset"))
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)

    @pytest.mark.parametrize("phase", OVER)
    async def test_at_a_source_that_is_an_empty_shell_changes_nothing(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, lambda: reset_shell(pair.source))
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)

    async def test_at_the_destination_after_the_hand_over_it_starts_afresh_there(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.HANDED_OVER, lambda: pair.destination.query("system_reset"))
            assert result.state is State.COMPLETED
            await started_afresh(pair.destination)
            await seen.verify(State.COMPLETED)

    async def test_paused_guest_is_rebooted_and_stays_paused(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(GuestMachine(), source=one_version, destination=one_version)
        await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.PREPARED, lambda: reset_shell(pair.source))
            assert result.state is State.COMPLETED
            assert await pair.destination.run_state() in ("paused", "prelaunch")
            await seen.verify_never_two()
            assert seen.watch.course == []
            assert not pair.source.alive


async def reset_shell(qemu: LabQemu) -> None:
    """Reset a QEMU whose guest stands still, and wait until that shows."""
    await qemu.query("system_reset")

    async def shows() -> bool:
        return await qemu.run_state() == "prelaunch"

    await until(shows, what="a machine that was reset")


async def started_afresh(qemu: LabQemu) -> None:
    async def again() -> bool:
        return await boots(qemu) == 2

    await until(again, what="the guest's second start")
    await qemu.wait_beating()


async def test_reset_of_a_source_that_is_complete_before_that_was_noticed(
    lab: Lab, one_version: Path
) -> None:
    # It shows prelaunch then, as if it had never migrated; the only guest is at the destination.
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with driven(pair) as drive:
            drive.source.when_seen(MigrationStatus.COMPLETED, lambda: reset_shell(pair.source))
            result = await drive.run()
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)


class TestPoweredOff:
    @pytest.mark.parametrize("command", ["system_powerdown", "quit"])
    @pytest.mark.parametrize("phase", EARLY)
    async def test_before_the_switch_it_has_ended_and_nothing_is_left(
        self, lab: Lab, one_version: Path, phase: Phase, command: str
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.source.query(command)
            await pair.source.wait_dead()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, act)
            assert result.state is State.GUEST_ENDED
            told = (
                "the guest ended by itself"
                if command == "system_powerdown"
                else "somebody ended the guest's QEMU"
            )
            assert (result.error or "").startswith(told)
            await seen.verify(State.GUEST_ENDED)

    @pytest.mark.parametrize("phase", [Phase.PRE_SWITCHOVER, Phase.CONTINUE])
    async def test_while_it_stands_still_it_obeys_when_it_runs_again(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, lambda: pair.source.query("system_powerdown"))
            # It ends within the first milliseconds that it has at the destination: seen running or not.
            assert result.state in (State.GUEST_ENDED, State.COMPLETED)
            await pair.destination.wait_dead()
            await seen.verify_never_two()
            assert await lab.counting(within=0.1) == []

    @pytest.mark.parametrize("phase", [Phase.PRE_SWITCHOVER, Phase.CONTINUE])
    async def test_source_quit_at_the_switch_is_the_guests_end(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.source.query("quit")
            await pair.source.wait_dead()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, act)
            assert result.state is State.GUEST_ENDED
            await seen.verify(State.GUEST_ENDED)

    async def test_source_quit_during_the_switch_leaves_all_of_it_at_the_destination(
        self, lab: Lab, one_version: Path
    ) -> None:
        # Whether the guest went on at the source for a moment before that, a person may have to find out.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.source.query("quit")
            await pair.source.wait_dead()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.DEVICE, act)
            assert result.state in (State.COMPLETED, State.HELD)
            await reaches(pair.destination, "completed")
            await seen.verify(result.state)

    @pytest.mark.parametrize("phase", OVER)
    async def test_source_quit_when_it_has_sent_everything_harms_nobody(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.source.query("quit")
            await pair.source.wait_dead()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, act)
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)

    @pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.ACTIVE, Phase.CONTINUE])
    async def test_destination_quit_before_the_switch_is_a_failure_like_any_other(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.destination.query("quit")
            await pair.destination.wait_dead()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, act)
            assert result.state is State.FAILED
            await seen.verify(State.FAILED)

    async def test_destination_quit_before_it_ran_the_guest_is_held(
        self, lab: Lab, one_version: Path
    ) -> None:
        # The source has all of it, so it is kept: nobody's guest has ended.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.destination.query("quit")
            await pair.destination.wait_dead()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.LOADED, act)
            assert result.state is State.HELD
            assert await pair.source.run_state() == "postmigrate"
            await seen.verify(State.HELD)

    @pytest.mark.parametrize("command", ["system_powerdown", "quit"])
    async def test_at_the_destination_after_the_hand_over_it_has_ended(
        self, lab: Lab, one_version: Path, command: str
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.destination.query(command)
            await pair.destination.wait_dead()

        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.HANDED_OVER, act)
            assert result.state is State.GUEST_ENDED
            await seen.verify(State.GUEST_ENDED)

    @pytest.mark.parametrize("phase", [*EARLY, Phase.CONTINUE])
    async def test_guest_that_stays_in_shutdown_arrives_in_shutdown(
        self, lab: Lab, one_version: Path, phase: Phase
    ) -> None:
        pair = await lab.pair(STAYING, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.source.query("system_powerdown")
            if phase in EARLY:
                await off(pair.source)

        async with witness(lab, pair) as seen:
            result = await interfered(pair, phase, act)
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED, run_state=SHUTDOWN)

    async def test_guest_that_stays_in_shutdown_at_the_destination_has_arrived(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(STAYING, source=one_version, destination=one_version)

        async def act() -> None:
            await pair.destination.query("system_powerdown")
            await off(pair.destination)

        async with witness(lab, pair) as seen:
            result = await interfered(pair, Phase.HANDED_OVER, act)
            assert result.state is State.COMPLETED
            assert [decision.action for decision in result.decisions].count("hand-over") == 1
            await seen.verify(State.COMPLETED, run_state=SHUTDOWN)


async def off(qemu: LabQemu) -> None:
    async def shows() -> bool:
        return await qemu.run_state() == SHUTDOWN

    await until(shows, what="a guest that is off")


class TestSuspended:
    async def test_guest_sleeps_or_wakes_but_is_not_left_paused(self, lab: Lab, one_version: Path) -> None:
        # 10.0 keeps it asleep; 7.2 wakes it when it is told to run.
        pair, seen_asleep = await asleep(lab, one_version)
        async with seen_asleep as seen:
            async with driven(pair) as drive:
                result = await drive.run()
            assert result.state is State.COMPLETED
            now = await pair.destination.run_state()
            assert now in ("suspended", RUNNING)
            if now == "suspended":
                await pair.destination.query("system_wakeup")
            await seen.verify(State.COMPLETED, run_state=RUNNING)

    async def test_guest_whose_destination_dies_sleeps_or_wakes(self, lab: Lab, one_version: Path) -> None:
        pair, seen_asleep = await asleep(lab, one_version)
        async with seen_asleep as seen:
            async with driven(pair, timeouts=SHORT) as drive:
                catch(drive, Phase.CONTINUE, pair.destination.kill)
                result = await drive.run()
            assert result.state is State.FAILED
            await seen.verify(State.FAILED, run_state=await pair.source.run_state())
            assert await pair.source.run_state() in ("suspended", RUNNING)


async def asleep(lab: Lab, binary: Path):
    """A pair whose guest has suspended itself to RAM, and its witness."""
    machine = GuestMachine(habit=Habit(suspend_after_seconds=0.1))
    source = await lab.start(machine, binary=binary)
    destination = await lab.start(machine, binary=binary, incoming=True)

    async def sleeps() -> bool:
        return await source.run_state() == "suspended"

    await until(sleeps, what="a suspended guest")
    pair = Pair(source, destination)
    return pair, witness(lab, pair)
