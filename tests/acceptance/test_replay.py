"""A run that was recorded, seen through other policies."""

from __future__ import annotations

import json
from pathlib import Path

from migrator.testing.guest import Habit
from migrator.testing.lab import GuestMachine, Lab
from tests.command import direct, run

MIB = 1 << 20
#: Rewrites 48 MiB faster than the stream of 24 MiB/s that it gets here.
RESTLESS = GuestMachine(habit=Habit(region_bytes=48 * MIB, bytes_per_second=60 * MIB))


async def test_a_recorded_run_is_replayed_through_other_policies(lab: Lab, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    pair = await lab.pair(RESTLESS)
    ended = await direct(
        pair, "--max-bandwidth", "24MiB/s", "--max-throttle", "0%", "--record", str(record), within=60
    )
    assert ended.code == 0, ended
    assert "start-postcopy" in ended.actions

    other = await run("replay", str(record), "--policy", "postcopy-first", "--json")
    assert other.code == 0, other
    decisions = json.loads(other.out)["decisions"]
    assert [decision["action"] for decision in decisions] == ["start-postcopy", "end"]
    assert decisions[0]["at_seconds"] < 3
    assert all(decision["reason"] for decision in decisions)

    same = await run("replay", str(record), "--policy", "default")
    assert "As it was, under policy default" in same.out
    assert "start-postcopy" in same.out


async def test_a_file_that_is_no_recorded_run_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, text in (
        ("empty", ""),
        ("prose", "not JSON"),
        ("other", '{"version": 99}\n'),
        ("list", "[1]\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        ended = await run("replay", str(path), "--policy", "default")
        assert ended.code == 2
        assert ended.out == ""
        assert len(ended.err.splitlines()) == 1
        assert str(path) in ended.err


async def test_a_record_that_cannot_be_written_is_refused_before_anything_is_changed(lab: Lab) -> None:
    pair = await lab.pair()
    ended = await direct(pair, "--record", "/nowhere/run.jsonl")
    assert ended.code == 2
    assert "/nowhere/run.jsonl" in ended.err
    assert await pair.source.migration_status() is None
    assert await pair.destination.run_state() == "inmigrate"
