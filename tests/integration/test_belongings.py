"""What the operator had at a guest's process is under the same paths where the guest is, and gone where it is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.hosts.local import LocalAccess
from migrator.testing.lab import GuestMachine, Habit, Lab, RawMonitor, until
from tests.destinations import POLICY, Site, guest_of, site_of

SMALL = Habit(region_bytes=4 << 20, bytes_per_second=1 << 20)


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    async with site_of(lab) as site:
        yield site


async def told(path: Path) -> str:
    """The run state, as whoever knows this monitor is told."""
    async with RawMonitor(path) as monitor:
        return str((await monitor.execute("query-status"))["status"])


async def test_over_several_hops_and_home_again(
    lab: Lab, site: Site, one_crossing: tuple[Path, Path]
) -> None:
    at = lab.directory / "operator"
    at.mkdir()
    qmp, second, human, serial = (at / name for name in ("vm.qmp", "a, second.sock", "vm.hmp", "port"))
    pid_file, log = at / "vm.pid", at / "vm.log"
    machine = GuestMachine(
        habit=SMALL,
        extra=(
            *("-qmp", f"unix:{qmp},server=on,wait=off"),
            *("-chardev", f"socket,id=two,path={str(second).replace(',', ',,')},server=on,wait=off"),
            *("-mon", "chardev=two,mode=control"),
            *("-monitor", f"unix:{human},server=on,wait=off"),
            *("-chardev", f"socket,id=port,path={serial},server=on,wait=off"),
            *(
                "-device",
                "virtio-serial-pci,addr=9",
                "-device",
                "virtserialport,chardev=port,name=org.example",
            ),
            *("-pidfile", str(pid_file), "-D", str(log), "-d", "guest_errors"),
        ),
    )
    qemu = await lab.boot(machine, binary=one_crossing[0])
    site.have(*one_crossing)
    site.hosts["gamma"] = LocalAccess("gamma"), replace(site.hosts["beta"][1], name="gamma")
    site.join()
    guest = guest_of(qemu)
    said_before = log.exists()
    for target in ("beta", "gamma", "beta", "alpha"):
        guest = await site.move(guest, target)
        (pid,) = site.processes
        assert int(pid_file.read_text()) == pid
        assert [await told(path) for path in (qmp, second)] == ["running"] * 2
        for path in (human, serial):
            assert path.is_socket()
            assert path.is_symlink()
        run_dir = Path(guest.socket).parent
        assert {path.readlink().parent for path in (qmp, second, human, serial, pid_file)} == {run_dir}
        lacking = [line for line in site.lacking if not (said_before and line.startswith(str(log)))]
        assert lacking == []
        assert said_before or log.readlink().parent == lab.directory / "log"
    assert len(site.left) == 1
    # The guest ends where it is, and everything that led to it goes with its directory.
    site.kill()
    await until(lambda: not site.processes, what="its end")
    await site.destinations.clear(guest)
    assert [path.name for path in at.iterdir() if path != log] == []


async def test_what_is_somebody_elses_is_left_alone_and_said(lab: Lab, site: Site, one_version: Path) -> None:
    taken, missing = lab.directory / "vm.log", lab.directory / "gone" / "vm.qmp"
    missing.parent.mkdir()
    machine = GuestMachine(
        habit=SMALL,
        extra=(
            *("-qmp", f"unix:{missing},server=on,wait=off", "-D", str(taken)),
            *("-qmp", "tcp:127.0.0.1:0,server=on,wait=off"),
        ),
    )
    qemu = await lab.boot(machine, binary=one_version)
    site.have(one_version, one_version)
    guest = guest_of(qemu)
    found = await site.destinations.check(guest, await site.source(guest), "beta", POLICY)
    assert [(each.code, "tcp:127.0.0.1:0" in each.message) for each in found] == [("stays-behind", True)]
    taken.write_text("of another")
    missing.unlink()
    missing.parent.rmdir()
    await site.close()
    guest = await site.move(guest, "beta")
    run_dir = Path(guest.socket).parent
    assert sorted(site.lacking) == sorted(
        [
            f"{missing} is at {run_dir}/vm.qmp now: its directory is not there",
            f"{taken} is at {lab.directory}/log/{run_dir.name}.log now: something else is there",
        ]
    )
    assert taken.read_text() == "of another"
    # It is remembered, and had again where it can be.
    taken.unlink()
    missing.parent.mkdir()
    guest = await site.move(guest, "alpha")
    assert site.lacking == []
    assert await told(missing) == "running"
    # A link that somebody has taken over is not ours to remove.
    missing.unlink()
    missing.symlink_to("/somewhere/else")
    site.kill()
    await until(lambda: not site.processes, what="its end")
    await site.destinations.clear(guest)
    assert missing.is_symlink()
    assert not taken.is_symlink()
