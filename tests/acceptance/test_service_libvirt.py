"""A service over hosts that have guests of libvirt and others: one plan, one evacuation, one return."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import pytest

from migrator.testing.guest import IDLE, Habit, write_image
from migrator.testing.libvirtd import LibvirtHosts, domain_xml
from migrator.testing.network import LabHosts
from tests.acceptance.service_site import MIB, LiveSite, guest
from tests.libvirt_hosts import NAMES, guest_name, libvirt_daemons, libvirt_hosts
from tests.libvirt_moves import definition, has

__all__ = ["libvirt_daemons", "libvirt_hosts"]

#: The image is one file for all hosts, on a file system that libvirt does not know to be shared.
_ACCEPT = ["libvirt-unsafe-cache"]


class _Borrowed:
    """Hosts that somebody else made, and ends."""

    isolated = True

    def __init__(self, daemons: LibvirtHosts) -> None:
        self._daemons = daemons

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave them."""

    def __getitem__(self, name: str) -> Any:
        return self._daemons[name].host


@asynccontextmanager
async def fleet(daemons: LibvirtHosts, *, peers: bool) -> AsyncIterator[LiveSite]:
    """A site on the hosts of these daemons; the service is not started.

    :param peers: each libvirtd reaches the others.
    """
    extra = {
        name: f'libvirt = "qemu:///system?socket={daemons[name].socket}"\n'
        + (f'libvirt_peer_uri = "{daemons[name].peer_uri}"\n' if peers else "")
        for name in NAMES
    }
    site = LiveSite(*NAMES, isolated=False, host_extra=extra)
    site.hosts = cast(LabHosts, _Borrowed(daemons))
    with site:
        try:
            yield site
        finally:
            await site.disconnect()


async def served(site: LiveSite, guests: int) -> None:
    site.change_config(('accept = ["tcg-loses-writes"]', f"accept = {['tcg-loses-writes', *_ACCEPT]!r}"))
    site.serve()
    await site.until_served(within=90)
    await site.known(guests)


async def started(daemons: LibvirtHosts, names: Sequence[str], directory: Path, habit: Habit) -> list[str]:
    """Start guests on alpha; their uuids."""
    return [
        await daemons["alpha"].start_guest(name, directory / name, habit=habit, autostart=number == 0)
        for number, name in enumerate(names)
    ]


@pytest.mark.timeout(400)
async def test_mixed_fleet_is_evacuated_and_comes_home_with_one_command_each(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    names, bare = [guest_name(), guest_name()], guest("bare")
    alpha = libvirt_hosts["alpha"]
    await started(libvirt_hosts, names, tmp_path, Habit(region_bytes=8 * MIB, bytes_per_second=float(MIB)))
    before = {name: await definition(alpha, name) for name in names}
    async with fleet(libvirt_hosts, peers=True) as site:
        await site.boot(bare, "alpha")
        await served(site, 3)
        shown = (await site.get("guests"))["items"]
        assert sorted(each["name"] for each in shown) == sorted([*names, "bare"])
        away = await site.post("hosts/alpha/evacuate")
        await site.ended(away["id"], "completed", within=200)
        for name in names:
            assert await has(alpha, name) == {}
        assert site.where(await site.runs_once(bare)) != "alpha"
        home = await site.post("hosts/alpha/restore")
        await site.ended(home["id"], "completed", within=200)
        for number, name in enumerate(names):
            assert await definition(alpha, name) == before[name]
            now = await has(alpha, name)
            assert now["State"] == "running"
            assert now["Autostart"] == ("enable" if number == 0 else "disable")
            await alpha.wait_beating(name)
            for other in NAMES[1:]:
                assert await has(libvirt_hosts[other], name) == {}
        assert site.where(await site.runs_once(bare)) == "alpha"


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("peers", [True, False], ids=["peer-to-peer", "managed-by-us"])
async def test_guest_whose_service_is_killed_ends_in_one_place(
    libvirt_hosts: LibvirtHosts, tmp_path: Path, peers: bool
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    habit = Habit(region_bytes=24 * MIB, bytes_per_second=float(2 * MIB))
    (uuid,) = await started(libvirt_hosts, [name], tmp_path, habit)
    before = await definition(alpha, name)
    alpha.host.set_speed(8 * MIB)
    async with fleet(libvirt_hosts, peers=peers) as site:
        await served(site, 1)
        move = await site.post("migrations", guest=uuid, to="beta", policy="gentle")
        await site.until_state("precopy")
        await site.restart()
        ended: dict[str, Any] = {}
        async with asyncio.timeout(150):
            while not ended.get("ended_at"):
                ended = await site.get(f"migrations/{move['id']}")
                await asyncio.sleep(0.2)
        at = beta if ended["state"] == "completed" else alpha
        other = alpha if at is beta else beta
        assert ended["state"] in ("completed", "failed", "cancelled"), ended
        await at.wait_beating(name)
        assert await definition(at, name) == before
        with contextlib.suppress(KeyError):
            assert (await has(other, name))["State"] != "running"


@contextlib.contextmanager
def own_files(daemons: LibvirtHosts) -> Iterator[None]:
    """Have what is run at each host see the /var of its daemon, and all else as it is."""
    with contextlib.ExitStack() as stack:
        for daemon in daemons.daemons.values():
            holder = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"),
                    *("sh", "-c", 'mount --bind "$0" /var && echo ready && exec sleep infinity'),
                    str(daemon.directory / "var"),
                ],
                stdout=subprocess.PIPE,
            )
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            daemon.host.mounts = holder.pid
        try:
            yield
        finally:
            for daemon in daemons.daemons.values():
                daemon.host.mounts = None


async def started_with_its_disk(
    daemons: LibvirtHosts, name: str, habit: Habit
) -> tuple[str, dict[str, Path]]:
    """Start a guest on alpha whose image beta has not; its uuid, and where each host has the image if it has it."""
    path = Path("/var/lib/libvirt", f"{name}.img")
    images = {host: daemons[host].directory / str(path)[1:] for host in ("alpha", "beta")}
    write_image(images["alpha"], habit)
    return await daemons["alpha"].start_domain(name, domain_xml(name, path, shared=False)), images


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_disk_that_its_host_alone_has_goes_and_comes_home_with_its_guest(
    libvirt_hosts: LibvirtHosts,
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    uuid, images = await started_with_its_disk(libvirt_hosts, name, IDLE)
    contents = images["alpha"].read_bytes()
    with own_files(libvirt_hosts):
        async with fleet(libvirt_hosts, peers=True) as site:
            await served(site, 1)
            for to, left in (("beta", "alpha"), ("alpha", "beta")):
                move = await site.post("migrations", guest=uuid, to=to, policy="default")
                await site.migration_ended(move["id"], "completed", within=120)
                assert images[to].read_bytes() == contents
                assert not images[left].exists()  # it has another name, so that nobody starts from it
            await alpha.wait_beating(name)
            assert await has(libvirt_hosts["beta"], name) == {}


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("killed", ["guest", "service"])
async def test_image_that_was_made_for_a_guest_goes_where_its_move_fails(
    libvirt_hosts: LibvirtHosts, killed: str
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    habit = Habit(region_bytes=24 * MIB, bytes_per_second=float(2 * MIB))
    uuid, images = await started_with_its_disk(libvirt_hosts, name, habit)
    before = await definition(alpha, name)
    alpha.host.set_speed(2 * MIB)
    with own_files(libvirt_hosts):
        async with fleet(libvirt_hosts, peers=False) as site:
            await served(site, 1)
            move = await site.post("migrations", guest=uuid, to="beta", policy="gentle")
            await site.until_state("precopy")
            async with asyncio.timeout(60):
                while await beta.state(name) != "paused":
                    await asyncio.sleep(0.1)
            assert images["beta"].exists()
            if killed == "guest":
                beta.kill_guest(name)
            else:
                await site.restart()
            await site.migration_ended(move["id"], "failed", within=120)
            assert not images["beta"].exists()
    assert await has(beta, name) == {}
    assert await definition(alpha, name) == before
    await alpha.wait_beating(name)
