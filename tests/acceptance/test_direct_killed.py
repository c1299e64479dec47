"""The command is killed (kill -9) at each of its steps; the same command, typed again, ends what was left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, until
from tests.command import SLOWLY, addresses, direct, direct_doomed, running, started
from tests.driven import driven, hurry
from tests.invariants import records, settings, witness

MIB = 1 << 20
#: Without dirtying where the guest is to stay: its first copy takes half a minute then.
BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB), image_locking="off")
PLAIN = ("--postcopy", "never")
matrix = pytest.mark.matrix
#: Steps of a guest that is told to run.
AT_HAND_OVER = ("record.note:handed_over", "destination.cont", "destination.announce")


def fates(*pairs: tuple[str, str]) -> pytest.MarkDecorator:
    """Each step with the state that a second command ends in; those that add little only in ``make test-all``."""
    return pytest.mark.parametrize(
        ("fate", "state"),
        [
            pytest.param(fate.rstrip(" ~"), state, marks=[matrix] if fate.endswith("~") else [])
            for fate, state in pairs
        ],
    )


class TestOnTheGoodPath:
    @fates(
        ("after record.begin", "failed"),
        ("before destination.enable ~", "failed"),
        ("after destination.enable", "failed"),
        ("before destination.listen ~", "failed"),
        ("after destination.listen", "failed"),
        ("after source.tune", "failed"),
        ("after source.enable", "failed"),
        ("before record.note:migrating ~", "failed"),
        ("before source.migrate", "failed"),
        ("after source.migrate", "completed"),
        ("before record.note:switching", "completed"),
        ("before source.switch", "completed"),
        ("after source.switch", "completed"),
        ("before record.note:handed_over", "completed"),
        ("before destination.cont", "completed"),
        ("after destination.cont", "completed"),
        ("before record.note:retiring ~", "completed"),
        ("after record.note:retiring ~", "completed"),
        ("before destination.announce", "completed"),
        ("before source.quit ~", "completed"),
        ("after source.quit", "completed"),
        ("before record.end", "completed"),
    )
    @pytest.mark.parametrize("run_state", ["running", pytest.param("paused", marks=matrix)])
    async def test_it_is_finished_or_undone(
        self, lab: Lab, one_crossing: tuple[Path, Path], fate: str, state: str, run_state: str
    ) -> None:
        if run_state == "paused" and fate.split()[1] in AT_HAND_OVER:
            pytest.skip("a paused guest is not told to run")
        pair = await lab.pair(BUSY, source=one_crossing[0], destination=one_crossing[1])
        if run_state == "paused":
            await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            killed = await direct_doomed(pair, f"KILL {fate}", *PLAIN)
            assert killed.code == -signal.SIGKILL
            assert len(records()) == 1
            ended = await direct(pair, *PLAIN)
            assert ended.state == state
            assert ended.code == {"completed": 0, "failed": 1}[state]
            assert "take-up" in ended.actions
            await seen.verify(state, run_state=run_state)

    @pytest.mark.parametrize("fate", ["before record.begin", "before record._append", "after record._append"])
    async def test_before_anything_was_recorded_it_is_begun_anew(self, lab: Lab, fate: str) -> None:
        # Also while the record was being written: nothing is done until all of it is on disk.
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, f"KILL {fate}", *PLAIN)).code == -signal.SIGKILL
            await seen.verify_untouched()
            assert (await direct(pair, *PLAIN)).code == 0
            await seen.verify("completed")

    async def test_when_all_was_ended_there_is_nothing_left_to_do(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, "KILL after record.end", *PLAIN)).code == -signal.SIGKILL
            await seen.verify("completed")
            assert (await direct(pair, *PLAIN)).code == 3
            await seen.verify("completed")


class TestOnTheWayBack:
    @fates(
        ("before record.note:failed", "failed"),
        ("before source.cancel", "failed"),
        ("after source.cancel", "failed"),
        ("before source.restore", "failed"),
        ("after source.restore", "failed"),
        ("before destination.quit", "failed"),
        ("after destination.quit", "failed"),
        ("before record.end", "failed"),
    )
    @pytest.mark.parametrize("version", ["10.0", pytest.param("7.2", marks=matrix)])
    async def test_it_is_undone(
        self, lab: Lab, qemu_binary: Callable[[str], Path], version: str, fate: str, state: str
    ) -> None:
        if version == "7.2" and "destination.quit" in fate:
            pytest.skip("a destination of 7.2 has ended by then")
        binary = qemu_binary(version)
        pair = await lab.pair(BUSY, source=binary, destination=binary)
        giving_up = ("--policy", "gentle", "--max-bandwidth", "1MiB/s", "--max-duration", "300ms")
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, f"KILL {fate}", *giving_up)).code == -signal.SIGKILL
            ended = await direct(pair, *giving_up)
            assert (ended.code, ended.state) == (1, state)
            await seen.verify(state)


class TestOffline:
    @fates(
        ("before source.stop", "failed"),
        ("after source.stop", "failed"),
        ("before source.migrate ~", "failed"),
        ("after source.migrate", "completed"),
        ("before source.switch", "completed"),
        ("before destination.cont", "completed"),
    )
    async def test_guest_that_was_stopped_for_it_runs_again(
        self, lab: Lab, one_version: Path, fate: str, state: str
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, f"KILL {fate}", "--policy", "offline")).code == -signal.SIGKILL
            assert (await direct(pair, "--policy", "offline")).state == state
            await seen.verify(state, run_state="running")


_DEATHS = [
    ("after source.migrate", "destination", "failed", 1),
    ("before source.switch", "destination", "failed", 1),
    ("after source.switch", "destination", "failed", 1),
    ("before destination.cont", "destination", "held", 5),
    ("after destination.cont", "destination", "held", 5),
    ("before source.migrate", "source", "held", 5),
    ("before source.switch", "source", "held", 5),
    ("after destination.cont", "source", "completed", 0),
    ("after source.quit", "source", "completed", 0),
]


class TestWhileNobodyWatches:
    @pytest.mark.parametrize(
        ("version", "fate", "side", "state", "code"),
        [
            # The versions differ in what a destination does whose source dies.
            pytest.param(
                version,
                *death,
                marks=[] if version == "7.2" or death[1:3] == ("source", "held") else [matrix],
            )
            for version in ("7.2", "10.0")
            for death in _DEATHS
        ],
    )
    async def test_end_dies_too(
        self,
        lab: Lab,
        qemu_binary: Callable[[str], Path],
        version: str,
        fate: str,
        side: str,
        state: str,
        code: int,
    ) -> None:
        binary = qemu_binary(version)
        pair = await lab.pair(BUSY, source=binary, destination=binary)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, f"KILL {fate}", *PLAIN)).code == -signal.SIGKILL
            if fate == "after source.switch":
                await settled(pair, "completed")
            getattr(pair, side).kill()
            await getattr(pair, side).wait_dead()
            ended = await direct(pair, *PLAIN)
            if state == "held" and side == "source" and ended.code == 3:
                # A destination of 7.2 ends by itself when its source dies: then there is nothing left to hold.
                await pair.destination.wait_dead()
                assert records() == []
                return
            assert (ended.code, ended.state) == (code, state)
            await seen.verify(state, lost=side == "source")

    async def test_both_ends_die_and_the_next_guest_there_is_moved(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        assert (await direct_doomed(pair, "KILL after source.migrate", *PLAIN)).code == -signal.SIGKILL
        for qemu in (pair.source, pair.destination):
            qemu.kill()
            await qemu.wait_dead()
        assert (await direct(pair, *PLAIN)).code == 3
        assert records() == []

    async def test_guest_stops_at_the_last_safe_point_and_waits(self, lab: Lab, one_version: Path) -> None:
        # A controller that is killed leaves the guest at the source; at worst it stands still there.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, "KILL after source.migrate", *PLAIN)).code == -signal.SIGKILL

            async def waits() -> bool:
                return await pair.source.migration_status() == "pre-switchover"

            await until(waits, what="the last safe point")
            assert await lab.counting(within=0.1) == []
            assert await pair.destination.run_state() == "inmigrate"
            assert (await direct(pair, *PLAIN)).code == 0
            await seen.verify("completed")

    async def test_guest_is_paused_by_somebody(self, lab: Lab, one_version: Path) -> None:
        # As long as its memory is copied that can be seen; at the last safe point QEMU's own stop hides it.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, "KILL after source.migrate", *SLOWLY)).code == -signal.SIGKILL
            await pair.source.query("stop")
            async with driven(pair) as second:
                taking = asyncio.create_task(second.take_up(), name="second controller")
                await until(lambda: second.source.looks > 2, what="some looks")
                await hurry(pair)
                assert (await taking).state == "completed"
            await seen.verify("completed", run_state="paused")

    async def test_guest_is_powered_off_by_somebody(self, lab: Lab, one_version: Path) -> None:
        # Nobody heard its last words: it may as well have been killed.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, "KILL after source.migrate", *SLOWLY)).code == -signal.SIGKILL
            await pair.source.query("system_powerdown")
            await pair.source.wait_dead()
            ended = await direct(pair, *PLAIN)
            await pair.destination.wait_dead()
            if ended.code == 3:  # a destination of 7.2 has ended by itself
                assert records() == []
            else:
                await seen.verify(ended.state, lost=True)


async def settled(pair: Pair, status: str | None) -> None:
    """Wait until the source has come this far, or else until it stays where it is."""

    async def shows() -> bool:
        return await pair.source.migration_status() == status

    if status is not None:
        await until(shows, what=f"{status} at the source")
        return
    looks: list[tuple[str, str | None]] = []

    async def rests() -> bool:
        looks.append((await pair.source.run_state(), await pair.source.migration_status()))
        return len(looks) > 20 and len(set(looks[-20:])) == 1

    await until(rests, what="a source that stays as it is")


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=matrix) for seed in range(2, 40))])
async def test_killed_at_any_time(lab: Lab, one_version: Path, seed: int) -> None:
    # Again and again, until one command comes through.
    chance = random.Random(seed)
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        for _ in range(chance.randint(1, 3)):
            async with running(pair, *PLAIN) as command:
                try:
                    ended = await command.ended(within=chance.uniform(0.2, 0.8))
                except TimeoutError:
                    continue
                break
        else:
            ended = await direct(pair, *PLAIN)
        if ended.code == 3:  # the one that was killed had just finished
            assert pair.destination.alive != pair.source.alive
            await seen.verify("completed" if pair.destination.alive else "failed")
        else:
            assert ended.state in ("completed", "failed")
            await seen.verify(ended.state)


class TestRecord:
    async def test_of_a_command_that_runs_keeps_others_off(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await until(records, what="a record")
            second = await direct(pair, *PLAIN)
            assert second.code == 2
            assert "another migrator" in second.error
            assert command.runs
            command.signal(signal.SIGTERM)
            assert (await command.ended()).code == 4
            await seen.verify("cancelled")

    async def test_of_a_command_that_is_frozen_keeps_others_off_too(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await until(records, what="a record")
            command.signal(signal.SIGSTOP)
            second = await direct(pair, *PLAIN)
            assert second.code == 2
            assert "another migrator" in second.error
            command.signal(signal.SIGCONT)
            command.signal(signal.SIGTERM)
            assert (await command.ended()).code == 4
            await seen.verify("cancelled")

    async def test_keeps_other_migrations_of_its_ends_off_and_says_how_to_end_it(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        assert (await direct_doomed(pair, "KILL before record.end", *PLAIN)).code == -signal.SIGKILL
        onward = Pair(pair.destination, await lab.start(BUSY, incoming=True))
        refused = await direct(onward, *PLAIN)
        assert refused.code == 2
        assert " ".join(addresses(pair)) in refused.error
        assert (await direct(pair, *PLAIN)).code == 0
        async with witness(lab, onward) as seen:
            assert (await direct(onward, *PLAIN)).code == 0
            await seen.verify("completed")

    async def test_of_one_end_that_another_process_has_replaced_is_not_acted_on(self, lab: Lab) -> None:
        # A new guest at the same address is none of the old migration's business.
        pair = await lab.pair(BUSY)
        assert (await direct_doomed(pair, "KILL after source.migrate", *SLOWLY)).code == -signal.SIGKILL
        pair.destination.kill()
        await pair.destination.wait_dead()
        for path in (pair.destination.qmp, pair.destination.rescue):
            path.unlink(missing_ok=True)
        stranger = await lab.boot(label="stranger")
        pair.destination.qmp.symlink_to(stranger.qmp)
        before = await settings(stranger)
        refused = await direct(pair, *PLAIN)
        assert refused.code == 2
        assert "another process" in refused.error
        assert await settings(stranger) == before
        assert set(await lab.counting(at_least=2)) == {pair.source, stranger}

    @pytest.mark.parametrize(
        "fate",
        ["after source.migrate", "before source.switch", "after source.switch", "after destination.cont"],
    )
    async def test_that_is_not_there_is_not_guessed(
        self, lab: Lab, tmp_path: Path, one_version: Path, fate: str
    ) -> None:
        # Another user, or a state directory that was cleared: nothing tells what the other controller meant to do.
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, f"KILL {fate}", *PLAIN)).code == -signal.SIGKILL
            await settled(pair, "pre-switchover" if fate == "after source.migrate" else None)
            before = await settings(pair.source), await settings(pair.destination)
            ended = await run_with_state(pair, tmp_path / "elsewhere")
            assert ended.code in (3, 5)
            assert (await settings(pair.source), await settings(pair.destination)) == before
            assert (await direct(pair, *PLAIN)).code == 0
            await seen.verify("completed")

    async def test_that_cannot_be_written_is_a_reason_not_to_begin(self, lab: Lab, tmp_path: Path) -> None:
        pair = await lab.pair(BUSY)
        (tmp_path / "file").touch()
        async with witness(lab, pair) as seen:
            ended = await run_with_state(pair, tmp_path / "file")
            assert ended.code == 2
            assert "record" in ended.error
            await seen.verify_untouched()

    async def test_that_is_damaged_is_not_guessed_at(self, lab: Lab, tmp_path: Path) -> None:
        pair = await lab.pair(BUSY)
        assert (await direct_doomed(pair, "KILL before source.switch", *PLAIN)).code == -signal.SIGKILL
        (record,) = records()
        record.write_bytes(record.read_bytes()[:40])
        states = await pair.source.run_state(), await pair.destination.run_state()
        ended = await direct(pair, *PLAIN)
        assert ended.code == 2
        assert str(record) in ended.error
        assert (await pair.source.run_state(), await pair.destination.run_state()) == states

    async def test_whose_last_line_was_cut_short_is_taken_up(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen:
            assert (await direct_doomed(pair, "KILL before source.switch", *PLAIN)).code == -signal.SIGKILL
            (record,) = records()
            with record.open("ab") as file:
                file.write(b'{"time": 17, "inte')
            assert (await direct(pair, *PLAIN)).code == 0
            await seen.verify("completed")

    async def test_is_kept_where_the_state_directory_is(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        assert (await direct(pair, *PLAIN)).code == 0
        (kept,) = (Path(os.environ["XDG_STATE_HOME"]) / "migrator" / "direct" / "ended").iterdir()
        assert kept.stat().st_mode & 0o077 == 0


async def run_with_state(pair: Pair, state: Path):
    """``migrator direct`` with another state directory."""
    arguments = ("direct", *addresses(pair), "--json")
    async with started(*arguments, variables={"XDG_STATE_HOME": str(state)}) as command:
        return await command.ended()
