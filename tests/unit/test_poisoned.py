"""What no JSON may have is kept out of documents and the journal; what is there already is mended, or left out."""

from __future__ import annotations

import json
import math
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from migrator import logs
from migrator.api.inventory_documents import GuestDocument
from migrator.engine.event_bus import EventBus
from migrator.ports.unreadable import say_unreadable
from migrator.store.journal import SqlJournal
from migrator.text import storable, writable
from tests.some_events import migration_state

NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


def test_a_text_is_written_by_everyone() -> None:
    assert writable("a\ud800b") == "a\ufffdb"
    assert writable("é😀") == "é😀"
    assert len(writable("x" * 100_000)) == 65_536


def test_a_value_is_storable() -> None:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    found = storable({"a": math.nan, "b": [math.inf, 2**70, "\udfff", True, 1.5], "\ud800": deep})
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["b"] == [None, None, "\ufffd", True, 1.5]
    text.encode()


def test_a_document_can_be_written_whatever_a_guest_is_called() -> None:
    document = GuestDocument(guest="\ud800", name="a\udc80", host="h", run_state="running", uuid="\udfff")
    document.model_dump_json().encode()


def test_an_event_can_be_journalled_whatever_is_in_it() -> None:
    event = EventBus().publish(migration_state(guest_name="\ud800", dirty_rate_bytes_per_second=math.nan))
    body = json.loads(event.text)["body"]
    assert (body["guest_name"], body["dirty_rate_bytes_per_second"]) == ("\ufffd", None)
    event.text.encode()


def poison(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement, values)


async def test_a_journal_that_was_poisoned_before_is_read_as_json_that_everyone_can_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    event = {
        "event_id": 1,
        "sequence": 1,
        "time": NOW,
        "subject": "migration",
        "subject_id": "m",
        "body": {"name": "x"},
    }
    async with await SqlJournal.open(path) as journal:
        await journal.save(("evacuation", {"id": "e", "created_at": NOW, "host": "a"}), events=[event])
    poison(
        path, "UPDATE events SET body = ?", json.dumps(event | {"body": {"name": "\ud800", "rate": math.nan}})
    )
    private = {"guest": {"socket": "/run/\udcff.sock"}}
    bad = {"id": "e", "host": "a", "uuid": "\udfff", "n": math.inf, "_private": private}
    poison(path, "UPDATE documents SET body = ?", json.dumps(bad))
    async with await SqlJournal.open(path) as journal:
        texts = (await journal.event_texts()).items
        found = await journal.find("evacuation", "e")
        events = await journal.events()
    assert json.loads(texts[0][1], parse_constant=pytest.fail)["body"] == {"name": "\ufffd", "rate": None}
    assert events[0]["body"] == {"name": "\ufffd", "rate": None}
    assert found is not None
    assert (found["uuid"], found["n"]) == ("\ufffd", None)
    # What nobody is shown is as it was: the path still leads to the socket.
    assert found["_private"] == private


def test_one_row_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(verbose=True, json=True)
    try:
        said: set[tuple[str, str]] = set()
        for _ in range(3):
            say_unreadable(said, "migration", "m1", ValueError("no id\x1b[2J"))
    finally:
        logs.configure(verbose=False, json=False)
    log = capsys.readouterr().err
    assert log.count("left out") == 1
    assert "\x1b" not in log
