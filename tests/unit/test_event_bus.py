"""What the bus remembers of what it has numbered."""

from __future__ import annotations

import pytest

from migrator.api.events import Subject
from migrator.engine import event_bus as module
from migrator.engine.event_bus import EventBus
from tests.some_events import command, migration_state


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMMANDS", 3)


def say(bus: EventBus, one: str, subject: Subject = Subject.COMMAND) -> int:
    return bus.publish(command(one) if subject is Subject.COMMAND else migration_state(one)).sequence


def known(bus: EventBus, *ids: str) -> list[int]:
    return [bus.sequence(Subject.COMMAND, one) for one in ids]


def test_only_the_last_commands_sequences_are_kept():
    bus = EventBus()
    assert [say(bus, one) for one in ("a", "b", "b", "c")] == [1, 1, 2, 1]
    assert known(bus, "a", "b", "c") == [1, 2, 1]
    say(bus, "d")
    assert known(bus, "a", "b", "c", "d") == [0, 2, 1, 1]
    assert say(bus, "b") == 3
    assert bus.last_event_id == 6


def test_what_commands_there_were_before_goes_first():
    bus = EventBus(last_event_id=9, sequences={(Subject.COMMAND, one): 4 for one in "abc"})
    say(bus, "d")
    assert known(bus, "a", "b", "c", "d") == [0, 4, 4, 1]


def test_however_many_commands_there_are_the_rest_is_kept():
    bus = EventBus()
    say(bus, "m", Subject.MIGRATION)
    for number in range(1000):
        say(bus, f"c{number}")
    assert say(bus, "m", Subject.MIGRATION) == 2
    assert len(bus._sequences) == len(bus._delivered_sequences) == 4
    assert len(bus._commands) == 3


def test_a_command_that_is_journalled_when_it_is_forgotten_already_does_not_stay():
    bus = EventBus()
    heard: list[tuple[str, int]] = []
    bus.subscribe(lambda event: heard.append((event.subject_id, event.sequence)), journalled=True)
    bus.mark_journalled(0)
    for one in "abcdef":
        say(bus, one)
    assert heard == []
    bus.mark_journalled(6)
    assert heard == [(one, 1) for one in "abcdef"]
    assert known(bus, *"abcdef") == [0, 0, 0, 1, 1, 1]
    assert len(bus._delivered_sequences) == 3
