"""A unit that starts a guest at its host's boot, and the hook that has it move with the guest."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.testing.lab import GuestMachine, Lab, until
from migrator.testing.process import LabQemu
from tests.conftest import missing

CONTRIB = Path(__file__).parents[2] / "contrib"
UNIT = CONTRIB / "systemd" / "migrator-guest@.service"


class Host:
    """The files of one: units, and descriptions of guests."""

    def __init__(self, root: Path) -> None:
        self.root, self.guests, self.run = root, root / "etc/migrator/guests", root / "run"
        units = root / "etc/systemd/system"
        units.mkdir(parents=True)
        shutil.copy(UNIT, units)

    def hook(self, action: str, document: Any) -> str:
        systemctl = ("systemctl", f"--root={self.root}")
        done = subprocess.run(
            [CONTRIB / "hooks" / "guest-unit", action, str(self.guests), str(self.run), *systemctl],
            input=json.dumps(document),
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def starts(self) -> list[str]:
        """Return the units that are started when it boots."""
        wanted = self.root / "etc/systemd/system/multi-user.target.wants"
        return sorted(path.name for path in wanted.iterdir()) if wanted.exists() else []


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if shutil.which("systemctl") is None:
        missing("there is no systemctl")
    # The path of a socket has no room for more.
    with tempfile.TemporaryDirectory(prefix="m-") as root:
        yield Host(Path(root) / "a"), Host(Path(root) / "b")


def told(point: str, machine: GuestMachine, qemu: LabQemu, socket: Path) -> Any:
    end = {"pid": qemu.pid, "socket": str(socket)}
    guest = {"uuid": str(machine.uuid), "name": "web"}
    return {"point": point, "guest": guest, "source": end, "destination": end, "migration": {"id": "m1"}}


@asynccontextmanager
async def booted(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start what a description says, as the unit does."""
    program = str(CONTRIB / "systemd" / "start-guest")
    process = await asyncio.create_subprocess_exec(program, str(path))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_who_starts_a_guest_at_the_boot_moves_with_it(lab: Lab, hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    machine = GuestMachine()
    directory = there.run / "m1-abcdef"
    (there.run / f"{machine.uuid}-booted").mkdir(parents=True)
    directory.mkdir()
    monitors = [
        word
        for name in ("control", "rescue")
        for word in (
            *("-chardev", f"socket,id=migrator-{name},server=on,wait=off,path={directory}/{name}.qmp"),
            *("-mon", f"chardev=migrator-{name},mode=control"),
        )
    ]
    qemu = await lab.start(machine, extra=tuple(monitors))
    await qemu.wait_beating()
    unit = f"migrator-guest@{machine.uuid}.service"
    socket = directory / "control.qmp"
    assert here.hook("keep", told("after", machine, qemu, socket)) == f"{unit} is enabled here\n"
    assert here.starts() == [unit]
    # It is to leave, and stays after all; then it leaves.
    for _ in range(2):
        here.hook("drop", told("before", machine, qemu, socket))
    assert (here.starts(), there.starts()) == ([], [])
    here.hook("keep", told("failed", machine, qemu, socket))
    assert here.starts() == [unit]
    here.hook("drop", told("before", machine, qemu, socket))
    for _ in range(2):
        there.hook("keep", told("after", machine, qemu, socket))
    assert (here.starts(), there.starts()) == ([], [unit])
    # Nothing was taken away there, so that nothing comes back.
    assert there.hook("keep", told("failed", machine, qemu, socket)) == ""
    qemu.kill()
    await qemu.wait_dead()
    description = there.guests / f"{machine.uuid}.json"
    async with booted(description) as process:
        rescue = there.run / f"{machine.uuid}-booted" / "rescue.qmp"
        await until(rescue.exists, what="its monitors", within=30)
        guest = LabQemu.attach(machine, process.pid, rescue)
        await until(guest.runs, what="a guest that runs", within=30)
        program = [str(CONTRIB / "systemd" / "start-guest"), "--power-down", str(description)]

        async def powered_off() -> bool:
            presses = await asyncio.create_subprocess_exec(*program, stderr=asyncio.subprocess.DEVNULL)
            await presses.wait()
            return process.returncode is not None

        await until(powered_off, what="its end by the power button", within=30)


def test_a_description_that_others_may_write_starts_nothing(tmp_path: Path) -> None:
    description = tmp_path / "web.json"
    description.write_text(json.dumps(["touch", str(tmp_path / "started")]))
    description.chmod(0o666)
    program = CONTRIB / "systemd" / "start-guest"
    done = subprocess.run([program, str(description)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "may have been written by others" in done.stderr
    assert list(tmp_path.iterdir()) == [description]


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("there is no systemd-analyze")
    unit = tmp_path / "migrator-guest@.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/lib/migrator/start-guest", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "migrator-guest" not in done.stderr, done.stderr
