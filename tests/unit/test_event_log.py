"""What is in the log when somebody wonders at night."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from migrator import logs
from migrator.core.model import State
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import NOT_LOOKED_AT
from migrator.service.event_log import EventLogger
from tests.some_events import decision, evacuation_state, host_state, migration_state, progress


@pytest.fixture
def bus() -> Iterator[EventBus]:
    logs.configure(verbose=True, json=True, level="info")
    bus = EventBus()
    EventLogger(bus)
    yield bus
    logs.configure()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_migration_from_its_beginning_to_its_end_by_its_id(
    bus: EventBus, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"guest": "u", "guest_name": "web", "source": "a", "destination": "b", "evacuation": "e1"}
    bus.publish(migration_state(**one, state=State.PRECOPY))
    bus.publish(progress(**one, state=State.PRECOPY))
    bus.publish(decision(action="throttle", reason="too fast"))
    bus.publish(migration_state(**one, state=State.FAILED, ended_at=datetime.now(UTC), error="cut off"))
    said = lines(capsys)
    assert [(each["event"], each["level"]) for each in said] == [
        ("migration", "info"),
        ("decision", "info"),
        ("migration", "warning"),
    ]
    assert {(each["migration"], each["guest"], each["host"], each["target"]) for each in said} == {
        ("m1", "web", "a", "b")
    }
    assert said[1]["reason"] == "too fast"
    assert (said[2]["state"], said[2]["error"]) == ("failed", "cut off")


def test_what_has_not_changed_is_not_said_again(bus: EventBus, capsys: pytest.CaptureFixture[str]) -> None:
    for free in (1, 2):
        bus.publish(host_state(memory_free_bytes=free))
    bus.publish(host_state(up=False, error="no route to host"))
    for left in (2, 2, 1):
        bus.publish(evacuation_state(host="a", guests_left=left))
    bus.publish(evacuation_state(host="a", guests_left=1, late=True))
    said = lines(capsys)
    assert [(each["event"], each["level"]) for each in said] == [
        ("host", "info"),
        ("host", "warning"),
        ("evacuation", "info"),
        ("evacuation", "info"),
        ("evacuation", "warning"),
    ]
    assert said[1]["error"] == "no route to host"
    assert all(each["host"] == "a" for each in said)


def test_what_the_journal_refuses_because_another_acts_is_not_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(verbose=True, json=True, level="info")
    bus = EventBus(numbered_by_journal=True)
    bus.mark_journalled(0)
    EventLogger(bus)
    bus.publish(migration_state(guest="u", state=State.PRECOPY))
    bus.publish(migration_state(guest="u", state=State.FAILED, error="its command line cannot be read"))
    bus.mark_journalled(1, {1: 7})
    assert [each["state"] for each in lines(capsys)] == ["precopy"]
    logs.configure()


def test_a_host_that_was_not_looked_at_yet_is_no_warning(
    bus: EventBus, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.publish(host_state(up=False, error=NOT_LOOKED_AT))
    assert [(each["event"], each["level"]) for each in lines(capsys)] == [("host", "info")]


def test_a_log_that_is_gone_keeps_nothing_from_going_on(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(logs.Logger, "info", gone)
    bus.publish(host_state())
