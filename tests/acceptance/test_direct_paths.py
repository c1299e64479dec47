"""``migrator direct`` over a narrow path: it learns what the path carries, and keeps that; and its quiet start."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from migrator.core.link_learning import LinkLearning
from migrator.store.learned_paths import LearnedPaths
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, until
from migrator.testing.network import LabHosts
from tests.command import direct, running
from tests.conftest import missing

MIB = 1 << 20
#: 40 Mbit/s.
PATH = 5e6
FILLED = GuestMachine(habit=Habit(region_bytes=16 * MIB, passes=1))
BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=40 * MIB))


def kept(target: str) -> LinkLearning:
    document = LearnedPaths().document("localhost")
    assert document is not None
    return LinkLearning.from_fields(document["to"][target])


async def test_stream_is_held_to_what_a_narrow_path_carries_and_that_is_kept(lab: Lab) -> None:
    if (why := network.possible()) is not None:
        missing(why)
    with LabHosts("alpha", "beta", isolated=True) as hosts:
        hosts["alpha"].set_speed(PATH)
        address = hosts["beta"].address
        source = await lab.boot(FILLED, prefix=hosts["alpha"].prefix)
        waiting = await lab.start(FILLED, incoming=True, prefix=hosts["beta"].prefix)
        ended = await direct(Pair(source, waiting), "--listen", f"tcp:{address}:0")
        assert ended.state == "completed", ended.error
        learned = kept(address).now(0.0)
        assert learned is not None
        assert 0.6 * PATH < learned < 1.1 * PATH


async def test_loopback_is_no_path_and_nothing_is_written_of_it(lab: Lab, tmp_path: Path) -> None:
    ended = await direct(await lab.pair())
    assert ended.state == "completed", ended.error
    assert not list(tmp_path.rglob("paths.json"))


@pytest.mark.parametrize(
    "content", ["", "[]", '{"localhost": 3}', '{"localhost": {"id": "localhost"}}'], ids=str
)
async def test_damaged_file_is_no_obstacle(lab: Lab, content: str) -> None:
    path = LearnedPaths().path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    ended = await direct(await lab.pair(), "--listen", "tcp:127.0.0.2:0")
    assert ended.state == "completed", ended.error


class TestQuietStart:
    async def test_guest_that_writes_little_begins_at_once(self, lab: Lab) -> None:
        ended = await direct(await lab.pair(), "--start", "quiet")
        assert ended.state == "completed", ended.error
        said = [each["reason"] for each in ended.document["decisions"] if each["action"] == "quiet-start"]
        assert [reason.partition(":")[0] for reason in said] == ["the guest is quiet"], ended.document

    async def test_busy_guest_is_waited_for_and_cancelling_changes_nothing(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        async with running(pair, "--start", "quiet") as command:

            async def measured() -> bool:
                return bool((await pair.source.query("query-dirty-rate"))["status"] == "measured")

            await until(measured, what="a measurement of the write rate")
            command.signal(signal.SIGINT)
            ended = await command.ended()
        assert (ended.code, ended.state) == (4, "cancelled"), ended.error
        assert await lab.counting() == [pair.source]

    async def test_guest_that_works_and_rests_is_moved_while_it_rests(self, lab: Lab) -> None:
        habit = Habit(region_bytes=16 * MIB, bytes_per_second=40 * MIB, on_seconds=3, off_seconds=3)
        ended = await direct(await lab.pair(GuestMachine(habit=habit)), "--start", "quiet")
        assert ended.state == "completed", ended.error
        said = [each["reason"] for each in ended.document["decisions"] if each["action"] == "quiet-start"]
        assert len(said) == 1
        assert said[0].startswith("the guest is quiet"), json.dumps(ended.document["decisions"])

    async def test_stopped_guest_and_quiet_start_contradict_each_other(self, lab: Lab) -> None:
        ended = await direct(await lab.pair(), "--policy", "offline", "--start", "quiet")
        assert ended.code == 2
        assert "contradict" in ended.error
