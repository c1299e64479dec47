"""A journal that another version of migrator wrote."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from migrator.core.migration.downsampling import Point
from migrator.core.model import Sample, State
from migrator.errors import JournalError, UpgradeWaits
from migrator.ports.controllers import ControllerInfo
from migrator.service.waiting_upgrade import NotNeeded, open_journal
from migrator.settings.models import HttpSettings
from migrator.settings.values import Listen
from migrator.store import schema, sqlite
from migrator.store.backend import Place, Server
from migrator.store.database import Database
from migrator.store.journal import SqlJournal
from migrator.store.tokens import Tokens
from migrator.testing.lab import until

#: The schema of this version, and of one that is made up.
TODAY, LATER = schema.HEAD, "9000"
DOCUMENT = {"id": "m1", "state": "precopy", "ended_at": None}

NEXT = """
from alembic import op

revision = "{next}"
down_revision = "{today}"


def upgrade():
    op.execute("UPDATE documents SET state = 'changed'")
    op.execute("CREATE TABLE added (a INTEGER)")
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
        (scripts / "versions" / "later.py").write_text(NEXT.format(more=more, today=TODAY, next=LATER))
        monkeypatch.setattr(schema, "SCRIPTS", scripts)
        monkeypatch.setattr(schema, "HEAD", LATER)

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
    assert sqlite.present(path) == LATER
    copy = path.with_name(f"journal.db.before-{LATER}")
    assert (states(copy), sqlite.present(copy), "added" in tables(copy)) == (["precopy"], TODAY, False)
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
    assert sqlite.present(path) == schema.HEAD
    assert sqlite.present(path.with_name(f"journal.db.before-{schema.HEAD}")) == "0001"


async def test_a_copy_holds_what_a_killed_service_left_in_the_log(path: Path, newer: Any) -> None:
    with contextlib.closing(sqlite3.connect(path)) as reader:
        reader.execute("SELECT * FROM documents").fetchall()
        async with await SqlJournal.open(path) as journal:
            await journal.save(("migration", DOCUMENT | {"id": "m2"}))
        assert path.with_name("journal.db-wal").stat().st_size > 0
        newer()
        async with await SqlJournal.open(path) as journal:
            assert len(await journal.unfinished("migration")) == 2
    assert len(states(path.with_name(f"journal.db.before-{LATER}"))) == 2


async def test_that_fails_leaves_it_as_it_was(path: Path, newer: Any) -> None:
    newer("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(JournalError, match=r"journal.db cannot be opened: no such table: nowhere"):
        await SqlJournal.open(path)
    assert (states(path), sqlite.present(path), "added" in tables(path)) == (["precopy"], TODAY, False)
    assert states(path.with_name(f"journal.db.before-{LATER}")) == ["precopy"]


async def test_without_room_for_the_copy_is_not_begun(path: Path, newer: Any) -> None:
    newer()
    path.with_name(f"journal.db.before-{LATER}.new").mkdir()
    with pytest.raises(JournalError, match=rf"cannot copy it to .*before-{LATER}"):
        await SqlJournal.open(path)
    assert (states(path), sqlite.present(path)) == (["precopy"], TODAY)


async def test_of_a_newer_one_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(JournalError) as caught:
        await SqlJournal.open(path)
    assert str(caught.value) == (
        f"the journal {path} was written by a newer migrator (its schema is 0999, this one knows {TODAY}): install "
        "that one again, or go back to the copy journal.db.before-0999 if you can do without what was written since"
    )
    assert path.read_bytes() == before


async def test_under_a_service_that_runs_is_not_done(path: Path, newer: Any) -> None:
    async with await SqlJournal.open(path):
        newer()
        said = rf"the schema of its journal .* is {TODAY}, this version's is {LATER}\): restart"
        with pytest.raises(JournalError, match=said):
            await Tokens.open(path)
        assert sqlite.present(path) == TODAY
    async with await Tokens.open(path) as tokens:
        assert await tokens.list() == []
    assert sqlite.present(path) == LATER


async def test_beside_a_newer_service_that_runs_the_newer_program_is_asked_for(
    path: Path, newer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    today, scripts = schema.HEAD, schema.SCRIPTS
    newer()
    async with await SqlJournal.open(path):
        monkeypatch.setattr(schema, "HEAD", today)
        monkeypatch.setattr(schema, "SCRIPTS", scripts)
        said = rf"of another version \(.* is {LATER}, this version's is {TODAY}\): use the migrator of that version"
        with pytest.raises(JournalError, match=said):
            await Tokens.open(path)
    assert sqlite.present(path) == LATER


async def test_the_revisions_make_the_tables_that_the_code_believes_in(place: Place) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.SCRIPTS))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]

    def differences(connection: Any) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), schema.metadata))

    opened = await Database.open(place)
    try:
        assert await opened.read(lambda connection: connection.run_sync(differences)) == []
    finally:
        await opened.close()


class TestRollingUpgrade:
    """Several controllers on one PostgreSQL, one of them of a newer version with other tables."""

    @pytest.fixture
    def place(self, request: pytest.FixtureRequest) -> Server:
        place = request.getfixturevalue("postgresql").place(request.getfixturevalue("postgresql").create())
        assert isinstance(place, Server)
        return replace(place, beside=None)

    async def test_a_newer_one_waits_while_an_older_one_lives_that_could_not_read_what_it_makes(
        self, place: Server, newer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        info = ControllerInfo(name="old", instance="machine-1", version="1.0")
        async with await SqlJournal.open(place) as old:
            await old.save(("migration", DOCUMENT))
            lease = await old.controllers.join(info, seconds=60)
            assert lease is not None
            newer()
            monkeypatch.setattr(schema, "OLDEST_READER", LATER)
            said = rf"from schema {TODAY} to {LATER}.*machine-1 \(version 1.0, schema {TODAY}\)"
            with pytest.raises(UpgradeWaits, match=said):
                await SqlJournal.open(place)
            await old.save(("migration", DOCUMENT | {"id": "m2"}))  # it goes on meanwhile
            stop = asyncio.Event()
            http = HttpSettings(socket=tmp_path / "api.sock", metrics_listen=Listen(host="127.0.0.1", port=0))
            opening = asyncio.create_task(open_journal(place, http, stop=stop.wait), name="newer")
            await asyncio.sleep(0)
            assert not opening.done()
            await old.controllers.leave(lease)
        async with await opening as new:
            found = await new.page("migration", limit=5)
            assert [each["id"] for each in found] == ["m2", "m1"]
        # Whoever comes back with the older version is told.
        monkeypatch.undo()
        with pytest.raises(JournalError, match="was written by a newer migrator"):
            await SqlJournal.open(place)

    async def test_one_that_takes_nothing_from_older_ones_joins_them_at_once(
        self, place: Server, newer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        info = ControllerInfo(name="old", instance="machine-1", version="1.0")
        async with await SqlJournal.open(place) as old:
            lease = await old.controllers.join(info, seconds=60)
            assert lease is not None
            newer()
            async with await SqlJournal.open(place) as new:
                await new.save(("migration", DOCUMENT))
                await old.save(("migration", DOCUMENT | {"id": "m2"}), events=[event_without_number()])
                assert [each["id"] for each in await new.page("migration", limit=5)] == ["m2", "m1"]
                assert await old.controllers.beat(info, lease, seconds=60) is not None
            monkeypatch.undo()
            async with await SqlJournal.open(place) as again:  # the older version, started once more
                assert len(await again.events()) == 1

    async def test_one_that_waits_says_why_to_whoever_asks(
        self, place: Server, newer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        info = ControllerInfo(name="old", instance="machine-1", version="1.0")
        async with await SqlJournal.open(place) as old:
            assert await old.controllers.join(info, seconds=60) is not None
            newer()
            monkeypatch.setattr(schema, "OLDEST_READER", LATER)
            stop, path = asyncio.Event(), tmp_path / "api.sock"
            http = HttpSettings(socket=path, metrics_listen=Listen(host="127.0.0.1", port=0))
            own = replace(place, beside=tmp_path / "journal.db")
            opening = asyncio.create_task(
                open_journal(own, http, stop=stop.wait, instance="machine-2"), name="newer"
            )
            await until(path.exists, what="it listens", within=20)
            transport = httpx2.AsyncHTTPTransport(uds=str(path), verify=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://migrator") as client:
                ready, lives = await client.get("/readyz"), await client.get("/healthz")
            assert (ready.status_code, lives.status_code) == (503, 200)
            assert ready.json()["role"] == "waiting"
            assert "machine-1" in ready.json()["complaints"][0]

            async def shown() -> bool:
                found = [each for each in await old.controllers.all() if each.info.instance == "machine-2"]
                return [(each.info.role, each.present, each.schema) for each in found] == [
                    ("waiting", True, LATER)
                ]

            await until(shown, what="the older one shows it", within=20)
            stop.set()
            with pytest.raises(NotNeeded):
                await opening


def event_without_number() -> dict[str, Any]:
    return {
        "event_id": 0,
        "sequence": 1,
        "time": "2026-03-01T12:00:00Z",
        "kind": "state",
        "subject": "migration",
        "subject_id": "m2",
        "body": {},
    }
