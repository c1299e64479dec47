"""A guest that moves by postcopy: it runs at the destination before its memory is there, and ends as it is wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.core.model import Mode, State
from migrator.core.policy import PostcopyMode, builtin
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, until
from tests.driven import LONG, MIB
from tests.invariants import witness
from tests.postcopy import BUSY, FULL, driven, quickly


class TestImmediate:
    async def test_arrives_whole_and_runs_in_one_place_at_a_time(
        self, lab: Lab, each_crossing: tuple[Path, Path]
    ) -> None:
        pair = await lab.pair(BUSY, source=each_crossing[0], destination=each_crossing[1])
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                result = await drive.run()
            assert (result.state, result.mode, result.error) == (State.COMPLETED, Mode.POSTCOPY, None)
            counted = await seen.verify(State.COMPLETED)
        assert counted is not None
        assert counted.boots == 1
        assert seen.watch.course == [pair.source, pair.destination]
        assert drive.was_postcopy
        assert not drive.was_cancelled
        assert "start-postcopy" in [decision.action for decision in result.decisions]

    async def test_lets_the_guest_stand_still_only_for_the_switch(self, lab: Lab, each_qemu: Path) -> None:
        pair = await lab.pair(FULL, source=each_qemu, destination=each_qemu)
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.make_it_last()
                began = time.monotonic()
                result = await drive.run()
                took = time.monotonic() - began
            await seen.verify(State.COMPLETED)
        assert result.downtime_seconds is not None
        # The transfer takes seconds. 0.03 s of downtime on an idle machine.
        assert drive.was_postcopy
        assert took > 1
        assert result.downtime_seconds < took / 2
        # As its user sees it: what was measured and some beats.
        assert result.downtime_seconds < seen.watch.longest_silence_seconds + 0.01

    async def test_switch_does_not_wait_until_copying_has_begun(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        sent = asyncio.Event()

        async def start_postcopy() -> None:
            sent.set()
            await plain()

        async def wait() -> None:
            async with asyncio.timeout(5):
                await sent.wait()

        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                plain = drive.source.start_postcopy
                drive.source.start_postcopy = start_postcopy  # type: ignore[method-assign]
                drive.source.after("migrate", wait)
                result = await drive.run()
            assert (result.state, result.mode) == (State.COMPLETED, Mode.POSTCOPY)
            await seen.verify(State.COMPLETED)

    async def test_says_that_it_is_in_postcopy_while_it_is(self, lab: Lab) -> None:
        pair = await lab.pair(FULL)
        async with driven(pair) as drive:
            drive.make_it_last()
            result = await drive.run()
        assert result.state is State.COMPLETED
        shown = [status.state for status in drive.shown]
        ratios = [status.progress_ratio for status in drive.shown]
        course = [state for number, state in enumerate(shown) if state not in shown[:number]]
        in_order = [State.PREPARING, State.SWITCHOVER, State.POSTCOPY, State.FINISHING]
        assert [state for state in course if state in in_order] == in_order
        assert ratios == sorted(ratios)
        assert ratios[-1] == 1

    async def test_paused_guest_arrives_paused_and_can_go_on(
        self, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        pair = await lab.pair(BUSY, source=one_crossing[0], destination=one_crossing[1])
        await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                result = await drive.run()
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)
        assert drive.destination.given["cont"] == 0
        await pair.destination.query("cont")
        await pair.destination.wait_beating()
        await pair.destination.check_memory()

    async def test_of_a_guest_that_is_copied_in_no_time_is_called_what_it_was(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(source=one_version, destination=one_version)
        async with driven(pair, policy=builtin("postcopy-first")) as drive:
            result = await drive.run()
        # QEMU does not begin a postcopy when nothing is left to fetch.
        assert result.state is State.COMPLETED
        assert result.mode is (Mode.POSTCOPY if drive.was_postcopy else Mode.PRECOPY)


class TestAllowed:
    @pytest.mark.parametrize("habit", [Habit(region_bytes=16 * MIB)], ids=["dirties-as-fast-as-it-can"])
    async def test_goes_to_postcopy_when_precopy_does_not_end(
        self, lab: Lab, one_crossing: tuple[Path, Path], habit: Habit
    ) -> None:
        policy = builtin("default").but(
            max_bandwidth_bytes_per_second=24 * MIB, max_throttle_ratio=0.0, max_downtime_seconds=0.05
        )
        assert policy.postcopy is PostcopyMode.ALLOW
        pair = await lab.pair(GuestMachine(habit=habit), source=one_crossing[0], destination=one_crossing[1])
        async with witness(lab, pair) as seen:
            async with driven(pair, policy=policy, timeouts=LONG) as drive:
                result = await drive.run()
            assert (result.state, result.mode) == (State.COMPLETED, Mode.POSTCOPY)
            assert drive.was_postcopy
            await seen.verify(State.COMPLETED)
        assert result.rounds > 1

    async def test_stays_with_precopy_when_that_ends(self, lab: Lab) -> None:
        pair = await lab.pair(GuestMachine(habit=Habit(region_bytes=4 * MIB, passes=1)))
        async with witness(lab, pair) as seen:
            async with driven(pair, policy=builtin("default")) as drive:
                result = await drive.run()
            assert (result.state, result.mode) == (State.COMPLETED, Mode.PRECOPY)
            await seen.verify(State.COMPLETED)


class TestSomebodyElse:
    async def test_stops_the_guest_while_it_fetches_and_stopped_it_stays(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(FULL, source=one_version, destination=one_version)

        async def stop() -> None:
            await pair.destination.query("stop")
            await quickly(pair)

        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.make_it_last()
                drive.destination.after("cont", stop)
                result = await drive.run()
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED, run_state="paused")
        assert drive.destination.given["cont"] == 1

    async def test_stops_and_resumes_the_guest_while_it_fetches(self, lab: Lab) -> None:
        pair = await lab.pair(FULL)

        async def stop_and_resume() -> None:
            await pair.destination.query("stop")
            await pair.destination.query("cont")
            await quickly(pair)

        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.make_it_last()
                drive.destination.after("cont", stop_and_resume)
                result = await drive.run()
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)

    async def test_powers_the_guest_off_while_it_fetches(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(FULL, source=one_version, destination=one_version)

        async def power_off() -> None:
            await pair.destination.wait_beating()
            await pair.destination.query("system_powerdown")
            await pair.destination.wait_dead()

        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.make_it_last()
                drive.destination.after("cont", power_off)
                result = await drive.run()
            assert result.state is State.GUEST_ENDED
            await seen.verify(State.GUEST_ENDED)

    async def test_resets_the_guest_while_it_fetches(self, lab: Lab) -> None:
        pair = await lab.pair(FULL)

        async def reset() -> None:
            await pair.destination.query("system_reset")
            await until(lambda: pair.destination.boots == 1, what="the second start")
            await quickly(pair)

        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.make_it_last()
                drive.destination.after("cont", reset)
                result = await drive.run()
            assert result.state is State.COMPLETED
            counted = await seen.verify(State.COMPLETED)
        assert counted is not None
        assert counted.boots == 2

    async def test_asks_for_it_to_be_cancelled_when_it_is_too_late(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(FULL, source=one_version, destination=one_version)
        accepted: list[bool] = []

        async def cancel() -> None:
            accepted.append(drive.migration.cancel())
            await quickly(pair)

        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                drive.make_it_last()
                drive.destination.after("cont", cancel)
                result = await drive.run()
            assert accepted == [False]
            assert result.state is State.COMPLETED
            await seen.verify(State.COMPLETED)
        assert not drive.was_cancelled


async def test_guest_that_moves_three_times_is_whole_each_time(
    lab: Lab, qemu_binary: Callable[[str], Path]
) -> None:
    # To 10.0 and back to 7.2.
    binaries = [qemu_binary(version) for version in ("7.2", "10.0", "7.2")]
    pair = await lab.pair(BUSY, source=binaries[0], destination=binaries[1])
    for next_binary in (binaries[2], None):
        async with witness(lab, pair) as seen:
            async with driven(pair) as drive:
                assert (await drive.run()).state is State.COMPLETED
            assert drive.was_postcopy
            await seen.verify(State.COMPLETED)
        if next_binary is not None:
            waiting = await lab.start(BUSY, binary=next_binary, incoming=True)
            pair = Pair(pair.destination, waiting)
