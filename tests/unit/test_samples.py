"""The figures of migrations in the journal."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from migrator.core.migration.downsampling import MOST, Point, Series
from migrator.core.model import Sample, State
from migrator.errors import JournalError
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.testing.lab import until
from tests.journals import run_sql


def _point(at: float, **figures: Any) -> Point:
    sample = Sample(at_seconds=at, total_bytes=2**30, remaining_bytes=2**20, **figures)
    return Point(sample=sample, state=State.PRECOPY, limit_seconds=0.25)


async def _rows(place: Place) -> list[tuple[Any, ...]]:
    return await run_sql(place, "SELECT migration, at, body FROM samples ORDER BY migration, at")


async def test_what_was_added_is_there_at_once_and_after_a_restart(place: Place) -> None:
    points = [_point(number, round=number, bandwidth_bytes_per_second=1.5e8) for number in range(5)]
    points.append(Point(sample=Sample(at_seconds=5.25), state=State.POSTCOPY, limit_seconds=None))
    async with await SqlJournal.open(place) as journal:
        for point in points:
            journal.samples.add("m1", point)
        assert await journal.samples.of("m1") == points
        assert await journal.samples.of("m2") == []
    async with await SqlJournal.open(place) as journal:
        assert await journal.samples.of("m1") == points
        # Another service goes on: the curve is one.
        journal.samples.add("m1", _point(7))
        assert await journal.samples.of("m1") == [*points, _point(7)]
        await journal.samples.flush()
        assert await journal.samples.of("m1") == [*points, _point(7)]
    assert [at for _, at, _ in await _rows(place)] == [
        0,
        1_000_000,
        2_000_000,
        3_000_000,
        4_000_000,
        5_250_000,
        7_000_000,
    ]


async def test_it_is_written_soon_and_in_one_go(place: Place) -> None:
    async with await SqlJournal.open(place) as journal:
        writes: list[float] = []
        journal.tell(on_write=writes.append, on_error=lambda operation: None)
        task = asyncio.create_task(journal.samples.run())
        for number in range(50):
            for migration in range(20):
                journal.samples.add(f"m{migration}", _point(float(number)))

        async def there() -> bool:
            return len(await _rows(place)) == 1000 and bool(writes)

        await until(there, what="all of them on disk", within=10)
        assert len(writes) == 1
        task.cancel()
        await asyncio.wait({task})


async def test_the_disk_holds_no_more_than_memory(place: Place) -> None:
    async with await SqlJournal.open(place) as journal:
        points = [_point(number / 2, round=number // 9) for number in range(3000)]
        for number, point in enumerate(points):
            journal.samples.add("m1", point)
            if number % 250 == 0:
                await journal.samples.flush()
        kept = await journal.samples.of("m1")
        await journal.samples.flush()
    rows = await _rows(place)
    assert MOST / 4 <= len(rows) <= MOST
    assert [round(at / 1e6, 6) for _, at, _ in rows] == [point.sample.at_seconds for point in kept]
    assert kept == Series(points).points


async def test_a_full_disk_harms_nothing_and_what_fits_later_is_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await SqlJournal.open(place) as journal:
        samples = journal.samples
        with monkeypatch.context() as patch:

            async def full(work: Any) -> None:
                raise JournalError("the disk is full")

            patch.setattr(samples._database, "write", full)
            for number in range(10):
                samples.add("m1", _point(float(number)))
                await samples.flush()
            assert len(await samples.of("m1")) == 10
            assert await _rows(place) == []
        samples.add("m1", _point(10.0))
        await samples.flush()
    assert len(await _rows(place)) == 11


@pytest.mark.parametrize("done_all_the_same", [False, True])
async def test_whatever_fails_on_the_way_the_disk_is_memory_in_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, *, done_all_the_same: bool
) -> None:
    chance = random.Random(11)
    async with await SqlJournal.open(place) as journal:
        write = journal.samples._database.write

        async def sometimes(work: Any) -> Any:
            fails = chance.random() < 0.6
            if done_all_the_same or not fails:
                await write(work)
            if fails:
                journal.samples.add("m1", _point(at + 0.25, round=-1))  # time goes on meanwhile
                raise JournalError("the disk does not answer")

        monkeypatch.setattr(journal.samples._database, "write", sometimes)
        for number in range(3000):
            at = number / 2
            journal.samples.add("m1", _point(at, round=number // 9))
            if number % 40 == 0:
                await journal.samples.flush()
        monkeypatch.undo()
        await journal.samples.flush()
        kept = await journal.samples.of("m1")
    assert [at for _, at, _ in await _rows(place)] == [round(point.sample.at_seconds * 1e6) for point in kept]
    assert len(kept) <= MOST


async def test_a_journal_that_cannot_be_read_harms_nothing_either(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await SqlJournal.open(place) as journal:
        with monkeypatch.context() as patch:

            async def unreadable(work: Any) -> None:
                raise JournalError("no")

            patch.setattr(journal.samples._database, "read", unreadable)
            journal.samples.add("m1", _point(1.0))
            await journal.samples.flush()
            with pytest.raises(JournalError):
                await journal.samples.of("m1")
        await journal.samples.flush()
        assert len(await _rows(place)) == 1


async def test_who_says_nothing_leaves_memory_and_may_come_back(place: Place) -> None:
    async with await SqlJournal.open(place) as journal:
        journal.samples.add("m1", _point(1.0))
        for _ in range(12):
            await journal.samples.flush()
        assert journal.samples._kept == {}
        journal.samples.add("m1", _point(2.0))
        await journal.samples.flush()
        assert await journal.samples.of("m1") == [_point(1.0), _point(2.0)]


async def test_retention_removes_them_with_their_migration(place: Place) -> None:
    now = datetime.now(UTC)
    old, young = (
        {"id": name, "state": "completed", "ended_at": (now - timedelta(days=days)).isoformat()}
        for name, days in (("old", 30), ("young", 1))
    )
    running = {"id": "running", "state": "precopy", "ended_at": None}
    async with await SqlJournal.open(place) as journal:
        await journal.save(*(("migration", each) for each in (old, young, running)))
        await journal.save(("evacuation", old | {"id": "young-too"}))
        for name in ("old", "young", "running", "young-too"):
            journal.samples.add(name, _point(1.0))
        await journal.samples.flush()
        assert await journal.prune(now - timedelta(days=7)) == 2
    assert [name for name, _, _ in await _rows(place)] == ["running", "young", "young-too"]


async def test_a_field_of_another_version_does_not_matter(place: Place) -> None:
    async with await SqlJournal.open(place) as journal:
        journal.samples.add("m1", _point(1.0))
    [(_, _, body)] = await _rows(place)
    changed = json.dumps(json.loads(body) | {"new": 1})
    await run_sql(place, f"UPDATE samples SET body = '{changed}'")
    async with await SqlJournal.open(place) as journal:
        assert await journal.samples.of("m1") == [_point(1.0)]
