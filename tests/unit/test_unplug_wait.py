"""A card that the guest has to let go of before memory is copied: what is said of it."""

from __future__ import annotations

from dataclasses import replace

from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.facts import Device
from migrator.engine.migration.unplug_wait import UnplugWait
from tests.unit.test_preflight import SOURCE

WAITS = View(
    process=ProcessState.ALIVE, answers=True, run=RunState.RUNNING, status=MigrationStatus.WAIT_UNPLUG
)


def test_card_is_named_while_it_is_waited_for_and_told_once() -> None:
    told: list[tuple[str, str]] = []
    wait = UnplugWait(tell=lambda *said: told.append(said))
    wait.expect(replace(SOURCE, devices=(Device(name="fast", driver="vfio-pci", standby="standby"),)))
    wait.note(replace(WAITS, status=MigrationStatus.SETUP))
    assert (wait.waiting_for, told) == ("", [])
    wait.note(WAITS)
    wait.note(replace(WAITS, answers=False))
    assert wait.waiting_for == "the guest to let go of fast (standby takes over)"
    wait.note(replace(WAITS, status=MigrationStatus.ACTIVE))
    assert wait.waiting_for == ""
    assert told == [("unplug", "QEMU waits for the guest to let go of fast (standby takes over)")]


def test_wait_goes_on_where_it_is_cancelled_and_has_ended_with_it() -> None:
    wait = UnplugWait(tell=lambda action, reason: None)
    wait.note(replace(WAITS, status=MigrationStatus.CANCELLING))
    assert wait.waiting_for == ""
    wait.note(WAITS)
    wait.note(replace(WAITS, status=MigrationStatus.CANCELLING))
    assert wait.waiting_for == "the guest to let go of a card"
    wait.note(replace(WAITS, status=MigrationStatus.CANCELLED))
    assert wait.waiting_for == ""


def test_controller_that_has_not_read_the_guest_says_it_without_a_name() -> None:
    wait = UnplugWait(tell=lambda action, reason: None)
    wait.note(WAITS)
    assert wait.waiting_for == "the guest to let go of a card"
