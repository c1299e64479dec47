"""The hosts with a libvirtd each that other tests stand on."""

from __future__ import annotations

from pathlib import Path

from migrator.testing.guest import IDLE
from migrator.testing.libvirtd import LibvirtHosts
from tests.libvirt_hosts import guest_name


async def test_guest_runs_on_while_its_daemon_is_killed_and_started_again(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    pid = alpha.guest_pid(name)
    alpha.kill_daemon()
    await alpha.wait_beating(name)
    await alpha.start_daemon()
    assert await alpha.state(name) == "running"
    assert alpha.guest_pid(name) == pid
    assert await libvirt_hosts["beta"].state(name) == ""


async def test_what_a_test_has_left_is_gone_for_the_next(libvirt_hosts: LibvirtHosts, tmp_path: Path) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    alpha.host.set_speed(1e6)
    alpha.kill_daemon()
    await libvirt_hosts.restore()
    assert (await alpha.state(name), alpha.host.speed) == ("", None)
    assert "tbf" not in alpha.host.run("tc", "qdisc")
