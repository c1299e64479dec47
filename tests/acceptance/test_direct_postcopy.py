"""``migrator direct`` by postcopy: interrupted where that is too late, and killed at each step of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.testing.lab import Lab, until
from migrator.testing.network import LabHosts
from tests.command import Ended, direct, direct_doomed, running
from tests.invariants import records, witness
from tests.postcopy import BUSY, FULL

matrix = pytest.mark.matrix
#: Slow enough that precopy has not ended before postcopy begins.
AT_ONCE = ("--postcopy", "immediate", "--max-bandwidth", "32MiB/s")


async def test_guest_arrives_by_postcopy(lab: Lab, one_crossing: tuple[Path, Path]) -> None:
    pair = await lab.pair(BUSY, source=one_crossing[0], destination=one_crossing[1])
    async with witness(lab, pair) as seen:
        ended = await direct(pair, *AT_ONCE)
        assert (ended.code, ended.state, ended.document["mode"]) == (0, "completed", "postcopy")
        await seen.verify("completed")
    assert 0 < ended.document["downtime_seconds"] < ended.document["duration_seconds"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
async def test_interrupted_once_the_guest_runs_there_says_that_it_is_too_late_and_finishes(
    hosts: LabHosts, lab: Lab, number: signal.Signals
) -> None:
    pair = await lab.pair(FULL, source_prefix=hosts["alpha"].prefix, destination_prefix=hosts["beta"].prefix)
    hosts["alpha"].set_speed(4e6)
    async with witness(lab, pair) as seen:
        listen = f"tcp:{hosts['beta'].address}:0"
        async with running(pair, "--postcopy", "immediate", "--listen", listen) as command:
            await pair.destination.wait_beating()
            for _ in range(2):
                await command.signalled(number)
                beats = pair.destination.beats
                await until(lambda: pair.destination.beats > beats + 3, what="some of the guest's time")  # noqa: B023
            assert command.runs
            hosts["alpha"].set_speed(400e6)
            ended = await command.ended()
        assert (ended.code, ended.state, ended.document["mode"]) == (0, "completed", "postcopy")
        assert ended.err.count("too late to cancel") == 2
        await seen.verify("completed")


class TestKilled:
    """The command, typed again, finishes; the guest runs at one end or the other, and never at both."""

    async def killed_and_typed_again(self, lab: Lab, binary: Path, fate: str, *, run_state: str) -> Ended:
        pair = await lab.pair(BUSY, source=binary, destination=binary)
        if run_state == "paused":
            await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            killed = await direct_doomed(pair, f"KILL {fate}", *AT_ONCE)
            assert killed.code == -signal.SIGKILL
            assert len(records()) == 1
            ended = await direct(pair, *AT_ONCE)
            assert "take-up" in ended.actions
            await seen.verify(ended.state, run_state=run_state)
        return ended

    @pytest.mark.parametrize(
        "fate",
        [
            "after source.stop",
            "after source.start_postcopy",
            "before source.switch",
            "after source.switch",
            "before destination.cont",
            "after destination.cont",
            pytest.param("before destination.announce", marks=matrix),
            pytest.param("before source.quit", marks=matrix),
            pytest.param("after source.quit", marks=matrix),
            pytest.param("before record.end", marks=matrix),
        ],
    )
    async def test_the_guest_arrives_and_runs(self, lab: Lab, one_version: Path, fate: str) -> None:
        ended = await self.killed_and_typed_again(lab, one_version, fate, run_state="running")
        assert (ended.code, ended.state) == (0, "completed")

    async def test_before_anything_of_it_was_sent_the_guest_stays(self, lab: Lab, one_version: Path) -> None:
        ended = await self.killed_and_typed_again(
            lab, one_version, "before source.migrate", run_state="running"
        )
        assert (ended.code, ended.state) == (1, "failed")

    @matrix
    async def test_where_only_its_beginning_was_sent_the_guest_arrives_or_has_not_begun_to_move(
        self, lab: Lab, one_version: Path
    ) -> None:
        # It goes on with what QEMU began; a command that QEMU has not begun is dropped with the connection.
        ended = await self.killed_and_typed_again(lab, one_version, "before source.stop", run_state="running")
        if ended.state == "completed":
            assert (ended.code, ended.document["mode"]) == (0, "postcopy")
        else:
            assert (ended.code, ended.state) == (1, "failed")
            assert ended.document["transferred_bytes"] == 0

    @pytest.mark.parametrize("fate", ["after source.switch", "before destination.cont"])
    async def test_the_guest_arrives_and_runs_on_the_other_version_too(
        self, lab: Lab, qemu_binary: Callable[[str], Path], fate: str
    ) -> None:
        ended = await self.killed_and_typed_again(lab, qemu_binary("10.0"), fate, run_state="running")
        assert (ended.code, ended.state) == (0, "completed")

    @pytest.mark.parametrize("fate", ["after source.switch", pytest.param("after source.quit", marks=matrix)])
    async def test_a_paused_guest_arrives_paused(self, lab: Lab, one_version: Path, fate: str) -> None:
        ended = await self.killed_and_typed_again(lab, one_version, fate, run_state="paused")
        assert (ended.code, ended.state) == (0, "completed")
