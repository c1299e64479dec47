"""A service whose journal and records do not say the same, and one that is stopped while a guest is prepared."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine
from tests.acceptance.service_site import MIB, SLOW, LiveSite, Witness, guest, served
from tests.acceptance.test_service_recovery import held
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def begun(site: LiveSite, machine: GuestMachine, to: str, policy: str) -> str:
    """A migration that is under way; its id."""
    found = await site.post("migrations", guest=machine.name, to=to, policy=policy)
    return str(found["id"])


def steps(site: LiveSite) -> Path:
    return site.directory / "state" / "steps"


@pytest.mark.matrix
async def test_record_that_is_lost_is_held_and_no_process_is_ended_whatever_step_it_was_at() -> None:
    machine = guest("db", region=48 * MIB, speed=10 * MIB)
    async with served([machine], speed=SLOW) as site, Witness(site, [machine]):
        # While memory is copied: the guest is whole at its source.
        with site.crawling():
            migration = await begun(site, machine, "b", "gentle")
            await site.until_state("precopy", of=migration)
            site.kill()
        (steps(site) / f"{migration}.jsonl").unlink()
        alive = {qemu.pid for qemu in site.instances(machine)}
        assert len(alive) == 2
        site.serve()
        await site.until_served()
        document = await held(site, migration)
        assert document["held_code"] == "record-missing"
        assert "nothing was done to either end" in document["error"]
        assert {qemu.pid for qemu in site.instances(machine)} == alive
        await site.post(f"migrations/{migration}/resolve", guest_at="source")
        await site.everyone_at([machine], "a")

        # After a switch to postcopy the guest runs at its destination and needs its source.
        with site.crawling():
            migration = await begun(site, machine, "c", "postcopy-first")
            await site.until_state("postcopy", of=migration)
            site.kill()
        (steps(site) / f"{migration}.jsonl").write_text("\n")
        alive = {qemu.pid for qemu in site.instances(machine)}
        site.serve()
        await site.until_served()
        document = await held(site, migration)
        assert document["held_code"] == "record-damaged"
        assert "the guest runs at the destination" in document["error"]
        assert {qemu.pid for qemu in site.instances(machine)} == alive


async def test_record_without_its_journal_is_held_and_said_at_the_start() -> None:
    machine = guest("db", region=48 * MIB, speed=10 * MIB)
    async with served([machine], speed=SLOW) as site, Witness(site, [machine]):
        with site.crawling():
            migration = await begun(site, machine, "b", "gentle")
            await site.until_state("precopy", of=migration)
            site.kill()
        for path in (site.directory / "state").glob("journal.db*"):
            path.unlink()
        alive = {qemu.pid for qemu in site.instances(machine)}
        site.serve()
        await site.until_served()
        document = await held(site, migration)
        assert document["held_code"] == "record-orphaned"
        assert (document["guest_name"], document["source"], document["destination"]) == ("db", "a", "b")
        assert {qemu.pid for qemu in site.instances(machine)} == alive
        assert "journal and records do not belong together" in site.log()
        await site.post(f"migrations/{migration}/resolve", guest_at="source")
        await site.everyone_at([machine], "a")


def accepted(site: LiveSite, before: set[Any]) -> bool:
    return True


def started(site: LiveSite, before: set[Any]) -> bool:
    """The process of a destination is there."""
    return bool({qemu.pid for qemu in site.instances(_MACHINE)} - before)


def recorded(site: LiveSite, before: set[Any]) -> bool:
    """The record has just appeared."""
    return any(steps(site).glob("*.jsonl"))


_MACHINE = guest("calm")
Moment = Callable[[LiveSite, set[Any]], bool]


@pytest.mark.parametrize(
    ("how", "moments"),
    [
        ("killed", [started, recorded]),
        pytest.param("stopped", [recorded], marks=pytest.mark.matrix),
        pytest.param("killed", [accepted, started, recorded] * 2, marks=pytest.mark.matrix),
        pytest.param("stopped", [accepted, started, recorded] * 2, marks=pytest.mark.matrix),
    ],
    ids=["killed", "stopped", "killed-often", "stopped-often"],
)
@pytest.mark.matrix
async def test_stopped_while_a_guest_is_prepared_its_migration_completes_after_the_next_start(
    how: str, moments: list[Moment]
) -> None:
    async with served([_MACHINE]) as site, Witness(site, [_MACHINE]):
        for number, moment in enumerate(moments):
            target = "bc"[number % 2]
            before = {qemu.pid for qemu in site.instances(_MACHINE)}
            migration = await begun(site, _MACHINE, target, "default")
            deadline = time.monotonic() + 20
            while not moment(site, before):  # as close to it as can be
                assert time.monotonic() < deadline, moment.__name__
            if how == "killed":
                site.kill()
            else:
                site.stop()
            site.serve()
            await site.until_served()
            await site.migration_ended(migration, "completed")
            await site.everyone_at([_MACHINE], target)
            assert not list(steps(site).glob("*.jsonl"))


async def test_a_backup_as_documented_brings_everything_back(tmp_path: Path) -> None:
    machine = guest("db", region=48 * MIB, speed=10 * MIB)
    async with served([machine], speed=SLOW) as site, Witness(site, [machine]):
        with site.crawling():
            migration = await begun(site, machine, "b", "gentle")
            await site.until_state("precopy", of=migration)
            site.stop()  # parks it
        state = site.directory / "state"
        shutil.copytree(state, tmp_path / "backup")
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "backup", state)
        state.chmod(0o700)
        site.serve()
        await site.until_served()
        await site.migration_ended(migration, "completed", within=60)
        assert "do not belong together" not in site.log()
