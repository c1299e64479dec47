"""Guests that move into units of their own on a machine whose pid 1 is systemd; both hosts are that machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd_machine import UNITS, Running, SystemdMachine, needs_systemd

pytestmark = [pytest.mark.matrix, needs_systemd, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
GUEST = "11111111-2222-3333-4444-555555555555"
MIGRATOR = f"{Path(sys.executable).parent}/migrator"
CONFIG, SOCKET = "/etc/migrator/migrator.toml", "/run/migrator/api.sock"
SERVICE = f"""[Service]
Type=notify
RuntimeDirectory=migrator
RuntimeDirectoryPreserve=yes
ExecStart={MIGRATOR} serve --config {CONFIG}
KillMode=process
"""
SETTINGS = f"""
[http]
socket = "{SOCKET}"
metrics_listen = ""

[store]
path = "/var/lib/migrator/journal.db"

[[guests]]
match = "*"
accept = ["tcg-loses-writes"]
"""


def host(name: str) -> str:
    return f"""
[[hosts]]
name = "{name}"
address = "127.0.0.1"
link_speed = "1Gbit/s"
memory_reserve = "0"
look_for = "sockets"
sockets = ["/run/qemu-{name}/*.qmp"]
run_dir = "/run/guests-{name}"
log_dir = "/var/log/guests-{name}"
"""


class Site:
    """Two hosts out of one machine."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def migrator(self, *words: str) -> str:
        return self.running.do("env", f"MIGRATOR_SERVER=unix:{SOCKET}", MIGRATOR, *words)

    def guest(self) -> Any:
        found = json.loads(self.migrator("guests", "--refresh", "--json"))["items"]
        assert len(found) == 1, self.migrator("guests", "-o", "wide") + self.migrator("hosts")
        return found[0]

    def units(self) -> list[str]:
        """Return the units of guests that the service has started, whatever became of them."""
        listed = self.running.do(
            "systemctl", "list-units", "--all", "--plain", "--no-legend", "migrator-guest-*"
        )
        # One line for each, that names the guest: not its command line, which it would be by default.
        assert all(line.endswith(" Guest web") for line in listed.splitlines()), listed
        return [line.split()[0] for line in listed.splitlines()]

    def shown(self, unit: str, what: str) -> str:
        return self.running.do("systemctl", "show", "--value", "--property", what, unit)

    def process(self, unit: str) -> str:
        """Return the pid of the guest's QEMU, which is the unit's own process."""
        pid = self.shown(unit, "MainPID")
        assert GUEST in self.running.do("cat", f"/proc/{pid}/cmdline")
        return pid


@pytest.fixture
def machine(tmp_path: Path) -> SystemdMachine:
    machine = SystemdMachine(tmp_path / "machine")
    machine.write(CONFIG.removeprefix("/"), SETTINGS + host("one") + host("two"), 0o600)
    machine.write(f"{UNITS}/migrator-test.service", SERVICE)
    machine.write("var/lib/migrator/empty", "")
    return machine


@pytest.fixture
def site(machine: SystemdMachine) -> Iterator[Site]:
    with machine.booted() as running:
        running.do("mkdir", "-m", "700", "/run/qemu-one")
        words = f"-M q35,accel=kvm:tcg -m 32 -nodefaults -display none -name web -uuid {GUEST}"
        running.do(
            *("systemd-run", "-q", "--unit", "web", "--slice", "customers.slice"),
            *("qemu-system-x86_64", *words.split(), "-qmp", "unix:/run/qemu-one/web.qmp,server=on,wait=off"),
        )
        running.do("systemctl", "start", "migrator-test")
        site = Site(running)
        yield site


def test_a_guest_has_a_unit_wherever_it_goes_which_outlives_the_service_and_is_gone_when_it_leaves(
    machine: SystemdMachine, site: Site
) -> None:
    running = site.running
    site.migrator("migrate", "web", "--to", "two", "--wait")
    [unit] = site.units()
    # Where other programs look for its monitor there is one at its new host, which is the same machine as the old one.
    running.do("rm", "-f", "/run/qemu-one/web.qmp")
    there = site.guest()
    assert (there["host"], there["run_state"]) == ("two", "running")
    assert site.shown(unit, "ActiveState") == "active"
    process = site.process(unit)
    assert site.shown(unit, "Slice") == "customers.slice", "as its source's"
    assert "migrator-drain.service" in site.shown(unit, "Before").split()
    assert running.do("systemctl", "is-active", "web", check=False) == "inactive", "its source has ended"

    running.do("systemctl", "kill", "--signal=KILL", "migrator-test")
    running.until("systemctl is-active migrator-test", "failed")
    running.do("systemctl", "start", "migrator-test")
    assert site.guest()["run_state"] == "running"
    assert site.process(unit) == process

    site.migrator("migrate", "web", "--to", "one", "--wait")
    [back] = site.units()
    assert back != unit
    assert site.process(back) != process

    running.do("systemctl", "stop", "migrator-test")
    assert site.shown(back, "ActiveState") == "active"
    running.do("systemctl", "--no-block", "poweroff")
    running.ended(120)
    assert any(unit == back and text.startswith("Stopping") for unit, text in machine.journal())
