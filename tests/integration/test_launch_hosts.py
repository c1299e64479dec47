"""Destinations on other hosts: over SSH, and in a network of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.hosts.local import LocalAccess
from migrator.hosts.site_config import HostConfig
from migrator.hosts.ssh import SshAccess
from migrator.service.launch_config import Method
from migrator.testing.lab import Habit, Lab, Machine
from migrator.testing.network import Hosts
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
        machine = Machine(habit=HABIT, name="a $(b)\n'c'", extra=PLUGGABLE)
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
        site.config = replace(site.config, method=Method.TEMPLATE, template=template, start_seconds=1.0)
        with pytest.raises(Exception, match="did not come up within 1 s"):
            await site.start(guest_of(await lab.start()))
        assert (site.left, site.processes) == ([], [])


async def test_a_port_of_the_source_is_free_in_another_network(hosts: Hosts, lab: Lab) -> None:
    machine = Machine(habit=HABIT, extra=("-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:50922-:22"))
    async with site_of(lab) as site:
        for host in hosts:
            access = LocalAccess(host.name, host.prefix)
            site.hosts[host.name] = access, HostConfig(name=host.name, address=host.address)
        site.join()
        qemu = await lab.boot(machine, prefix=hosts["alpha"].prefix)
        guest = await site.move(guest_of(qemu), "beta")
        assert ":50922" in hosts["beta"].run("ss", "-ltn")
        guest = await site.move(guest, "alpha")
        await Moved(machine, lab, guest.socket).check_memory()
