"""Who else manages a guest, as its process shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.core.inventory import Guest
from migrator.core.model import Severity
from migrator.core.preflight.managers import Ancestor, Manager, ProcessSigns, find_manager, findings
from migrator.errors import HostError
from migrator.hosts.local import LocalAccess
from migrator.hosts.managers import SystemdUnits, parse, read_processes

INIT = Ancestor(pid=1, program="systemd")


def unit(restart: str, main: int = 7) -> dict[str, str]:
    return {"Id": "vm1.service", "Restart": restart, "MainPID": str(main)}


@pytest.mark.parametrize(
    ("process", "is_"),
    [
        (ProcessSigns(pid=7, ancestors=[INIT]), Manager()),
        (
            ProcessSigns(pid=7, words="qemu -chardev socket,id=charmonitor,fd=28"),
            Manager(name="libvirt", restarts=True),
        ),
        (
            ProcessSigns(pid=7, words="kvm -id 100 -pidfile /var/run/qemu-server/100.pid"),
            Manager(name="proxmox", restarts=True),
        ),
        (ProcessSigns(pid=7, cgroup="/qemu.slice/100.scope"), Manager(name="proxmox", restarts=True)),
        (
            ProcessSigns(pid=7, words="qemu -readconfig /run/incus/v1/qemu.conf"),
            Manager(name="incus", restarts=True),
        ),
        (
            ProcessSigns(pid=7, words="kvm -pidfile /var/run/ganeti/kvm-hypervisor/pid/a"),
            Manager(name="ganeti", restarts=True),
        ),
        (
            ProcessSigns(pid=7, cgroup="/system.slice/vm1.service", unit=unit("always"), ancestors=[INIT]),
            Manager(name="systemd:vm1.service", restarts=True),
        ),
        (
            ProcessSigns(pid=7, unit=unit("no"), ancestors=[INIT]),
            Manager(name="systemd:vm1.service", restarts=False),
        ),
        (
            ProcessSigns(pid=7, unit=unit("always", main=5), ancestors=[Ancestor(pid=5, program="sh"), INIT]),
            Manager(name="systemd:vm1.service", restarts=True),
        ),
        # Somebody who came by SSH began it: its service is nobody's manager.
        (
            ProcessSigns(pid=7, unit={"Id": "ssh.service", "Restart": "on-failure", "MainPID": "99"}),
            Manager(),
        ),
        (
            ProcessSigns(pid=7, unit={"Id": "migrator-guest-1.service", "Restart": "no", "MainPID": "7"}),
            Manager(),
        ),
        (
            ProcessSigns(pid=7, ancestors=[Ancestor(pid=5, program="runsv"), INIT]),
            Manager(name="parent:runsv", restarts=True),
        ),
        (
            ProcessSigns(pid=7, ancestors=[Ancestor(pid=5, program="bash", loops=True), INIT]),
            Manager(name="parent:bash", restarts=True),
        ),
        (
            ProcessSigns(pid=7, ancestors=[Ancestor(pid=5, program="bash"), INIT]),
            Manager(name="parent:bash", restarts=False),
        ),
        (ProcessSigns(pid=7, ancestors=[Ancestor(pid=5, program="systemd"), INIT]), Manager()),
    ],
)
def test_is_known_by_what_it_leaves(process: ProcessSigns, is_: Manager) -> None:
    assert find_manager(process) == is_


@pytest.mark.parametrize(
    ("managed_by", "restarts", "code", "severity"),
    [
        ("systemd:vm1.service", True, "managed-unit", Severity.WARNING),
        ("proxmox", True, "managed-elsewhere", Severity.ERROR),
        ("parent:sh", True, "managed-elsewhere", Severity.ERROR),
    ],
)
def test_who_would_start_it_again_is_a_finding(
    managed_by: str, restarts: bool, code: str, severity: Severity
) -> None:
    (found,) = findings(Guest(key="g", host="a", managed_by=managed_by, restarts=restarts))
    assert (found.code, found.severity) == (code, severity)


@pytest.mark.parametrize("managed_by", ["", "systemd:vm1.service", "parent:python3"])
def test_who_would_not_is_none(managed_by: str) -> None:
    assert list(findings(Guest(key="g", host="a", managed_by=managed_by))) == []


class TestReading:
    @pytest.mark.parametrize(
        ("script", "loops"),
        [
            ("while :; do {child}; done\n", True),
            ("until false; do {child}; done\n", True),
            ("echo whiled away\n{child}\necho\n", False),
        ],
    )
    @pytest.mark.parametrize("how", ["file", "text"])
    async def test_a_shell_with_a_loop_is_told_from_one_that_waits(
        self, tmp_path: Path, script: str, loops: bool, how: str
    ) -> None:
        said = script.format(child=f"{sys.executable} -c 'print(flush=True); import time; time.sleep(60)'")
        path = tmp_path / "run.sh"
        path.write_text(said)
        arguments = ["sh", "run.sh"] if how == "file" else ["sh", "-c", said + "\ntrue"]
        shell = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
        try:
            assert shell.stdout is not None
            while shell.stdout.readline().strip():
                pass
            (child,) = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
            found = await read_processes(LocalAccess("here"), [int(child), 2**22 + 1])
            (process,) = found.values()
            assert process.ancestors[0] == Ancestor(pid=shell.pid, program="sh", loops=loops)
            assert process.ancestors[1].pid == os.getpid()
            assert "time.sleep(60)" in process.words
        finally:
            os.killpg(shell.pid, 9)
            shell.communicate()

    def test_whatever_a_program_is_called(self) -> None:
        text = (
            "pid\0007\0words\0q\0cgroup\0/x\0unit\0Id=a.service\nRestart=no\n\0above\0005 - a b\nc\0end\0\0"
        )
        assert parse(text) == {
            7: ProcessSigns(
                pid=7,
                words="q",
                cgroup="/x",
                unit={"Id": "a.service", "Restart": "no"},
                ancestors=(Ancestor(pid=5, program="a b\nc"),),
            )
        }


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A stand-in for systemctl that knows drop-ins; what it was told."""
    said = tmp_path / "said"
    said.touch()
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{said}\n'
        f'case $1 in show) for unit; do :; done; [ -e {tmp_path}/units/"$unit".d/90-migrator.conf ] '
        f"&& [ ! -e {tmp_path}/stubborn ] && echo no || echo always;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lambda: said.read_text().splitlines()


class TestUnits:
    async def test_a_unit_is_told_not_to_restart_and_put_back(
        self, tmp_path: Path, systemctl: Callable[[], list[str]]
    ) -> None:
        units = SystemdUnits(LocalAccess("here"), directory=str(tmp_path / "units"))
        for _ in range(2):
            await units.suppress_restart("vm 1.service")
        dropin = tmp_path / "units" / "vm 1.service.d" / "90-migrator.conf"
        assert dropin.read_text() == "[Service]\nRestart=no\n"
        assert systemctl()[:2] == ["daemon-reload", "show -p Restart --value -- vm 1.service"]
        for _ in range(2):
            await units.allow_restart("vm 1.service")
        assert not dropin.parent.exists()
        assert systemctl().count("daemon-reload") == 3

    async def test_one_that_cannot_be_told_is_as_it_was(
        self, tmp_path: Path, systemctl: Callable[[], list[str]]
    ) -> None:
        (tmp_path / "stubborn").touch()
        units = SystemdUnits(LocalAccess("here"), directory=str(tmp_path / "units"))
        with pytest.raises(
            HostError, match=r"the unit vm1\.service cannot be told not to start the guest again"
        ):
            await units.suppress_restart("vm1.service")
        assert not (tmp_path / "units" / "vm1.service.d").exists()
        assert systemctl()[-1] == "daemon-reload"
