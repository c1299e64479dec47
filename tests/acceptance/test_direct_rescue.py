"""``migrator direct --rescue``: what a command left behind whose record is lost, ended from what both QEMUs show."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from migrator.core.migration.drivers import Driver
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair
from tests.acceptance.test_two_controllers import frozen
from tests.command import Ended, addresses, direct_doomed, run
from tests.invariants import Witness, records, settings, witness

MIB = 1 << 20
BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB), image_locking="off")
PRECOPY, POSTCOPY = ("--postcopy", "never"), ("--postcopy", "immediate")


@asynccontextmanager
async def left_behind(
    lab: Lab, qemu: Path, step: str, *options: str, paused: bool = False
) -> AsyncIterator[tuple[Pair, Witness]]:
    """A pair whose command was killed at this step, and whose record is lost."""
    pair = await lab.pair(BUSY, source=qemu, destination=qemu)
    if paused:
        await pair.source.query("stop")
    async with witness(lab, pair) as seen:
        assert (await direct_doomed(pair, f"KILL {step}", *options)).code == -signal.SIGKILL
        (record,) = records()
        record.unlink()
        yield pair, seen


async def rescue(pair: Pair, *options: str) -> Ended:
    return await run("direct", "--rescue", *addresses(pair), "--json", *options)


@pytest.mark.parametrize(
    "options", [PRECOPY, pytest.param(POSTCOPY, marks=pytest.mark.matrix)], ids=["precopy", "postcopy"]
)
async def test_a_guest_that_stands_at_the_switch_goes_on_at_the_source_as_it_was(
    lab: Lab, one_version: Path, options: tuple[str, ...]
) -> None:
    async with left_behind(lab, one_version, "before source.switch", *options) as (pair, seen):
        before = await settings(pair.source)
        told = await rescue(pair)
        assert told.code == 2
        assert "the destination's process is killed and seen dead" in told.document["would_do"]
        assert await settings(pair.source) == before, "saying what would be done does nothing"
        ended = await rescue(pair, "--yes")
        assert ended.code == 0, ended
        assert ended.document["guest_at"] == "source"
        await seen.verify("cancelled")


@pytest.mark.parametrize(
    ("step", "options"),
    [
        ("before destination.cont", PRECOPY),
        ("before destination.cont", POSTCOPY),
        ("after destination.cont", POSTCOPY),
        pytest.param("after destination.cont", PRECOPY, marks=pytest.mark.matrix),
    ],
    ids=["arrived", "postcopy-stands", "postcopy-fetches", "runs"],
)
async def test_a_guest_that_has_left_goes_on_at_the_destination(
    lab: Lab, one_version: Path, step: str, options: tuple[str, ...]
) -> None:
    async with left_behind(lab, one_version, step, *options) as (pair, seen):
        ended = await rescue(pair, "--yes")
        assert ended.code == 0, ended
        assert ended.document["guest_at"] == "destination"
        await seen.verify("completed")


async def test_a_guest_that_was_paused_stays_paused_unless_a_person_says_otherwise(
    lab: Lab, one_version: Path
) -> None:
    step = "before record.note:retiring"
    async with left_behind(lab, one_version, step, *PRECOPY, paused=True) as (pair, seen):
        assert (await rescue(pair, "--yes")).code == 0
        await seen.verify("completed", run_state="paused")


async def test_a_destination_that_is_gone_is_left_out(lab: Lab, one_version: Path) -> None:
    async with left_behind(lab, one_version, "before source.switch", *PRECOPY) as (pair, seen):
        pair.destination.kill()
        source = ("--source", f"unix:{pair.source.qmp}")
        ended = await run("direct", "--rescue", *source, "--yes", "--json")
        assert ended.code == 0, ended
        await seen.verify("cancelled")
        again = await run("direct", "--rescue", *source, "--yes")
        assert again.code == 0
        assert "nothing to rescue: the guest is at the source (running)" in again.out


async def test_where_the_source_died_a_person_has_to_say_that_it_did_not_run_on(
    lab: Lab, one_version: Path
) -> None:
    async with left_behind(lab, one_version, "before destination.cont", *PRECOPY) as (pair, seen):
        pair.source.kill()
        destination = ("--destination", f"unix:{pair.destination.qmp}", "--run-state", "running", "--yes")
        refused = await run("direct", "--rescue", *destination)
        assert refused.code == 5
        assert "look at the disks" in refused.out
        assert "say --guest-at destination" in refused.out
        assert await pair.destination.run_state() == "paused"
        ended = await run("direct", "--rescue", *destination, "--guest-at", "destination")
        assert ended.code == 0, ended
        await seen.verify("completed")


async def test_nothing_is_rescued_from_a_controller_that_lives(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with frozen(pair, "before source.switch") as first:
            (record,) = records()
            record.rename(record.with_suffix(".aside"))
            command = (
                "--source",
                f"unix:{pair.source.rescue}",
                "--destination",
                f"unix:{pair.destination.rescue}",
            )
            refused = await run("direct", "--rescue", *command, "--yes", "--take-over")
            assert refused.code == 3
            assert f"it is driven by migrator direct, pid {first.pid} on " in refused.err
            assert await pair.source.run_state() == "finish-migrate"
            record.with_suffix(".aside").rename(record)
            first.signal(signal.SIGCONT)
            assert (await first.ended()).code == 0
        await seen.verify("completed")


async def test_a_mark_of_a_controller_that_is_gone_keeps_nobody_from_a_guest_that_stayed(
    lab: Lab, one_version: Path
) -> None:
    qemu = await lab.boot(BUSY, binary=one_version)
    before = await settings(qemu)
    elsewhere = {"pid": 1, "start_time": 1, "boot_id": "another", "pid_namespace": "pid:[1]"}
    was = {
        "runs": True,
        "settings": {"capabilities": before.capabilities, "parameters": before.parameters},
    }
    driver = Driver(token="t", controller="c", who="migrator direct", process=elsewhere, was=was)
    mark = {"qom-type": "authz-simple", "id": "migrator-driver", "identity": driver.text()}
    await qemu.query("object-add", mark)
    await qemu.query("migrate-set-parameters", {"downtime-limit": 1})
    source = ("--source", f"unix:{qemu.qmp}", "--json")
    assert (await run("direct", "--rescue", *source)).code == 3, "it may be alive"
    told = await run("direct", "--rescue", *source, "--take-over")
    assert told.code == 2
    assert "the mark of a controller that is gone is removed" in told.document["would_do"][0]
    assert (await run("direct", "--rescue", *source, "--take-over", "--yes")).code == 0
    assert "migrator-driver" not in str(await qemu.query("qom-list", {"path": "/objects"}))
    assert await settings(qemu) == before
    assert await qemu.run_state() == "running"


async def test_a_migration_that_another_tool_left_is_rescued_too(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with pair.source.monitor() as source, pair.destination.monitor() as destination:
            names = ("events", "return-path", "pause-before-switchover")
            wanted = [{"capability": name, "state": True} for name in names]
            for monitor in (source, destination):
                await monitor.execute("migrate-set-capabilities", capabilities=wanted)
            await destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
            where = (await destination.execute("query-migrate"))["socket-address"][0]
            await source.execute("migrate", uri=f"tcp:{where['host']}:{where['port']}")
            while (await source.execute("query-migrate"))["status"] != "pre-switchover":
                await source.event("MIGRATION", within=20)
        refused = await rescue(pair, "--yes")
        assert refused.code == 5
        assert "say --run-state running or paused" in refused.error
        ended = await rescue(pair, "--yes", "--run-state", "running")
        assert ended.code == 0, ended
        assert await pair.source.run_state() == "running"
        await pair.destination.wait_dead()
        await seen.verify_never_two()
