"""Preflight of guests of libvirt: in the words of the libvirt of both hosts, and nothing is changed by it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.inventory import Guest
from migrator.core.managed_guest import place_of
from migrator.core.policy import CopiedDisks, Policy, StreamRoute, builtin
from migrator.site.hosts import SiteHosts
from migrator.testing.guest import IDLE
from migrator.testing.libvirtd import LibvirtDaemon, LibvirtHosts, domain_xml
from tests.integration.test_libvirt_guests import config
from tests.integration.test_site_look import site_of
from tests.libvirt_hosts import guest_name
from tests.libvirt_moves import definition

DEFAULT = builtin("default")
#: What no target of these tests has.
_LACKING = """\
<interface type='network'><source network='inner'/></interface>
<interface type='bridge'><source bridge='br-inner'/></interface>
<disk type='volume' device='disk'><source pool='images' volume='big'/><target dev='vdb' bus='virtio'/></disk>
<disk type='network' device='disk'>
  <auth username='admin'><secret type='ceph' uuid='3b5ac6a1-8d1d-4b6c-9f0f-0d5b5e5d5a11'/></auth>
  <source protocol='rbd' name='pool/image'><host name='ceph'/></source><target dev='vdc' bus='virtio'/>
</disk>
<disk type='file' device='disk'><source file='/nowhere/disk.raw'/><target dev='vdd' bus='virtio'/></disk>
<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address domain='0x0000' bus='0x81' slot='0x00' function='0x1'/></source>
</hostdev>
"""


@pytest.fixture
async def site(libvirt_hosts: LibvirtHosts) -> AsyncIterator[SiteHosts]:
    site = site_of(
        config(libvirt_hosts, "alpha"),
        config(libvirt_hosts, "beta"),
        config(libvirt_hosts, "gamma", libvirt=False),
    )
    yield site
    await site.close()


async def found(
    site: SiteHosts, name: str, uuid: str, target: str = "beta", policy: Policy = DEFAULT
) -> dict[str, str]:
    guest = Guest(key=uuid, host="alpha", uuid=uuid, name=name, socket=place_of(uuid), managed_by="libvirt")
    findings = await site.check(guest, None, target, policy)  # type: ignore[arg-type]  # it has no monitor
    return {each.code: each.message for each in findings}


async def test_guest_that_can_move_has_nothing_against_it_but_that_its_image_is_on_no_shared_file_system(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name = guest_name()
    uuid = await libvirt_hosts["alpha"].start_guest(name, tmp_path / "image", habit=IDLE)
    against = await found(site, name, uuid)
    assert set(against) == {"libvirt-unsafe-cache"}
    assert "none that libvirt knows to be shared" in against["libvirt-unsafe-cache"]
    strange = replace(DEFAULT, stream=StreamRoute.SSH, disks=CopiedDisks.ALL)
    assert set(await found(site, name, uuid, policy=strange)) == {"libvirt-unsafe-cache", "libvirt-policy"}
    assert set(await found(site, name, uuid, "gamma")) == {"libvirt-target", "libvirt-unsafe-cache"}


async def test_what_the_target_lacks_is_named_and_nothing_is_changed_there(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    definition = domain_xml(name, tmp_path / "image").replace("<controller", f"{_LACKING}<controller", 1)
    (tmp_path / "image").touch()
    (tmp_path / "xml").write_text(definition)
    await alpha.virsh("define", str(tmp_path / "xml"))
    uuid = (await alpha.virsh("domuuid", name)).strip()
    against = await found(site, name, uuid)
    assert set(against) >= {
        *("libvirt-network", "libvirt-pool", "libvirt-secret", "libvirt-host-device"),
        *("bridge-missing", "disk-file-missing"),
    }
    assert "inner" in against["libvirt-network"]
    assert "pci 0000:81:00.1" in against["libvirt-host-device"]
    assert (await beta.virsh("list", "--all", "--name")).split() == []


async def test_guest_of_the_same_name_at_the_target_is_in_the_way(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    (tmp_path / "other.xml").write_text(domain_xml(name, tmp_path / "image"))
    await beta.virsh("define", str(tmp_path / "other.xml"))
    against = await found(site, name, uuid)
    assert name in against["libvirt-name"]


async def at(daemon: LibvirtDaemon, commands: str) -> None:
    """Run what a person would type on that host."""
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-e", "-c", commands), env={**os.environ, "LIBVIRT_DEFAULT_URI": daemon.uri}
    )
    assert await shell.wait() == 0, commands


@pytest.mark.matrix
async def test_guest_that_is_not_saved_by_us_is_saved_and_taken_up_elsewhere_by_what_the_refusal_says(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    before = await definition(alpha, name)
    guest = Guest(key=uuid, host="alpha", uuid=uuid, name=name, socket=place_of(uuid), managed_by="libvirt")
    (said,) = await site.saved.check(guest, None, str(tmp_path / "a guest"))  # type: ignore[arg-type]  # likewise
    assert said.code == "libvirt-policy"
    save, _, rest = said.remedy.removeprefix("on alpha: ").partition("; it goes on there by: ")
    here, _, rest = rest.partition("; or on another host that sees its disks and both files by: ")
    there, _, after = rest.partition("; and then on alpha: ")
    await at(alpha, save)
    assert await alpha.state(name) == "shut off"
    await at(alpha, here)
    await alpha.wait_beating(name)
    await at(alpha, save)
    await at(beta, there)
    await at(alpha, after)
    await beta.wait_beating(name)
    assert await definition(beta, name) == before
    assert await alpha.state(name) == ""
