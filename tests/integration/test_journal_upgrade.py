"""A journal that another version of migrator wrote."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from migrator.core.migration.downsampling import Point
from migrator.core.model import Sample, State
from migrator.errors import JournalError
from migrator.store import schema
from migrator.store.journal import SqlJournal
from migrator.store.tokens import Tokens

DOCUMENT = {"id": "m1", "state": "precopy", "ended_at": None}

NEXT = """
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade():
    op.execute("UPDATE documents SET state = 'changed'")
    op.execute("CREATE TABLE added (a)")
    op.execute("{more}")
"""


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A journal of this version, with a document in it."""
    path = tmp_path / "state" / "journal.db"
    async with await SqlJournal.open(path) as journal:
        await journal.save(("migration", DOCUMENT))
    return path


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this process a newer migrator, whose schema differs from today's."""

    def become(more: str = "SELECT 1") -> None:
        scripts = tmp_path / "scripts with 100% odd names"
        shutil.copytree(schema.SCRIPTS, scripts)
        (scripts / "versions" / "r0004_next.py").write_text(NEXT.format(more=more))
        monkeypatch.setattr(schema, "SCRIPTS", scripts)
        monkeypatch.setattr(schema, "HEAD", "0004")

    return become


def states(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT state FROM documents")]


def tables(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


async def test_of_an_older_one_is_brought_here_and_a_copy_is_kept(path: Path, newer: Any) -> None:
    newer()
    async with await SqlJournal.open(path) as journal:
        assert await journal.find("migration", "m1") == DOCUMENT
        await journal.save(("migration", DOCUMENT | {"id": "m2"}))
    assert states(path)[0] == "changed"
    assert schema.present(path) == "0004"
    copy = path.with_name("journal.db.before-0004")
    assert (states(copy), schema.present(copy), "added" in tables(copy)) == (["precopy"], "0003", False)
    assert copy.stat().st_mode & 0o777 == 0o600
    # The second time there is nothing to do.
    copy.unlink()
    async with await SqlJournal.open(path):
        pass
    assert not copy.exists()


FIRST = """
CREATE TABLE documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, state TEXT, guest TEXT,
    source TEXT, destination TEXT, evacuation TEXT, command TEXT, created_at INTEGER, ended_at INTEGER,
    body TEXT NOT NULL, UNIQUE (kind, id)
);
CREATE TABLE events (
    event_id INTEGER PRIMARY KEY NOT NULL, sequence INTEGER NOT NULL, time INTEGER NOT NULL, subject TEXT NOT NULL,
    subject_id TEXT NOT NULL, body TEXT NOT NULL
);
CREATE TABLE commands (
    "key" TEXT PRIMARY KEY NOT NULL, verb TEXT NOT NULL, body_hash TEXT NOT NULL, body TEXT NOT NULL,
    caller TEXT NOT NULL, claimed_at INTEGER NOT NULL, answered_at INTEGER, settled INTEGER NOT NULL, reply TEXT
);
CREATE TABLE tokens (
    id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL, hash TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER
);
CREATE TABLE meta ("key" TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL);
CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY NOT NULL);
INSERT INTO alembic_version VALUES ('0001');
INSERT INTO documents (kind, id, state, body)
    VALUES ('migration', 'm1', 'precopy', '{"id": "m1", "state": "precopy", "ended_at": null}');
"""


async def test_of_the_first_version_gets_what_it_has_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST)
    point = Point(sample=Sample(at_seconds=1.5, remaining_bytes=7), state=State.PRECOPY)
    async with await SqlJournal.open(path) as journal:
        assert await journal.unfinished("migration") == [DOCUMENT]
        assert await journal.samples.of("m1") == []
        journal.samples.add("m1", point)
    async with await SqlJournal.open(path) as journal:
        assert await journal.samples.of("m1") == [point]
    assert schema.present(path) == schema.HEAD
    assert schema.present(path.with_name(f"journal.db.before-{schema.HEAD}")) == "0001"


async def test_a_copy_holds_what_a_killed_service_left_in_the_log(path: Path, newer: Any) -> None:
    with contextlib.closing(sqlite3.connect(path)) as reader:
        reader.execute("SELECT * FROM documents").fetchall()
        async with await SqlJournal.open(path) as journal:
            await journal.save(("migration", DOCUMENT | {"id": "m2"}))
        assert path.with_name("journal.db-wal").stat().st_size > 0
        newer()
        async with await SqlJournal.open(path) as journal:
            assert len(await journal.unfinished("migration")) == 2
    assert len(states(path.with_name("journal.db.before-0004"))) == 2


async def test_that_fails_leaves_it_as_it_was(path: Path, newer: Any) -> None:
    newer("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(JournalError, match=r"journal.db cannot be opened: no such table: nowhere"):
        await SqlJournal.open(path)
    assert (states(path), schema.present(path), "added" in tables(path)) == (["precopy"], "0003", False)
    assert states(path.with_name("journal.db.before-0004")) == ["precopy"]


async def test_without_room_for_the_copy_is_not_begun(path: Path, newer: Any) -> None:
    newer()
    path.with_name("journal.db.before-0004.new").mkdir()
    with pytest.raises(JournalError, match=r"cannot copy it to .*before-0004"):
        await SqlJournal.open(path)
    assert (states(path), schema.present(path)) == (["precopy"], "0003")


async def test_of_a_newer_one_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(JournalError) as caught:
        await SqlJournal.open(path)
    assert str(caught.value) == (
        f"the journal {path} was written by a newer migrator (its schema is 0999, this one knows 0003): install that "
        "one again, or go back to the copy journal.db.before-0999 if you can do without what was written since"
    )
    assert path.read_bytes() == before


async def test_under_a_service_that_runs_is_not_done(path: Path, newer: Any) -> None:
    async with await SqlJournal.open(path):
        newer()
        said = r"of another version \(the schema of its journal .* is 0003, this version's is 0004\): restart"
        with pytest.raises(JournalError, match=said):
            await Tokens.open(path)
        assert schema.present(path) == "0003"
    async with await Tokens.open(path) as tokens:
        assert await tokens.list() == []
    assert schema.present(path) == "0004"


async def test_beside_a_newer_service_that_runs_the_newer_program_is_asked_for(
    path: Path, newer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    today, scripts = schema.HEAD, schema.SCRIPTS
    newer()
    async with await SqlJournal.open(path):
        monkeypatch.setattr(schema, "HEAD", today)
        monkeypatch.setattr(schema, "SCRIPTS", scripts)
        said = r"of another version \(.* is 0004, this version's is 0003\): use the migrator of that version"
        with pytest.raises(JournalError, match=said):
            await Tokens.open(path)
    assert schema.present(path) == "0004"


async def test_the_revisions_make_the_tables_that_the_code_believes_in(path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.SCRIPTS))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()
