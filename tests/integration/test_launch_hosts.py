"""Destinations on other hosts: over SSH, and in a network of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migrator.hosts.host_config import HostConfig
from migrator.hosts.local import LocalAccess
from migrator.hosts.ssh import SshAccess
from migrator.testing.lab import GuestMachine, Habit, Lab
from migrator.testing.network import LabHosts
from tests.destinations import MIB, Moved, Site, guest_of, site_of
from tests.integration.test_replicate import PLUGGABLE, fingerprint, plug_everything
from tests.sshd import Sshd

HABIT = Habit(region_bytes=8 * MIB, bytes_per_second=4 * MIB)


class TestOverSsh:
    @pytest.fixture
    async def site(self, lab: Lab, tmp_path: Path) -> AsyncIterator[Site]:
        with Sshd(tmp_path / "sshd") as sshd:
            access = SshAccess("beta", sshd.config())
            async with site_of(lab) as site:
                site.reached_by(access)
                self.sshd = sshd
                yield site
            await access.close()

    async def test_a_guest_and_all_that_was_plugged_moves_there_and_back(self, lab: Lab, site: Site) -> None:
        machine = GuestMachine(habit=HABIT, name="a $(b)\n'c'", extra=PLUGGABLE)
        qemu = await lab.boot(machine)
        await plug_everything(qemu, lab.directory)
        before = await fingerprint(qemu)
        guest = guest_of(qemu)
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            assert await fingerprint(moved) == before
            await moved.check_memory()
        assert len(site.left) == 1

    async def test_what_was_started_outlives_the_connection(self, lab: Lab, site: Site) -> None:
        started = await site.start(guest_of(await lab.start()))
        assert len(site.processes) == 1
        assert self.sshd.break_connections()
        await started.discard()
        assert (site.left, site.processes) == ([], [])

    async def test_what_hangs_is_ended_there(self, lab: Lab, site: Site) -> None:
        wait = "socket,id=c,path={run_dir}/c.sock,server=on,wait=on"
        template = ("qemu-system-x86_64", "-display", "none", "-daemonize", "-chardev", wait)
        site.configure(launch="template", template=template, start_timeout=1.0)
        with pytest.raises(Exception, match="did not come up within 1 s"):
            await site.start(guest_of(await lab.start()))
        assert (site.left, site.processes) == ([], [])


class TestInNetworksOfTheirOwn:
    @pytest.fixture
    async def site(self, hosts: LabHosts, lab: Lab) -> AsyncIterator[Site]:
        async with site_of(lab) as site:
            for host in hosts:
                access = LocalAccess(host.name, host.prefix)
                site.hosts[host.name] = access, HostConfig(name=host.name, addresses=(host.address,))
            site.join()
            yield site

    async def test_a_port_of_the_source_is_free(self, hosts: LabHosts, lab: Lab, site: Site) -> None:
        machine = GuestMachine(habit=HABIT, extra=("-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:50922-:22"))
        qemu = await lab.boot(machine, prefix=hosts["alpha"].prefix)
        guest = await site.move(guest_of(qemu), "beta")
        assert ":50922" in hosts["beta"].run("ss", "-ltn")
        guest = await site.move(guest, "alpha")
        await Moved(machine, lab, guest.socket).check_memory()

    async def test_interfaces_are_made_there_as_they_were_here(
        self, hosts: LabHosts, lab: Lab, site: Site
    ) -> None:
        if not Path("/dev/net/tun").exists():
            pytest.skip("there is no /dev/net/tun here")
        extra = (
            *("-netdev", "tap,id=t0,ifname=tap0,script=no,downscript=no"),
            *(
                "-device",
                "virtio-net-pci,netdev=t0,id=t0d,romfile=",
                "-device",
                "pcie-root-port,id=rp1,chassis=1",
            ),
        )
        machine = GuestMachine(habit=HABIT, extra=extra)
        qemu = await lab.boot(machine, prefix=hosts["alpha"].prefix)
        tap = {"type": "tap", "id": "t1", "ifname": "tap1", "script": "no", "downscript": "no"}
        await qemu.query("netdev_add", tap)
        mac = "52:54:00:aa:bb:cc"
        await qemu.query("device_add", driver="virtio-net-pci", netdev="t1", id="t1d", bus="rp1", mac=mac)
        guest = guest_of(qemu)
        for target, other in (("beta", "alpha"), ("alpha", "beta")):
            guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            assert await moved.query("qom-get", path="/machine/peripheral/t1d", property="mac") == mac
            for name in ("tap0", "tap1"):
                assert name in hosts[target].run("ip", "link")
                assert name not in hosts[other].run("ip", "link")
