"""Guests of libvirt are found beside all others, each once, and stay known while their libvirtd is away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from migrator.core.inventory import Guest
from migrator.core.managed_guest import DaemonAddress, place_of
from migrator.core.model import RunState
from migrator.hosts.host_config import HostConfig
from migrator.ports import HostLook
from migrator.site.hosts import SiteHosts
from migrator.testing.guest import IDLE
from migrator.testing.libvirtd import LibvirtHosts, domain_xml
from tests.integration.test_site_look import site_of
from tests.libvirt_hosts import guest_name

_SECONDS = 30.0


def config(hosts: LibvirtHosts, name: str, *, libvirt: bool = True) -> HostConfig:
    daemon = hosts[name]
    address = DaemonAddress(sockets=(str(daemon.socket),)) if libvirt else None
    return HostConfig(name=name, sockets=("/nowhere/*.qmp",), prefix=daemon.host.prefix, libvirt=address)


@pytest.fixture
async def site(libvirt_hosts: LibvirtHosts) -> AsyncIterator[SiteHosts]:
    site = site_of(config(libvirt_hosts, "alpha"), config(libvirt_hosts, "beta", libvirt=False))
    yield site
    await site.close()


async def seen(site: SiteHosts, until: Callable[[HostLook], bool]) -> HostLook:
    """The first look that shows that."""
    async with asyncio.timeout(_SECONDS):
        while not until(look := await site.look("alpha")):
            await asyncio.sleep(0.1)
        return look


async def test_guest_of_libvirt_is_shown_once_with_what_libvirt_says_of_it(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE, autostart=True)
    (guest,) = (await site.look("alpha")).guests
    assert guest == Guest(
        key=uuid,
        host="alpha",
        uuid=uuid,
        name=name,
        socket=place_of(uuid),
        pid=alpha.guest_pid(name),
        memory_bytes=64 << 20,
        resident_bytes=guest.resident_bytes,
        managed_by="libvirt",
        network=guest.network,
        domain=guest.domain,
        process=guest.process,
    )
    assert guest.resident_bytes
    assert guest.process
    assert guest.domain is not None
    assert (guest.domain.persistent, guest.domain.autostart, guest.domain.snapshots) == (True, True, 0)
    assert Guest.from_fields(guest.fields()) == guest


async def test_guest_that_is_shut_off_is_counted_and_goes_by_the_command_that_is_told_of(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    (tmp_path / "xml").write_text(domain_xml(name, tmp_path / "image"))
    await alpha.virsh("define", str(tmp_path / "xml"))
    look = await site.look("alpha")
    assert (look.guests, look.facts.shut_off_guests) == ((), 1)
    await alpha.virsh("migrate", "--offline", "--persistent", "--undefinesource", name, beta.uri)
    assert (await site.look("alpha")).facts.shut_off_guests == 0
    assert (await beta.virsh("list", "--inactive", "--name")).split() == [name]


async def test_what_becomes_of_it_is_heard_from_libvirt(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    await site.look("alpha")
    heard = asyncio.Event()
    watching = asyncio.create_task(site.watch("alpha", heard.set))

    async def after(*command: str) -> list[RunState]:
        heard.clear()
        await alpha.virsh(*command)
        async with asyncio.timeout(_SECONDS):
            await heard.wait()
        return [guest.run for guest in (await site.look("alpha")).guests]

    try:
        await alpha.start_guest(name, tmp_path / "image", habit=IDLE, persistent=False)
        (guest,) = (await site.look("alpha")).guests
        assert guest.domain is not None
        assert not guest.domain.persistent
        assert await after("suspend", name) == [RunState.PAUSED]
        assert await after("resume", name) == [RunState.RUNNING]
        assert await after("destroy", name) == []
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def test_guests_stay_known_while_their_libvirtd_is_away_and_the_host_says_so(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    before = (await site.look("alpha")).guests[0]
    alpha.kill_daemon()
    look = await site.look("alpha")
    assert "libvirt cannot be reached" in look.facts.libvirt_error
    (away,) = look.guests
    assert away.lost_contact
    assert (away.key, away.name, away.memory_bytes, away.pid) == (uuid, name, 64 << 20, before.pid)
    assert "libvirt cannot be reached" in away.obstacle
    await alpha.start_daemon()
    look = await seen(site, lambda look: not look.facts.libvirt_error)
    (back,) = look.guests
    assert not back.lost_contact
    assert back.pid == before.pid


@pytest.mark.matrix
async def test_libvirtd_that_does_not_answer_holds_a_look_up_for_a_moment_only(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    await site.look("alpha")
    pid = alpha.daemon_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(_SECONDS):
            look = await site.look("alpha")
    finally:
        os.kill(pid, signal.SIGCONT)
    # On a busy machine its silence may have been noticed before, by libvirt itself.
    silence = ("was not answered within 10 s", "keepalive timeout")
    assert any(each in look.facts.libvirt_error for each in silence), look.facts.libvirt_error
    assert [(guest.key, guest.lost_contact) for guest in look.guests] == [(uuid, True)]
    look = await seen(site, lambda look: not look.facts.libvirt_error)
    assert [(guest.key, guest.lost_contact) for guest in look.guests] == [(uuid, False)]


async def test_guest_that_ends_while_its_libvirtd_is_away_is_gone(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    await site.look("alpha")
    alpha.kill_daemon()
    alpha.kill_guest(name)
    assert (await site.look("alpha")).guests == ()


async def test_guest_of_a_host_whose_libvirt_is_off_is_shown_as_libvirts(
    libvirt_hosts: LibvirtHosts, site: SiteHosts, tmp_path: Path
) -> None:
    name, beta = guest_name(), libvirt_hosts["beta"]
    uuid = await beta.start_guest(name, tmp_path / "image", habit=IDLE)
    look = await site.look("beta")
    assert look.facts.libvirt_error == ""
    (guest,) = look.guests
    assert (guest.uuid, guest.managed_by, guest.obstacle_code) == (uuid, "libvirt", "libvirt")
    assert "the configuration leaves them to it" in guest.obstacle
