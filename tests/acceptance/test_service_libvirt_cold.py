"""Guests of libvirt that cannot move live are shut down and started anew; never two, and never none."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.libvirt.binding import load
from migrator.testing.guest import IDLE, write_image
from migrator.testing.lab import until
from migrator.testing.libvirtd import LibvirtDaemon, LibvirtHosts, domain_xml
from tests.acceptance.service_site import LiveSite
from tests.acceptance.test_service_libvirt import fleet
from tests.libvirt_hosts import NAMES, guest_name
from tests.libvirt_moves import definition, has

#: Says that it runs, and hears of nothing, its power button least of all: interrupts are off.
_DEAF_CODE = (
    b"\xfa"  # cli
    b"\xba\xf8\x03"  # mov dx, 0x3f8
    b"\xb0\x42"  # mov al, 'B'
    b"\xee"  # out dx, al
    b"\x66\xb9\x00\x00\x00\x01"  # mov ecx, 0x1000000
    b"\x67\xe2\xfd"  # loop to itself
    b"\xeb\xf4"  # jmp to the out
)
_DEAF = (_DEAF_CODE.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0")


@asynccontextmanager
async def cold_fleet(daemons: LibvirtHosts, *, seconds: int = 30) -> AsyncIterator[LiveSite]:
    """A served site on these hosts. Their images are on no file system that libvirt knows to be shared, and nobody has
    accepted that: what is allowed to be shut down is."""
    async with fleet(daemons, peers=False, extra=f'[policies.cold]\nmax_shutdown = "{seconds}s"\n') as site:
        site.serve()
        await site.until_served(within=90)
        await site.known(1)
        yield site


async def runs_only_at(daemons: LibvirtHosts, name: str, host: str) -> None:
    """Wait until it has booted there, and see that no other host has anything of it."""
    await daemons[host].wait_beating(name)
    for other in NAMES:
        assert bool(await has(daemons[other], name)) is (other == host)


async def moved(site: LiveSite, uuid: str, state: str, **more: Any) -> Any:
    begun = await site.post("migrations", guest=uuid, to="beta", policy="cold", **more)
    return await site.migration_ended(begun["id"], state, within=120)


@pytest.mark.timeout(300)
async def test_guest_that_cannot_move_live_is_shut_down_boots_at_the_target_as_it_was_and_comes_home_so(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE, autostart=True)
    before = await definition(alpha, name)
    async with cold_fleet(libvirt_hosts) as site:
        plan = await site.post("plans", host="alpha", policy="cold")
        (planned,) = plan["guests"]
        assert planned["possible"]
        assert "cold-start" in [each["code"] for each in planned["findings"]]
        away = await site.post("hosts/alpha/evacuate", policy="cold")
        ended = await site.ended(away["id"], "completed", within=120)
        move = await site.get(f"migrations/{ended['guests'][0]['migration']}")
        assert move["mode"] == "cold"
        assert 0 < move["downtime_seconds"] < 30
        assert [each["code"] for each in move["findings"] if each["severity"] == "error"] == []
        at = move["destination"]
        await runs_only_at(libvirt_hosts, name, at)
        assert await definition(libvirt_hosts[at], name) == before
        assert (await has(libvirt_hosts[at], name))["Autostart"] == "enable"
        home = await site.post("hosts/alpha/restore")
        await site.ended(home["id"], "completed", within=120)
        await runs_only_at(libvirt_hosts, name, "alpha")
        assert await definition(alpha, name) == before
        assert (await has(alpha, name))["Autostart"] == "enable"
        assert (await alpha.virsh("domuuid", name)).strip() == uuid


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_guest_without_a_definition_that_lasts_has_none_at_the_target_either(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE, persistent=False)
    async with cold_fleet(libvirt_hosts) as site:
        await moved(site, uuid, "completed")
        await runs_only_at(libvirt_hosts, name, "beta")
        assert (await has(beta, name))["Persistent"] == "no"


def _refuse_to_start(daemon: LibvirtDaemon, name: str) -> None:
    """Have a directory be where the guest's serial port is to be written."""
    (daemon.directory / "run" / f"{name}.serial").mkdir()


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "transient"])
async def test_guest_that_does_not_start_at_the_target_boots_again_where_it_was(
    libvirt_hosts: LibvirtHosts, tmp_path: Path, persistent: bool
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(
        name, tmp_path / "image", habit=IDLE, persistent=persistent, autostart=persistent
    )
    before = await definition(alpha, name)
    _refuse_to_start(beta, name)
    try:
        async with cold_fleet(libvirt_hosts) as site:
            document = await moved(site, uuid, "failed")
            assert f"{name}.serial" in document["error"]
            await runs_only_at(libvirt_hosts, name, "alpha")
            assert (await has(alpha, name))["Persistent"] == ("yes" if persistent else "no")
            if persistent:
                assert await definition(alpha, name) == before
                assert (await has(alpha, name))["Autostart"] == "enable"
    finally:
        (beta.directory / "run" / f"{name}.serial").rmdir()


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_guest_that_does_not_shut_down_in_time_stays_and_is_ended_by_force_where_that_is_accepted(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    (tmp_path / "image").write_bytes(_DEAF)
    uuid = await alpha.start_guest(name, tmp_path / "image")
    async with cold_fleet(libvirt_hosts, seconds=2) as site:
        document = await moved(site, uuid, "failed")
        assert "was asked to shut down and has not within 2.0 s" in document["error"]
        assert "--accept guest-not-shut-down" in document["error"]
        await runs_only_at(libvirt_hosts, name, "alpha")
        await moved(site, uuid, "completed", accept=["guest-not-shut-down"])
        await runs_only_at(libvirt_hosts, name, "beta")


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "transient"])
@pytest.mark.parametrize("when", ["asked", "off"])
async def test_service_that_is_killed_leaves_the_guest_in_one_place(
    libvirt_hosts: LibvirtHosts, tmp_path: Path, when: str, persistent: bool
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    if when == "asked":
        (tmp_path / "image").write_bytes(_DEAF)
    else:
        write_image(tmp_path / "image", IDLE)
    uuid = await alpha.start_guest(name, tmp_path / "image", persistent=persistent, autostart=persistent)
    async with cold_fleet(libvirt_hosts, seconds=15) as site:
        pid = alpha.guest_pid(name)
        begun = await site.post("migrations", guest=uuid, to="beta", policy="cold")
        if when == "asked":
            await site.until_state("precopy")
        else:
            await until(lambda: not Path(f"/proc/{pid}").exists(), what="its shutdown", within=60)
        await site.restart()
        ended = await site.migration_over(begun["id"], within=90)
        assert ended["state"] in ("completed", "failed", "cancelled"), ended
        at = "beta" if ended["state"] == "completed" else "alpha"
        await runs_only_at(libvirt_hosts, name, at)
        if persistent:
            assert (await has(libvirt_hosts[at], name))["Autostart"] == "enable"
        if when == "asked":
            assert alpha.guest_pid(name) == pid
            assert "was asked to shut down and has not within" in ended["error"]


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_guest_that_somebody_saves_meanwhile_stays_saved_where_it_was(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    (tmp_path / "image").write_bytes(_DEAF)
    uuid = await alpha.start_guest(name, tmp_path / "image", autostart=True)
    before = await definition(alpha, name)
    async with cold_fleet(libvirt_hosts) as site:
        begun = await site.post("migrations", guest=uuid, to="beta", policy="cold")
        await site.until_state("precopy")
        await alpha.virsh("managedsave", name)  # as the service libvirt-guests does where its host shuts down
        await site.migration_ended(begun["id"], "guest-ended", within=60)
        assert not await has(beta, name)
        assert await definition(alpha, name) == before
        assert {"Autostart": "enable", "Managed save": "yes"}.items() <= (await has(alpha, name)).items()
        await alpha.virsh("start", name)
        await runs_only_at(libvirt_hosts, name, "alpha")


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "transient"])
async def test_guest_that_is_cancelled_stays_as_it_was_though_force_was_accepted(
    libvirt_hosts: LibvirtHosts, tmp_path: Path, persistent: bool
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    (tmp_path / "image").write_bytes(_DEAF)
    uuid = await alpha.start_guest(name, tmp_path / "image", persistent=persistent)
    pid = alpha.guest_pid(name)
    async with cold_fleet(libvirt_hosts, seconds=5) as site:
        begun = await site.post(
            "migrations", guest=uuid, to="beta", policy="cold", accept=["guest-not-shut-down"]
        )
        await site.until_state("precopy")
        await site.post(f"migrations/{begun['id']}/cancel")
        await site.migration_ended(begun["id"], "cancelled", within=60)
        assert alpha.guest_pid(name) == pid
        await runs_only_at(libvirt_hosts, name, "alpha")
        assert (await has(alpha, name))["Persistent"] == ("yes" if persistent else "no")
        assert not await has(beta, name)
        assert "migrator" not in await alpha.virsh("dumpxml", name)


def _start_once_off(uri: str, name: str) -> bool:
    """Start a guest the moment that it is off; False: it was not for a minute."""
    connection = load().open(uri)
    domain, until_seconds = connection.lookupByName(name), time.monotonic() + 60
    try:
        while time.monotonic() < until_seconds:
            if not domain.isActive():
                domain.create()
                return True
    finally:
        connection.close()
    return False


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_guest_that_somebody_starts_where_it_was_at_once_stays_there(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE, autostart=True)
    async with cold_fleet(libvirt_hosts) as site:
        starting = asyncio.create_task(asyncio.to_thread(_start_once_off, alpha.uri, name), name="a person")
        begun = await site.post("migrations", guest=uuid, to="beta", policy="cold")
        ended = await site.migration_ended(begun["id"], "failed", within=60)
        assert await starting
        assert ended["error"]
        await runs_only_at(libvirt_hosts, name, "alpha")
        assert (await has(alpha, name))["Autostart"] == "enable"


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_libvirtd_of_the_target_that_is_killed_leaves_the_guest_in_one_place(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE, autostart=True)
    pid = alpha.guest_pid(name)
    async with cold_fleet(libvirt_hosts) as site:
        begun = await site.post("migrations", guest=uuid, to="beta", policy="cold")
        await until(lambda: not Path(f"/proc/{pid}").exists(), what="its shutdown", within=60)
        beta.kill_daemon()
        await beta.start_daemon()
        ended = await site.migration_over(begun["id"], within=120)
        assert ended["state"] in ("completed", "failed"), ended
        at = "beta" if ended["state"] == "completed" else "alpha"
        await runs_only_at(libvirt_hosts, name, at)
        assert (await has(libvirt_hosts[at], name))["Autostart"] == "enable"


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_guest_that_the_target_has_a_definition_of_is_not_shut_down(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    pid = alpha.guest_pid(name)
    (tmp_path / "old.xml").write_text(
        domain_xml(name, tmp_path / "image", identity=uuid, memory_bytes=32 << 20)
    )
    await beta.virsh("define", str(tmp_path / "old.xml"))
    old = await definition(beta, name)
    try:
        async with cold_fleet(libvirt_hosts) as site:
            document = await moved(site, uuid, "failed")
            assert "virsh undefine it there" in document["error"]
            assert alpha.guest_pid(name) == pid
            assert await definition(beta, name) == old
    finally:
        with contextlib.suppress(Exception):
            await beta.virsh("undefine", name)
