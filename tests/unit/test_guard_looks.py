"""What the guard of a host does look after look with a guest that its controller had stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from migrator.core.model import MigrationStatus, RunState
from migrator.qemu.guard import BEFORE_SWITCH, Guarded, GuardMonitor, RefusedByQemu


class StoppedGuest(GuardMonitor):
    """The monitor of a source whose guest stands still while it is copied.

    :param sent: bytes that were sent by each look; the last holds from then on.
    :param cancel: what becomes of ``migrate_cancel``: it ``ends``, ``hangs`` (``cancelling`` stays), or is
        ``unanswered`` until the stream is broken off, by which it fails.
    :param left: the run state in which the end of its migration leaves it.
    """

    def __init__(self, sent: Sequence[int], *, cancel: str = "ends", left: str = "paused") -> None:
        self._left_to_send, self._cancel, self._left = [*sent], cancel, left
        self.status_now, self.run = "active", "paused"
        self.did: list[str] = []

    def execute(self, command: str, **arguments: Any) -> Any:
        if command == "query-migrate":
            return {"status": self.status_now, "ram": {"transferred": self._left_to_send[0]}}
        if command == "query-status":
            return {"status": self.run}
        if command == "qom-get":
            if "driver" in arguments["path"]:
                return json.dumps({"token": "ours"})
            raise RefusedByQemu(arguments["path"])
        if command.startswith("object-"):
            return {}
        self.did.append(command)
        if command == "migrate_cancel" and self._cancel == "unanswered":
            raise TimeoutError
        if command == "migrate_cancel" and self._cancel == "hangs":
            self.status_now = "cancelling"
        elif command == "migrate_cancel":
            self.status_now, self.run = "cancelled", self._left
        elif command == "cont":
            assert self.run in ("paused", "postmigrate")
            self.run = "running"
        return {}

    def yank(self) -> None:
        self.did.append("yank")
        self.status_now, self.run = "failed" if self._cancel == "unanswered" else "cancelling", self._left

    def close(self) -> None:
        if len(self._left_to_send) > 1:
            self._left_to_send.pop(0)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))


def guarded(qemu: GuardMonitor, *, stopped: bool = True) -> Guarded:
    request = {"socket": "", "token": "ours", "migration": "m1", "stopped": stopped}
    return Guarded(request, monitor=lambda *_, **__: qemu)


@pytest.mark.parametrize(
    ("cancel", "then"),
    [
        ("ends", ["migrate_cancel", "cont"]),
        ("hangs", ["migrate_cancel", "yank", "cont"]),
        ("unanswered", ["migrate_cancel", "yank", "cont"]),
    ],
)
def test_guest_that_was_stopped_goes_on_whatever_becomes_of_the_cancel(cancel: str, then: list[str]) -> None:
    qemu = StoppedGuest([0], cancel=cancel)
    guard = guarded(qemu)
    for _ in range(60):
        guard.act()
    assert qemu.did == ["migrate-set-parameters", *then]
    assert qemu.run == "running"


def test_cancel_is_sent_right_after_what_the_stream_sends_at_once() -> None:
    # What was sent is as before in two looks in a row, but nothing tells when it will send again.
    qemu = StoppedGuest([0, 0, 0, 0, 1, 2, 2, 2, 2])
    guard = guarded(qemu)
    looks = []
    while "migrate_cancel" not in qemu.did:
        looks.append(qemu._left_to_send[0])
        guard.act()
    assert looks == [0, 0, 0, 0, 1, 2, 2, 2]


def test_stream_that_never_rests_is_cancelled_after_half_a_second() -> None:
    qemu = StoppedGuest(range(1000))
    guard = guarded(qemu)
    guard.look_after()
    assert "migrate_cancel" in qemu.did
    assert time.monotonic() < 1


def test_guest_that_qemu_leaves_as_after_its_migration_goes_on() -> None:
    qemu = StoppedGuest([0], left="postmigrate")
    guarded(qemu).look_after()
    assert qemu.run == "running"


def test_guest_that_goes_on_is_left_alone_then() -> None:
    qemu = StoppedGuest([0])
    guard = guarded(qemu)
    guard.look_after()
    assert qemu.run == "running"
    qemu.run = "paused"  # by somebody
    assert not guard.act()
    assert qemu.run == "paused"


class AnyGuest(GuardMonitor):
    """The monitor of a source that shows whatever it is told to.

    :param driver: the token of the driver that its mark names; empty: there is no mark.
    :param before_switch: the migration that was not told to switch yet, by the mark; empty: there is none.
    """

    def __init__(self, status: str, run: str, driver: str, before_switch: str) -> None:
        self._status, self._run = status, run
        self._marks = {
            "migrator-driver": json.dumps({"token": driver}) if driver else "",
            f"migrator-{BEFORE_SWITCH}": before_switch,
        }
        self.did: set[str] = set()

    def execute(self, command: str, **arguments: Any) -> Any:
        if command == "query-migrate":
            return {"status": self._status} if self._status else {}
        if command == "query-status":
            return {"status": self._run}
        if command == "qom-get":
            if text := self._marks.get(arguments["path"].rpartition("/")[2]):
                return text
            raise RefusedByQemu(arguments["path"])
        self.did.add(command)
        return {}

    def yank(self) -> None:
        self.did.add("yank")

    def close(self) -> None:
        """Nothing is held."""


#: The stream may be stopped: its guest is nowhere else.
COPIES = ("setup", "wait-unplug", "active")


def test_guard_lets_a_guest_go_on_only_after_a_cancel_of_its_own_that_has_begun_whatever_qemu_shows() -> None:
    statuses = ["", *(each.value for each in MigrationStatus)]
    runs = [each.value for each in RunState]
    shown = product(statuses, runs, ("ours", "another's", ""), ("m1", "m2", ""))
    cases = product(shown, product((False, True), repeat=3))
    did_once: set[str] = set()
    for (status, run, driver, mark), (stopped, parked, cancelled) in cases:
        qemu = AnyGuest(status, run, driver, mark)
        guard = guarded(qemu, stopped=stopped)
        guard.parked, guard.cancelled, guard._looks = parked, cancelled, 30
        guard.act()
        where = (status, run, driver, mark, stopped, parked, cancelled, qemu.did)
        did_once |= qemu.did
        if driver != "ours":
            assert not qemu.did, where
        if "migrate-set-parameters" in qemu.did:
            assert status in COPIES, where
        if "migrate_cancel" in qemu.did:
            assert (status == "pre-switchover" and mark == "m1") or (status in COPIES and stopped), where
        if "cont" in qemu.did:
            assert cancelled, where
            assert stopped, where
            # Where it is completed the guest may run at its destination.
            assert status in ("cancelling", "cancelled", "failed"), where
            assert run == "paused" or (run == "postmigrate" and status != "cancelling"), where
    assert {"cont", "migrate_cancel", "migrate-set-parameters"} <= did_once
