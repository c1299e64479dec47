"""Guests of libvirt move encrypted, with the certificates of its QEMUs: real libvirtd, and what goes between them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.core.model import Mode, State
from migrator.core.policy import PostcopyMode, TlsUse
from migrator.core.preflight.stream_tls import StreamTls
from migrator.pki.authority import Authority
from migrator.testing.guest import IDLE, write_image
from migrator.testing.lab import until
from migrator.testing.libvirtd import LibvirtDaemon, LibvirtHosts, domain_xml
from tests.certificates import make_directory, self_made, write_directory
from tests.integration.test_libvirt_faults import BOTH_WAYS
from tests.integration.test_libvirt_moves import OWN
from tests.libvirt_hosts import guest_name
from tests.libvirt_moves import MIB, PLAIN, WRITES, Busy, Controller, controller, definition
from tests.wire_capture import captured

#: Every page that the guest has filled holds this, behind one byte.
PATTERN = b"\x5a" + bytes(255)
#: The certificates are for this, and not for the addresses that streams go to.
NAME = "host-of-guests"
POLICY = PLAIN.but(tls=TlsUse.REQUIRE)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "authority", site="test")


@pytest.fixture
async def busy(libvirt_hosts: LibvirtHosts, tmp_path: Path) -> Busy:
    """A guest on alpha that takes its time to beta."""
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=WRITES)
    return Busy(name=name, uuid=uuid, alpha=alpha, beta=beta, state=tmp_path)


@pytest.fixture(autouse=True)
def no_certificates(libvirt_hosts: LibvirtHosts) -> Iterator[None]:
    """Leave every host as it was: without."""
    yield
    for daemon in libvirt_hosts.daemons.values():
        for file in daemon.certificates.iterdir():
            file.unlink()


def certified(authority: Authority, *daemons: LibvirtDaemon) -> StreamTls:
    """Give the hosts certificates of one authority; what preflight would say of them."""
    for daemon in daemons:
        make_directory(daemon.certificates, authority, host=NAME, names=[NAME])
    return StreamTls(source_directory="", destination_directory="", hostname=NAME, subjects=())


@pytest.mark.parametrize(
    ("encrypted", "peer_to_peer"),
    [
        (True, True),
        pytest.param(True, False, marks=pytest.mark.matrix),
        pytest.param(False, True, marks=pytest.mark.matrix),
    ],
    ids=["encrypted", "encrypted-managed-by-us", "plain"],
)
async def test_memory_is_on_the_wire_where_it_is_plain_and_not_where_it_is_encrypted(
    busy: Busy, authority: Authority, tmp_path: Path, encrypted: bool, peer_to_peer: bool
) -> None:
    tls = certified(authority, busy.alpha, busy.beta) if encrypted else None
    policy = POLICY if encrypted else PLAIN
    async with (
        captured(tmp_path, interface="uplink", prefix=busy.alpha.host.prefix) as wire,
        busy.controller(policy=policy, tls=tls, peer_to_peer=peer_to_peer) as ours,
    ):
        outcome = await ours.move()
        assert (outcome.state, outcome.tls) == (State.COMPLETED, encrypted), outcome.error
        assert await wire.shows(PATTERN) is not encrypted
    await busy.runs_only_at(busy.beta)


@pytest.mark.matrix
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
async def test_disk_that_is_copied_is_on_the_wire_where_it_is_plain_and_not_where_it_is_encrypted(
    libvirt_hosts: LibvirtHosts, authority: Authority, tmp_path: Path, encrypted: bool
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    path = Path("/", OWN, f"{name}.img")
    here, there = (daemon.directory / str(path)[1:] for daemon in (alpha, beta))
    write_image(here, IDLE)
    contents = b"what is in the image of this guest"
    with here.open("r+b") as image:
        image.seek(512 << 10)
        image.write(contents)
    with there.open("wb") as image:
        image.truncate(here.stat().st_size)
    uuid = await alpha.start_domain(name, domain_xml(name, path, shared=False))
    tls = certified(authority, alpha, beta) if encrypted else None
    async with (
        captured(tmp_path, interface="uplink", prefix=alpha.host.prefix) as wire,
        controller(alpha, beta, uuid, state=tmp_path, policy=PLAIN, tls=tls, new_images=["vda"]) as ours,
    ):
        outcome = await ours.move()
        assert (outcome.state, outcome.tls) == (State.COMPLETED, encrypted), outcome.error
        assert await wire.shows(contents) is not encrypted
    assert there.read_bytes() == here.read_bytes()


async def refused(busy: Busy, ours: Controller) -> str:
    """Have it move, which must fail and leave the guest as it was; what was said."""
    before = await definition(busy.alpha, busy.name)
    outcome = await ours.move()
    assert outcome.state is State.FAILED, outcome.error
    assert outcome.transferred_bytes == 0
    await busy.runs_only_at(busy.alpha)
    assert await definition(busy.alpha, busy.name) == before
    return outcome.error or ""


@BOTH_WAYS
async def test_guest_stays_where_its_target_has_a_certificate_of_a_stranger(
    busy: Busy, authority: Authority, peer_to_peer: bool
) -> None:
    tls = certified(authority, busy.alpha)
    write_directory(busy.beta.certificates, *self_made())
    async with busy.controller(policy=POLICY, tls=tls, peer_to_peer=peer_to_peer) as ours:
        assert "certificate" in await refused(busy, ours)


@pytest.mark.matrix
async def test_guest_stays_where_its_targets_certificate_is_for_another_name(
    busy: Busy, authority: Authority
) -> None:
    certified(authority, busy.alpha, busy.beta)
    tls = StreamTls(source_directory="", destination_directory="", hostname="another", subjects=())
    async with busy.controller(policy=POLICY, tls=tls) as ours:
        assert "another" in await refused(busy, ours)


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["source", "target"])
async def test_guest_stays_where_a_libvirtd_has_no_certificates(
    busy: Busy, authority: Authority, side: str
) -> None:
    tls = certified(authority, busy.beta if side == "source" else busy.alpha)
    async with busy.controller(policy=POLICY, tls=tls) as ours:
        assert "certificate" in await refused(busy, ours)


async def test_nothing_begins_plainly_that_is_to_be_encrypted(busy: Busy) -> None:
    async with busy.controller(policy=POLICY) as ours:
        assert "the policy requires encryption" in await refused(busy, ours)


@pytest.mark.matrix
@pytest.mark.timeout(240)
@BOTH_WAYS
async def test_postcopy_that_is_taken_up_and_resumed_stays_encrypted(
    busy: Busy, authority: Authority, tmp_path: Path, peer_to_peer: bool
) -> None:
    tls = certified(authority, busy.alpha, busy.beta)
    slow = POLICY.but(max_bandwidth_bytes_per_second=MIB, postcopy=PostcopyMode.ALLOW)
    async with captured(tmp_path, interface="uplink", prefix=busy.alpha.host.prefix) as wire:
        async with (
            busy.controller(policy=slow, tls=tls, peer_to_peer=peer_to_peer) as ours,
            busy.moving(ours) as move,
        ):
            await ours.until_copies()
            busy.alpha.host.set_speed(2 * MIB)
            ours.driver.requests.postcopy_reason = "somebody asked for it"
            assert ours.driver.postcopy()
            await until(lambda: busy.beta.beats(busy.name) > 0, what="the guest at its target", within=60)
            move.cancel()
        busy.alpha.host.reset_connections(busy.beta.host)
        async with busy.controller(policy=slow, peer_to_peer=peer_to_peer) as next_one:
            taken_up = asyncio.create_task(next_one.take_up(busy.records))
            await until(lambda: next_one.state is State.RECOVERING, what="a broken stream", within=60)
            busy.alpha.host.set_speed(None)
            outcome = await taken_up
        assert (outcome.state, outcome.mode, outcome.tls) == (State.COMPLETED, Mode.POSTCOPY, True), outcome
        assert not await wire.shows(PATTERN)
    await busy.runs_only_at(busy.beta)
