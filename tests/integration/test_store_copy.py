"""``migrator store copy``: the journal goes from its file to a server, all of it or nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from migrator.core.migration.downsampling import Point
from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import Sample, State
from migrator.store.backend import Server
from migrator.store.journal import SqlJournal
from migrator.store.records import FileRecord
from migrator.store.step_records import controller_id
from migrator.testing.postgresql import Postgres

FACTS = {"guest": "web", "attempt": 1}


def event(number: int) -> dict[str, Any]:
    subject = {"kind": "state", "subject": "migration", "subject_id": "m1", "body": {"n": number}}
    return {"event_id": number, "sequence": number, "time": datetime.now(UTC).isoformat(), **subject}


async def fill(path: Path) -> str:
    """A journal with something of everything; the secret of its token."""
    async with await SqlJournal.open(path) as journal:
        ended = {
            "id": "m0",
            "state": "completed",
            "guest": "a\x00b \u2603",
            "ended_at": "2026-03-01T12:00:00Z",
        }
        running = {"id": "m1", "state": "precopy", "_private": {"command": "ann\n1"}}
        await journal.save(("migration", ended), ("host", {"id": "h1"}), ("migration", running))
        await journal.save(events=[event(number) for number in range(1, 2501)])
        await journal.claim_command(
            key="ann\n1", verb="migrate", body_hash="h", body={}, caller={"user": "ann"}
        )
        journal.samples.add("m1", Point(sample=Sample(at_seconds=1.5, round=2), state=State.PRECOPY))
        secret = await journal.tokens.create(name="ann", role="operator")
    for name in ("m1", "m0"):
        record = FileRecord(name, directory=path.parent / "steps")
        await record.begin(FACTS, Intent())
        await record.note(Intent(milestone=Milestone.MIGRATING))
        if name == "m0":
            await record.end({"state": "completed", "rounds": 4})
        record.close()
    return secret


@pytest.fixture
def config(tmp_path: Path, postgresql_place: Server) -> Path:
    path = tmp_path / "migrator.toml"
    path.write_text(f'[store]\npath = "state/journal.db"\nurl = "{postgresql_place.url}"\n')
    return path


def copy(config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "migrator", "store", "copy", "--config", str(config), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_brings_all_of_it_over(config: Path, tmp_path: Path, postgresql_place: Server) -> None:
    secret = await fill(tmp_path / "state" / "journal.db")
    done = await asyncio.to_thread(copy, config, "--json")
    assert done.returncode == 0, done.stderr
    rows = {each["table"]: each["rows"] for each in json.loads(done.stdout)["tables"]}
    assert rows | {"meta": 0} == {
        "documents": 3,
        "events": 2500,
        "commands": 1,
        "tokens": 1,
        "sessions": 0,
        "samples": 1,
        "meta": 0,
        "step_records": 2,
    }
    async with (
        await SqlJournal.open(tmp_path / "state" / "journal.db") as here,
        await SqlJournal.open(postgresql_place) as there,
    ):
        assert await there.events(limit=9999) == await here.events(limit=9999)
        assert await there.positions() == await here.positions()
        assert await there.unfinished("migration") == await here.unfinished("migration")
        where = {"guest": "a\x00b \u2603"}
        assert await there.page("migration", limit=9, where=where) == await here.page(
            "migration", limit=9, where=where
        )
        assert await there.samples.of("m1") == await here.samples.of("m1")
        assert await there.tokens.verify(secret) is not None
        left = await there.steps.take_up("m1")
        assert left is not None
        assert (left[1], left[2].milestone) == (FACTS, Milestone.MIGRATING)
        # What was left in the middle is marked as that controller's, wherever those that come run.
        assert await there.meta("controller") == controller_id(tmp_path / "state")
        outcome = await there.steps.outcome("m0")
        assert outcome is not None
        assert outcome.fields["rounds"] == 4
        # It goes on with the numbers that come next.
        await there.save(("migration", {"id": "m2", "state": "queued"}))
        assert [each["id"] for each in await there.page("migration", limit=9)] == ["m2", "m1", "m0"]


async def test_is_refused_while_a_service_has_it(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.db"
    await fill(path)
    async with await SqlJournal.open(path):
        done = await asyncio.to_thread(copy, config)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is in use by another service" in done.stderr


async def test_is_refused_where_there_is_a_journal_already(
    config: Path, tmp_path: Path, postgresql: Postgres, shared_database: str
) -> None:
    await fill(tmp_path / "state" / "journal.db")
    assert (await asyncio.to_thread(copy, config)).returncode == 0
    done = await asyncio.to_thread(copy, config)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has a journal already: give a database of its own, which is empty" in done.stderr
    assert postgresql.sql("SELECT count(*) FROM events", database=shared_database) == ["2500"]


async def test_is_refused_where_a_service_has_been_started(
    config: Path, tmp_path: Path, postgresql_place: Server
) -> None:
    await fill(tmp_path / "state" / "journal.db")
    async with await SqlJournal.open(postgresql_place):
        pass  # it has reserved numbers of events
    done = await asyncio.to_thread(copy, config)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a service has begun a journal at" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[store]\npath = "state/journal.db"\n', "store.url: names no server"),
        ('[store]\npath = "nothing.db"\nurl = "{url}"\n', "there is no journal"),
    ],
)
def test_needs_both_ends(config: Path, postgresql_place: Server, text: str, said: str) -> None:
    config.write_text(text.format(url=postgresql_place.url))
    done = copy(config)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
