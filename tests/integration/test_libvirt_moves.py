"""Guests of libvirt move between real libvirtd, driven by us: as they were, and never twice."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from migrator.core.model import Mode, State
from migrator.core.policy import Compression, Policy, builtin
from migrator.testing.guest import IDLE, write_image
from migrator.testing.libvirtd import LibvirtHosts, domain_xml
from tests.libvirt_hosts import guest_name
from tests.libvirt_moves import MIB, PLAIN, SLOW, SLOW_POSTCOPY, WRITES, Busy, controller, definition, has


@pytest.mark.parametrize(
    "peer_to_peer",
    [True, pytest.param(False, marks=pytest.mark.matrix)],
    ids=["peer-to-peer", "managed-by-us"],
)
async def test_guest_arrives_with_its_definition_and_autostart_and_is_gone_where_it_was(
    libvirt_hosts: LibvirtHosts, tmp_path: Path, peer_to_peer: bool
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=IDLE, autostart=True)
    before, was = await definition(alpha, name), await has(alpha, name)
    async with controller(alpha, beta, uuid, state=tmp_path, peer_to_peer=peer_to_peer) as ours:
        outcome = await ours.move()
    assert outcome.state is State.COMPLETED, outcome.error
    assert await has(alpha, name) == {}
    assert await definition(beta, name) == before
    now = await has(beta, name)
    assert (now["State"], now["Persistent"], now["Autostart"]) == ("running", "yes", was["Autostart"])
    await beta.wait_beating(name)
    assert outcome.downtime_seconds is not None
    assert 0 < outcome.downtime_seconds < PLAIN.max_downtime_seconds + 2
    assert outcome.transferred_bytes > 0


#: Each host has its own directory there.
OWN = "var/lib/libvirt"


async def test_disk_that_the_target_has_empty_is_copied_with_the_guest(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    here, there = (daemon.directory / OWN / f"{name}.img" for daemon in (alpha, beta))
    write_image(here, IDLE)
    with there.open("wb") as image:
        image.truncate(here.stat().st_size)
    definition_ = domain_xml(name, Path("/", OWN, f"{name}.img"), shared=False)
    uuid = await alpha.start_domain(name, definition_)
    async with controller(alpha, beta, uuid, state=tmp_path, new_images=["vda"]) as ours:
        outcome = await ours.move()
    assert outcome.state is State.COMPLETED, outcome.error
    await beta.wait_beating(name)
    assert await has(alpha, name) == {}
    assert there.read_bytes() == here.read_bytes()
    assert outcome.disk_bytes > 0


@pytest.mark.matrix
async def test_disk_that_is_based_on_another_image_is_copied_with_all_that_it_is_based_on(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    base, here, there = (
        daemon.directory / OWN / f"{name}{kind}"
        for daemon, kind in ((alpha, "-base.img"), (alpha, ".qcow2"), (beta, ".qcow2"))
    )
    write_image(base, IDLE)
    size = str(base.stat().st_size)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "raw", str(here))
    qemu_img("create", "-q", "-f", "qcow2", str(there), size)
    definition_ = domain_xml(name, Path("/", OWN, here.name), shared=False).replace(
        "type='raw'", "type='qcow2'"
    )
    uuid = await alpha.start_domain(name, definition_)
    assert base.name in await alpha.virsh("dumpxml", name)
    before = await definition(alpha, name)
    async with controller(alpha, beta, uuid, state=tmp_path, new_images=["vda"]) as ours:
        outcome = await ours.move()
    assert outcome.state is State.COMPLETED, outcome.error
    await beta.wait_beating(name)
    assert await has(alpha, name) == {}
    assert await definition(beta, name) == before
    assert base.name not in await beta.virsh("dumpxml", name)
    qemu_img("compare", "-U", "-q", "-f", "raw", "-F", "qcow2", str(base), str(there))
    await beta.virsh("destroy", name)
    await beta.virsh("start", name)  # from that image alone, as it was: it writes nothing
    await beta.wait_beating(name)


def qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True)


async def test_disk_that_has_another_path_at_the_target_is_copied_to_there_and_stays_there(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    paths = Path("/", OWN, f"{name}'s.img"), Path("/", OWN, f"other & {name}.img")
    here, there = alpha.directory / str(paths[0])[1:], beta.directory / str(paths[1])[1:]
    write_image(here, IDLE)
    with there.open("wb") as image:
        image.truncate(here.stat().st_size)
    uuid = await alpha.start_domain(name, domain_xml(name, paths[0], shared=False), autostart=True)
    before = await definition(alpha, name)
    moved = {str(paths[0]): str(paths[1])}
    async with controller(alpha, beta, uuid, state=tmp_path, new_images=["vda"], moved_images=moved) as ours:
        outcome = await ours.move()
    assert outcome.state is State.COMPLETED, outcome.error
    await beta.wait_beating(name)
    assert there.read_bytes() == here.read_bytes()
    # What it is started from next time too, and nothing else, is different.
    assert await definition(beta, name) == before.replace(escaped(paths[0]), escaped(paths[1]))
    assert escaped(paths[1]) in await beta.virsh("dumpxml", name)


def escaped(path: Path) -> str:
    """Return a path as libvirt writes it in an attribute."""
    return escape(str(path), {"'": "&apos;"})


async def test_guest_that_stands_still_while_it_is_copied_goes_on_at_its_target(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=WRITES)
    policy = builtin("offline").but(max_bandwidth_bytes_per_second=16 << 20)
    async with controller(alpha, beta, uuid, state=tmp_path, policy=policy) as ours:
        outcome = await ours.move()
    assert (outcome.state, outcome.mode) == (State.COMPLETED, Mode.OFFLINE), outcome.error
    assert outcome.downtime_seconds is not None
    assert outcome.downtime_seconds > 1.0  # for all of it: 24 MiB that it writes to
    assert {each.state for each in ours.seen} >= {State.PREPARING, State.PRECOPY}
    await beta.wait_beating(name)
    assert await has(alpha, name) == {}


@pytest.fixture
async def busy(libvirt_hosts: LibvirtHosts, tmp_path: Path) -> Busy:
    """A guest on alpha that takes its time to beta."""
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=WRITES)
    return Busy(name=name, uuid=uuid, alpha=alpha, beta=beta, state=tmp_path)


async def test_cancelled_guest_stays_and_its_limits_are_as_they_were(busy: Busy) -> None:
    before = await definition(busy.alpha, busy.name)
    limit = await busy.alpha.virsh("migrate-getmaxdowntime", busy.name)
    async with busy.controller() as ours, busy.moving(ours) as move:
        await ours.until_copies()
        assert ours.driver.cancel()
        outcome = await move
    assert outcome.state is State.CANCELLED, outcome.error
    await busy.runs_only_at(busy.alpha)
    assert await definition(busy.alpha, busy.name) == before
    assert await busy.alpha.virsh("migrate-getmaxdowntime", busy.name) == limit


@pytest.mark.matrix
async def test_guest_that_stands_still_while_it_is_copied_goes_on_where_it_was_when_that_is_cancelled(
    busy: Busy,
) -> None:
    before = await definition(busy.alpha, busy.name)
    policy = builtin("offline").but(max_bandwidth_bytes_per_second=MIB)
    async with busy.controller(policy=policy) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        assert await busy.alpha.state(busy.name) == "paused"
        assert ours.driver.cancel()
        outcome = await move
    assert outcome.state is State.CANCELLED, outcome.error
    await busy.runs_only_at(busy.alpha)
    assert await definition(busy.alpha, busy.name) == before


@pytest.mark.matrix
async def test_standing_copy_that_its_controller_left_is_taken_up_by_the_next(busy: Busy) -> None:
    policy = builtin("offline").but(max_bandwidth_bytes_per_second=4 * MIB)
    async with busy.controller(policy=policy) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        move.cancel()
    async with busy.controller(policy=policy) as next_one:
        outcome = await next_one.take_up(busy.records)
    assert (outcome.state, outcome.mode) == (State.COMPLETED, Mode.OFFLINE), outcome.error
    await busy.runs_only_at(busy.beta)


@pytest.mark.matrix
@pytest.mark.timeout(240)
async def test_guest_whose_network_breaks_while_it_stands_still_goes_on_where_it_was(busy: Busy) -> None:
    policy = builtin("offline").but(max_bandwidth_bytes_per_second=MIB)
    async with busy.controller(policy=policy) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        busy.alpha.host.black_hole()
        outcome = await move
    assert outcome.state is State.FAILED, (outcome.state, outcome.error)
    busy.alpha.host.heal()
    assert await busy.alpha.state(busy.name) == "running"
    await busy.alpha.wait_beating(busy.name)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "policy",
    [SLOW.but(compress=Compression.XBZRLE), SLOW.but(streams=2)],
    ids=["xbzrle", "two-channels"],
)
async def test_stream_is_laid_out_as_the_policy_says(busy: Busy, policy: Policy) -> None:
    async with busy.controller(policy=policy) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        said = await busy.alpha.virsh("qemu-monitor-command", busy.name, "--hmp", "info migrate_capabilities")
        wanted = "xbzrle" if policy.compress is Compression.XBZRLE else "multifd"
        assert f"{wanted}: on" in said
        ours.driver.cancel()  # several channels may have sent all of it by now
        outcome = await move
    assert outcome.state in (State.CANCELLED, State.COMPLETED), outcome.error


@pytest.mark.matrix
async def test_guest_whose_qemu_at_the_target_is_killed_stays(busy: Busy) -> None:
    before = await definition(busy.alpha, busy.name)
    async with busy.controller() as ours, busy.moving(ours) as move:
        await ours.until_copies()
        os.kill(busy.beta.guest_pid(busy.name), signal.SIGKILL)
        outcome = await move
    assert outcome.state is State.FAILED, outcome.error
    await busy.runs_only_at(busy.alpha)
    assert await definition(busy.alpha, busy.name) == before


@pytest.mark.matrix
async def test_guest_whose_qemu_at_the_source_is_killed_is_held(busy: Busy) -> None:
    before = await definition(busy.alpha, busy.name)
    async with busy.controller() as ours, busy.moving(ours) as move:
        await ours.until_copies()
        os.kill(busy.alpha.guest_pid(busy.name), signal.SIGKILL)
        outcome = await move
    assert (outcome.state, outcome.held_code) == (State.HELD, "source-died"), outcome.error
    assert await definition(busy.alpha, busy.name) == before
    assert await busy.beta.state(busy.name) == ""


@pytest.mark.matrix
async def test_move_that_its_controller_left_is_taken_up_by_the_next(busy: Busy) -> None:
    before = await definition(busy.alpha, busy.name)
    async with busy.controller() as ours, busy.moving(ours) as move:
        await ours.until_copies()
        move.cancel()
    async with busy.controller(policy=PLAIN) as next_one:
        outcome = await next_one.take_up(busy.records)
    assert outcome.state is State.COMPLETED, outcome.error
    await busy.runs_only_at(busy.beta)
    assert await definition(busy.beta, busy.name) == before


@pytest.mark.matrix
async def test_guest_is_moved_by_postcopy_when_somebody_wants_that(busy: Busy) -> None:
    async with busy.controller(policy=SLOW_POSTCOPY) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        ours.driver.requests.postcopy_reason = "somebody asked for it"
        assert ours.driver.postcopy()
        outcome = await move
    assert (outcome.state, outcome.mode) == (State.COMPLETED, Mode.POSTCOPY), outcome.error
    await busy.runs_only_at(busy.beta)
