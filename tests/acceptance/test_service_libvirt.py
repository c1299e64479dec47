"""A service over hosts that have guests of libvirt and others: one plan, one evacuation, one return."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, cast

import pytest

from migrator.pki.authority import Authority
from migrator.testing.guest import IDLE, Habit, write_image
from migrator.testing.libvirtd import LibvirtDaemon, LibvirtHosts, domain_xml
from migrator.testing.network import LabHosts
from tests.acceptance.service_site import MIB, LiveSite, eventually, guest
from tests.certificates import make_directory
from tests.libvirt_hosts import NAMES, guest_name
from tests.libvirt_moves import definition, has

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
async def fleet(
    daemons: LibvirtHosts,
    *,
    peers: bool,
    extra: str = "",
    keys: Callable[[LibvirtDaemon], str] = lambda daemon: "",
) -> AsyncIterator[LiveSite]:
    """A site on the hosts of these daemons; the service is not started.

    :param peers: each libvirtd reaches the others.
    :param extra: sections of the configuration.
    :param keys: further keys of a host.
    """
    host_extra = {
        name: f'libvirt = "qemu:///system?socket={daemons[name].socket}"\n'
        + (f'libvirt_peer_uri = "{daemons[name].peer_uri}"\n' if peers else "")
        + keys(daemons[name])
        for name in NAMES
    }
    site = LiveSite(*NAMES, isolated=False, extra=extra, host_extra=host_extra)
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
    (tmp_path / "rests.xml").write_text(domain_xml(guest_name(), tmp_path / names[0]))
    await alpha.virsh("define", str(tmp_path / "rests.xml"))  # never started
    async with fleet(libvirt_hosts, peers=True) as site:
        await site.boot(bare, "alpha")
        await served(site, 3)
        shown = (await site.get("guests"))["items"]
        assert sorted(each["name"] for each in shown) == sorted([*names, "bare"])
        assert (await site.get("hosts/alpha"))["guests_shut_off"] == 1
        away = await site.post("hosts/alpha/evacuate")
        ended = await site.ended(away["id"], "completed", within=200)
        assert ended["guests_shut_off"] == 1
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
        ended = await site.migration_over(move["id"], within=150)
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


#: Directories of images, by their hosts.
_ONE = dict.fromkeys(NAMES, "/var/lib/libvirt")
_OTHER = _ONE | {"beta": "/var/lib/libvirt/other"}


async def started_with_its_disk(
    daemons: LibvirtHosts, name: str, habit: Habit, directories: Mapping[str, str] = MappingProxyType(_ONE)
) -> tuple[str, dict[str, Path]]:
    """Start a guest on alpha whose image beta has not; its uuid, and where each host has the image if it has it."""
    path = Path(directories["alpha"], f"{name}.img")
    images = {host: daemons[host].directory / directories[host][1:] / path.name for host in ("alpha", "beta")}
    for image in images.values():
        image.parent.mkdir(exist_ok=True)
    write_image(images["alpha"], habit)
    return await daemons["alpha"].start_domain(name, domain_xml(name, path, shared=False)), images


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("directories", [_ONE, _OTHER], ids=["at its path", "at another path"])
async def test_disk_that_its_host_alone_has_goes_and_comes_home_with_its_guest(
    libvirt_hosts: LibvirtHosts, directories: dict[str, str]
) -> None:
    name, alpha = guest_name(), libvirt_hosts["alpha"]
    uuid, images = await started_with_its_disk(libvirt_hosts, name, IDLE, directories)
    contents, before = images["alpha"].read_bytes(), await definition(alpha, name)

    def keys(daemon: LibvirtDaemon) -> str:
        return f'image_directories = {{ guests = "{directories[daemon.host.name]}" }}\n'

    with own_files(libvirt_hosts):
        async with fleet(libvirt_hosts, peers=True, keys=keys) as site:
            await served(site, 1)
            for to, left in (("beta", "alpha"), ("alpha", "beta")):
                move = await site.post("migrations", guest=uuid, to=to, policy="default")
                await site.migration_ended(move["id"], "completed", within=120)
                assert images[to].read_bytes() == contents
                assert not images[left].exists()  # it has another name, so that nobody starts from it
            await alpha.wait_beating(name)
            assert await definition(alpha, name) == before
            assert await has(libvirt_hosts["beta"], name) == {}


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_disk_that_is_based_on_an_image_which_its_host_alone_has_stands_alone_at_the_target(
    libvirt_hosts: LibvirtHosts,
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    directory = alpha.directory / "var/lib/libvirt"
    base, overlay = write_image(directory / f"{name}-base.img"), directory / f"{name}.qcow2"
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.name, "-F", "raw", str(overlay)]
    subprocess.run(made, check=True)
    described = domain_xml(name, Path("/var/lib/libvirt", overlay.name), shared=False)
    uuid = await alpha.start_domain(name, described.replace("type='raw'", "type='qcow2'"))
    keep = '[policies.keep]\nextends = "default"\nbacking = "keep"\n'
    with own_files(libvirt_hosts):
        async with fleet(libvirt_hosts, peers=True, extra=keep) as site:
            await served(site, 1)
            move = await site.post("migrations", guest=uuid, to="beta", policy="keep")
            refused = await site.migration_ended(move["id"], "failed", within=60)
            assert "disk-not-copied" in refused["error"]
            assert "set backing to flatten" in str(refused["findings"])
            move = await site.post("migrations", guest=uuid, to="beta", policy="default")
            await site.migration_ended(move["id"], "completed", within=120)
    await beta.wait_beating(name)
    assert await has(alpha, name) == {}
    there = beta.directory / "var/lib/libvirt" / overlay.name
    same = ["qemu-img", "compare", "-U", "-q", "-f", "raw", "-F", "qcow2", str(base), str(there)]
    subprocess.run(same, check=True)
    assert base.name.encode() not in there.read_bytes()[: 1 << 16]


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

            async def prepared() -> bool:
                return await beta.state(name) == "paused"

            await eventually(prepared, "the guest that is made there", site, within=60)
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


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_guest_leaves_encrypted_where_that_is_required_and_not_before_both_hosts_have_certificates(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    (uuid,) = await started(libvirt_hosts, [name], tmp_path, IDLE)
    before = await definition(alpha, name)
    authority = Authority.make(tmp_path / "authority", site="test")
    async with fleet(
        libvirt_hosts,
        peers=True,
        extra='[site]\ntls = "require"\n',
        keys=lambda daemon: f'tls_dir = "{daemon.certificates}"\n',
    ) as site:
        await served(site, 1)
        move = await site.post("migrations", guest=uuid, to="beta", policy="default")
        refused = await site.migration_ended(move["id"], "failed", within=60)
        assert [each["code"] for each in refused["findings"] if each["severity"] == "error"] == [
            "tls-required"
        ]
        assert await has(beta, name) == {}
        assert await definition(alpha, name) == before
        try:
            for daemon in (alpha, beta):  # for its name, and not for its address
                make_directory(
                    daemon.certificates, authority, host=daemon.host.name, names=[daemon.host.name]
                )
            move = await site.post("migrations", guest=uuid, to="beta", policy="default")
            ended = await site.migration_ended(move["id"], "completed", within=120)
        finally:
            for file in (*alpha.certificates.iterdir(), *beta.certificates.iterdir()):
                file.unlink()
        assert ended["tls"] is True
        await beta.wait_beating(name)
        assert await has(alpha, name) == {}
