"""Events become JSON where they leave the process, and events again where the journal is read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from migrator.api.documents import DecisionDocument
from migrator.api.events import Event, EventDocument, MigrationStateChanged, read_event
from migrator.api.requests import CommandKey
from tests.documents import a_migration
from tests.some_events import command, decision, evacuation_state, host_state, migration_state, progress

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
EVENTS = [migration_state(), progress(), decision(), evacuation_state(), host_state(), command("u\n1")]


def published(event: Event) -> Event:
    return event.published(event_id=7, sequence=3, time=NOON)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_read_back_it_is_what_it_was(event: Event) -> None:
    said = published(event)
    again = read_event(json.loads(said.text))
    assert type(again) is type(event)
    assert (again.event_id, again.sequence, again.time, again.subject_id) == (7, 3, NOON, event.subject_id)
    assert again.payload == said.payload == json.loads(said.text)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_its_text_is_as_the_schema_says(event: Event) -> None:
    said = published(event)
    assert EventDocument.model_validate_json(said.text).model_dump(mode="json") == said.payload
    assert list(json.loads(said.text)) == list(EventDocument.model_fields)


def test_lists_that_have_events_of_their_own_are_left_out() -> None:
    document = a_migration(decisions=[DecisionDocument(at_seconds=1.0, action="wait", reason="so")])
    assert "decisions" not in published(MigrationStateChanged(migration=document)).payload["body"]


def row(**changed: Any) -> dict[str, Any]:
    return {**published(migration_state()).payload, **changed}


def test_one_of_an_older_version_is_handed_on_as_it_was_written() -> None:
    old = row()
    old["body"] = {name: value for name, value in old["body"].items() if name != "network_state"}
    again = read_event(old)
    assert isinstance(again, MigrationStateChanged)
    assert again.payload == old


@pytest.mark.parametrize(
    "wrong",
    [
        row(kind="rumour"),
        row(kind="decision", subject="host"),
        row(body={"state": "precopy"}),
        row(body={}, kind="decision"),
        {"event_id": 1},
    ],
    ids=["unknown kind", "no such pair", "not all fields", "no decision", "hardly anything"],
)
def test_what_this_version_does_not_know_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_event(wrong)


def test_a_key_of_a_command_is_read_as_it_was_written() -> None:
    for key in (CommandKey("unix:0", "a"), CommandKey("ann", ""), CommandKey("ann", "with\nlines")):
        assert CommandKey.read(str(key)) == key
