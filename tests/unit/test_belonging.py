"""Journal and records of steps are marked at each start: one that was restored without the other is noticed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from migrator.errors import JournalError
from migrator.store import belonging
from migrator.store.journal import SqlJournal


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[SqlJournal]:
    async with await SqlJournal.open(tmp_path / "journal.db") as journal:
        yield journal


async def start(tmp_path: Path) -> str:
    """As the service begins; why the two do not belong together."""
    steps = tmp_path / "steps"
    async with opened(tmp_path) as journal:
        doubt = (await belonging.marks(journal, steps)).doubt(steps)
        await belonging.mark(journal, steps)
        return doubt


def kept(tmp_path: Path, name: str) -> None:
    """A backup of the journal, or of the records."""
    source = tmp_path / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / f"{name}.kept")


def put_back(tmp_path: Path, name: str) -> None:
    target, saved = tmp_path / name, tmp_path / f"{name}.kept"
    if target.is_dir():
        shutil.rmtree(target)
    (shutil.copytree if saved.is_dir() else shutil.copy)(saved, target)


async def test_what_was_always_together_is_never_doubted(tmp_path: Path) -> None:
    assert [await start(tmp_path) for _ in range(3)] == [""] * 3


async def test_both_from_one_backup_belong_together(tmp_path: Path) -> None:
    await start(tmp_path)
    for name in ("journal.db", "steps"):
        kept(tmp_path, name)
    await start(tmp_path)
    for name in ("journal.db", "steps"):
        put_back(tmp_path, name)
    assert await start(tmp_path) == ""


@pytest.mark.parametrize("name", ["journal.db", "steps"])
async def test_one_of_an_older_start_is_noticed(tmp_path: Path, name: str) -> None:
    await start(tmp_path)
    kept(tmp_path, name)
    await start(tmp_path)
    put_back(tmp_path, name)
    assert "are not of the same time" in await start(tmp_path)
    assert await start(tmp_path) == ""  # said once; from then on they belong together


async def test_journal_without_its_records_is_noticed(tmp_path: Path) -> None:
    await start(tmp_path)
    shutil.rmtree(tmp_path / "steps")
    assert f"records of steps are not in {tmp_path}/steps" in await start(tmp_path)


async def test_records_without_their_journal_are_noticed(tmp_path: Path) -> None:
    await start(tmp_path)
    (tmp_path / "journal.db").unlink()
    assert "belong to another journal" in await start(tmp_path)


async def test_of_an_older_version_neither_is_marked_and_nothing_is_doubted(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "0123456789ab.jsonl").write_text("{}\n")
    assert await start(tmp_path) == ""


async def test_killed_between_the_two_marks_they_still_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(tmp_path)
    with monkeypatch.context() as patched:

        async def fails(self: SqlJournal, key: str, value: str) -> None:
            raise JournalError("disk full")

        patched.setattr(SqlJournal, "keep_meta", fails)
        assert await start(tmp_path) == ""
    assert await start(tmp_path) == ""
