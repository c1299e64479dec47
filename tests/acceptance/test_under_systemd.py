"""The units of contrib/systemd on a machine whose pid 1 is systemd, against a live service."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http_service import OF_ALPHA
from tests.service_thread import ServiceThread, in_thread
from tests.systemd_machine import UNITS, SystemdMachine, needs_systemd

pytestmark = [pytest.mark.matrix, needs_systemd, pytest.mark.timeout(600)]

FILES = Path(__file__).parents[2] / "contrib" / "systemd"
GUEST = "11111111-2222-3333-4444-555555555555"
DRAIN, UNIT = "migrator-drain.service", f"migrator-guest@{GUEST}.service"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceThread]:
    with in_thread(tmp_path) as service:
        yield service


@pytest.fixture
def machine(tmp_path: Path, service: ServiceThread) -> SystemdMachine:
    """A host whose guest is started with it, and which is emptied when it goes down."""
    machine = SystemdMachine(tmp_path / "machine")
    for name in ("migrator-drain", "migrator_service.py", "start-guest"):
        machine.copy(FILES / name, f"usr/local/lib/migrator/{name}")
    for name in (DRAIN, "migrator-guest@.service"):
        machine.copy(FILES / name, f"{UNITS}/{name}")
    machine.write("etc/migrator/drain.token", f"{OF_ALPHA}\n", 0o600)
    options(machine, service)
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    monitor = (
        f"socket,id=migrator-rescue,path=/run/migrator/guests/{GUEST}-booted/rescue.sock,server=on,wait=off"
    )
    words = [qemu, "-M", "none", "-display", "none", "-nodefaults", "-chardev", monitor]
    words += ["-mon", "chardev=migrator-rescue,mode=control"]
    machine.write(f"etc/migrator/guests/{GUEST}.json", json.dumps(words), 0o600)
    # It has no operating system that heeds the power button.
    machine.write(f"{UNITS}/migrator-guest@.service.d/quick.conf", "[Service]\nTimeoutStopSec=2\n")
    for unit in (DRAIN, UNIT):
        machine.want(unit)
    return machine


def options(machine: SystemdMachine, service: ServiceThread, *more: str) -> None:
    """Have its unit use that service, and not wait longer than a test has to."""
    given = f"--host alpha --server {service.place.url} --token-file /etc/migrator/drain.token --settle 0 --poll 0.2"
    machine.write(
        "etc/default/migrator-drain", f"DRAIN_OPTIONS={' '.join([given, '--away-seconds 2', *more])}\n"
    )


def host(service: ServiceThread) -> Any:
    return service.do(lambda running: running.queries.host("alpha"))


def order(machine: SystemdMachine, *wanted: tuple[str, str]) -> list[int]:
    """Return the places in its journal of the last messages that begin so, by unit."""
    journal = machine.journal()
    found = []
    for unit, begins in wanted:
        places = [
            place for place, (its, text) in enumerate(journal) if its == unit and text.startswith(begins)
        ]
        assert places, f"{unit} has not said {begins!r}: {[each for each in journal if each[0] == unit]}"
        found.append(places[-1])
    return found


def test_host_is_emptied_before_its_guests_are_stopped_and_filled_again_after_the_boot(
    machine: SystemdMachine, service: ServiceThread
) -> None:
    with machine.booted() as running:
        running.until(f"systemctl is-active {DRAIN}", "active")
        running.until(f"systemctl is-active {UNIT}", "active")
        running.do("systemctl", "restart", DRAIN)
        assert host(service).state == "active", "nobody is moved while the system runs"
        running.do("systemctl", "--no-block", "reboot")
        running.ended(120)
    assert (host(service).state, host(service).guests) == ("maintenance", 0)
    begun, emptied, stopped, guest = order(
        machine,
        (DRAIN, "migrator-drain: alpha: evacuation"),
        (DRAIN, "migrator-drain: alpha: completed"),
        (DRAIN, "Stopped"),
        (UNIT, "Stopping"),
    )
    assert begun < emptied < stopped < guest

    with machine.booted() as running:
        running.until(f"systemctl is-active {UNIT}", "active")
        service.until(
            lambda running: (
                running.queries.host("alpha").guests == 3 and not running.queries.active_evacuations()
            ),
            "its guests are home",
        )
        assert host(service).state == "active"
        running.do("systemctl", "--no-block", "poweroff")
        running.ended(120)
    assert (host(service).state, host(service).guests) == ("maintenance", 0)


def test_host_goes_down_in_time_where_its_guests_do_not_leave_and_at_once_without_a_service(
    machine: SystemdMachine, service: ServiceThread
) -> None:
    def slow(running: Any) -> None:
        del running
        for each in service.service.site.hosts.values():
            each.start_seconds = 600.0

    service.do(slow)
    options(machine, service, "--seconds 8")
    with machine.booted() as running:
        running.until(f"systemctl is-active {DRAIN}", "active")
        begun = time.monotonic()
        running.do("systemctl", "--no-block", "poweroff")
        running.ended(120)
    assert time.monotonic() - begun > 3
    order(machine, (DRAIN, "migrator-drain: alpha: not empty after 8 s"), (UNIT, "Stopping"))
    assert host(service).guests == 3

    machine.write(
        "etc/default/migrator-drain",
        "DRAIN_OPTIONS=--host alpha --server unix:/run/nobody --away-seconds 2\n",
    )
    with machine.booted() as running:
        running.until(f"systemctl is-active {DRAIN}", "active")
        running.do("systemctl", "--no-block", "poweroff")
        running.ended(60)
    away, guest = order(
        machine, (DRAIN, "migrator-drain: alpha: no answer from the service"), (UNIT, "Stopping")
    )
    assert away < guest
