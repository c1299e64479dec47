"""A record of steps that is missing or damaged is never taken for one that never was; over a simulated site."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.api.commands import Migrate, Resolve
from migrator.api.documents import MigrationDocument
from migrator.api.replies import Refusal
from migrator.core.model import State
from migrator.testing.journal import MemoryJournal
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady
from tests.stops import Life, Lives
from tests.unit.test_stopped_anywhere import OPERATOR, begin, go_on, lives, never_two, whole

pytestmark = pytest.mark.looptime

#: Instants after which nobody may guess any more, by policy.
_STEPS = [
    ("default", "record.begin, done"),
    ("default", "qemu.listen, done"),
    ("default", "qemu.migrate, done"),
    ("default", "qemu.switch, done"),
    ("default", "qemu.cont, done"),
    ("postcopy-first", "qemu.start_postcopy, done"),
    ("postcopy-first", "qemu.cont, done"),
]


def busy(directory: Path) -> Lives:
    """A site whose guest writes faster than its stream sends.

    While the limit is parked such a guest never reaches the switch by itself: no guard is at a simulated source.
    """
    site = SimulatedSite()
    for name in ("a", "b"):
        site.add_host(name, link=1000 * MIB)
    site.add_guest("vm-0", host="a", workload=steady(64 * MIB, 1500 * MIB), memory_bytes=256 * MIB)
    return Lives(directory, site)


async def killed_at(
    world: Lives, instant: str, policy: str, *, undisturbed: Callable[[Path], Lives] = lives
) -> None:
    """A migration, killed there; the instant after, where the journal is still to be told.

    :param undisturbed: makes a site like that of `world`.
    """
    command = Migrate(guest="vm-0", to="b", policy=policy)
    life = Life()
    await begin(undisturbed(world.directory / "whole"), life, command)
    number = life.instants.index(instant) + 1
    if instant.startswith("record.begin"):
        number = life.instants.index("journal.save, done", number) + 1
    await begin(world, Life(number), command)


async def until_held(world: Lives) -> MigrationDocument:
    async with world.engine(Life()) as engine, asyncio.timeout(60):
        while True:
            for job in engine.registry.migrations.values():
                if job.state is State.HELD and not engine.registry.busy(job):
                    return job.document()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
@pytest.mark.parametrize(("policy", "instant"), _STEPS, ids=lambda value: value.replace(" ", "-"))
async def test_migration_is_held_and_neither_end_is_touched(
    tmp_path: Path, policy: str, instant: str, damage: str
) -> None:
    world = busy(tmp_path)
    async with never_two(world):
        await killed_at(world, instant, policy, undisturbed=busy)
        (record,) = tmp_path.glob("*.jsonl")
        if damage == "missing":
            record.unlink()
        else:
            record.write_text("\n")
        where = world.site.running("vm-0")
        ends = [end for made in world.site.made.values() for end in made]
        for document in (await until_held(world), await until_held(world)):  # and so it stays
            told = document.error or ""
            assert document.held_code == f"record-{damage}"
            assert "nothing was done to either end; " in told
            assert "say where the guest is" in told
            assert not any(end.dead for end in ends)
            assert world.site.running("vm-0") == where
            assert where != ["b"] or "the guest runs at the destination" in told


async def test_record_that_never_was_is_no_reason_to_hold(tmp_path: Path) -> None:
    command = Migrate(guest="vm-0", to="b")
    instants = await whole(tmp_path / "whole", command)
    for number in range(instants.index("site.start_destination"), instants.index("record.begin") + 1):
        world = lives(tmp_path / str(number))
        await begin(world, Life(number), command)
        shutil.rmtree(world.directory, ignore_errors=True)
        await go_on(world)
        assert world.site.running("vm-0") == ["b"]


async def test_records_of_another_journal_are_no_proof_that_nothing_was_done(tmp_path: Path) -> None:
    world = lives(tmp_path)
    await killed_at(world, "qemu.switch, done", "default")
    (saved,) = await world.journal.page("migration", limit=9)
    # As an older journal has it: of a time when it was being prepared.
    saved["_private"] |= {"recorded": False, "places": {"source": saved["_private"]["places"]["source"]}}
    await world.journal.save(("migration", saved | {"state": "preparing", "started_at": None}))
    shutil.rmtree(world.directory)
    world.whole = False
    assert (await until_held(world)).held_code == "record-missing"
    assert not any(end.dead for made in world.site.made.values() for end in made)


async def test_record_without_its_journal_is_held_until_a_person_has_said_where_the_guest_is(
    tmp_path: Path,
) -> None:
    world = lives(tmp_path)
    await killed_at(world, "qemu.listen, done", "default")
    (record,) = tmp_path.glob("*.jsonl")
    world.journal = MemoryJournal()
    for document in (await until_held(world), await until_held(world)):
        assert (document.id, document.held_code) == (record.stem, "record-orphaned")
        assert (document.guest_name, document.source, document.destination) == ("vm-0", "a", "b")
        assert str(record) in (document.error or "")
        assert "the guest runs at the source, which does not migrate" in (document.error or "")
        assert world.site.running("vm-0") == ["a"]
    async with world.engine(Life()) as engine:
        while engine.registry.busy(engine.registry.migrations[record.stem]):
            await asyncio.sleep(0.05)
        with pytest.raises(Refusal, match=r"vm-0 is held already"):
            await engine.handlers.carry_out(Migrate(guest="vm-0", to="c"), OPERATOR, key="")
        ended = await engine.handlers.carry_out(
            Resolve(migration=record.stem, guest_at="source"), OPERATOR, key=""
        )
        assert isinstance(ended, MigrationDocument)
        assert ended.state is State.FAILED
    assert not record.exists()
    assert world.site.running("vm-0") == ["a"]


async def test_record_of_a_migration_that_has_ended_by_the_journal_is_put_away(tmp_path: Path) -> None:
    world = lives(tmp_path)
    await begin(world, Life(), Migrate(guest="vm-0", to="b"))
    (ended,) = (tmp_path / "ended").glob("*.jsonl")
    lines = ended.read_text().splitlines()[:-1]
    (tmp_path / ended.name).write_text("\n".join(lines) + "\n")
    async with world.engine(Life()) as engine:
        assert list(engine.registry.migrations) == []
        assert engine.left_records == []
    assert list(tmp_path.glob("*.jsonl")) == []


async def test_record_that_nobody_can_make_anything_of_is_named(tmp_path: Path) -> None:
    world = lives(tmp_path)
    (tmp_path / "0123456789ab.jsonl").write_text("{}\n")
    async with world.engine(Life()) as engine:
        (said,) = engine.left_records
        assert "0123456789ab.jsonl is the record of a migration that the journal does not know" in said
    assert (tmp_path / "0123456789ab.jsonl").exists()


async def test_another_guest_at_the_socket_of_one_that_was_to_be_moved_is_not_moved(tmp_path: Path) -> None:
    world = lives(tmp_path)
    async with world.engine(Life()) as engine, asyncio.timeout(60):
        begun = await engine.handlers.carry_out(Migrate(guest="vm-0", to="b"), OPERATOR, key="")
        assert isinstance(begun, MigrationDocument)
        job = engine.registry.migrations[begun.id]
        job.guest = replace(job.guest, uuid="00000000-0000-4000-8000-000000000001")
        while not job.ended:
            await asyncio.sleep(0.05)
        assert job.state is State.FAILED
        assert "another guest (" in (job.result.error or "")
    assert world.site.running("vm-0") == ["a"]
    assert not any(not end.dead for made in world.site.made.values() for end in made)


async def test_one_that_an_older_version_had_queued_again_is_begun_anew_however_often(tmp_path: Path) -> None:
    world = lives(tmp_path)
    await killed_at(world, "qemu.listen, done", "default")
    (saved,) = await world.journal.page("migration", limit=9)
    (tmp_path / "ended").mkdir(exist_ok=True)
    for record in tmp_path.glob("*.jsonl"):
        outcome = json.dumps(
            {"time": 1.0, "end": {"state": "cancelled", "error": "cancelled before it began"}}
        )
        lines = json.loads(record.read_text().splitlines()[0])
        del lines["facts"]["attempt"]
        (tmp_path / "ended" / record.name).write_text(f"{json.dumps(lines)}\n{outcome}\n")
        record.unlink()
    for name in ("attempt", "recorded", "cancelled"):
        del saved["_private"][name]
    saved |= {"state": "queued", "started_at": saved["created_at"]}
    saved["_private"]["places"]["destination"] = {"host": "b", "socket": "/gone", "identity": {}}
    await world.journal.save(("migration", saved))
    await begin(world, Life(20), Migrate(guest="vm-0", to="b"))
    await go_on(world)
    assert world.site.running("vm-0") == ["b"]


@pytest.mark.parametrize("handed_over", [True, False, None])
async def test_images_of_a_guest_that_may_have_run_there_stay_where_its_end_is_taken_from_its_record(
    tmp_path: Path, handed_over: bool | None
) -> None:
    world = lives(tmp_path)
    await killed_at(world, "record.end, done", "default")
    (ended,) = (tmp_path / "ended").glob("*.jsonl")
    *lines, last = ended.read_text().splitlines()
    end = json.loads(last)
    assert end["end"]["handed_over"] is True
    end["end"] |= {
        "state": "guest-ended",
        "handed_over": handed_over,
        "disks": [{"device": "d", "size_bytes": 1, "path": "/d.img", "new": True}],
    }
    ended.write_text("\n".join([*lines, json.dumps(end)]) + "\n")
    await go_on(world)
    assert world.site.abandoned == [handed_over is False]
    assert world.site.put_away == ([] if handed_over is False else ["/d.img"])
