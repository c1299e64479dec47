"""What carries a guest's network, in real network namespaces: taps, bridges and VLANs as the kernel shows them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from migrator.core.findings import CATALOGUE
from migrator.core.process.guest_network import GuestTaps, NetworkState, arrival_state, compare
from migrator.hosts.guest_network import read_guest_taps
from migrator.hosts.local import LocalAccess
from migrator.testing.lab import GuestMachine, Lab
from migrator.testing.network import LabHost, LabHosts, NetworkError, possible

pytestmark = pytest.mark.skipif(possible() is not None, reason=f"needs hosts of their own: {possible()}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabHosts]:
    with LabHosts("alpha", "beta") as made:
        for host in made:
            host.add_bridge("br0", way_out="out0")
            host.add_bridge("br1")
        yield made


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab() as made:
        yield made


def tap(name: str, *more: str, number: int = 0) -> tuple[str, ...]:
    words = ",".join((f"tap,id=n{number},ifname={name}", *(more or ("script=no", "downscript=no"))))
    return ("-netdev", words, "-device", f"virtio-net-pci,netdev=n{number}")


async def carried(host: LabHost, pid: int) -> GuestTaps:
    return (await read_guest_taps(LocalAccess(host.name, host.prefix), [pid]))[pid]


def _down(host: LabHost) -> None:
    host.run("ip", "link", "set", "t0", "down")


def _off(host: LabHost) -> None:
    host.run("ip", "link", "set", "t0", "nomaster")


def _elsewhere(host: LabHost) -> None:
    host.run("ip", "link", "set", "t0", "master", "br1")


def _bridge_down(host: LabHost) -> None:
    host.run("ip", "link", "set", "br0", "down")


def _no_uplink(host: LabHost) -> None:
    host.run("ip", "link", "set", "out0", "nomaster")


def _uplink_down(host: LabHost) -> None:
    host.run("ip", "link", "set", "out0", "down")


def _mend(host: LabHost) -> None:
    for words in ("br0 up", "out0 up master br0", "t0 up master br0"):
        host.run("ip", "link", "set", *words.split())


BREAKS = {
    _down: ["tap-down"],
    _off: ["tap-bridge"],
    _elsewhere: ["tap-bridge", "bridge-uplink"],
    _bridge_down: ["bridge-down"],
    _no_uplink: ["bridge-uplink"],
    _uplink_down: ["bridge-uplink"],
}


async def test_every_difference_of_what_a_tap_hangs_on_is_found(lab: Lab, hosts: LabHosts) -> None:
    alpha, beta = hosts["alpha"], hosts["beta"]
    for host in hosts:
        host.add_tap("t0", bridge="br0")
    machine = GuestMachine(extra=tap("t0"))
    qemus = [await lab.start(machine, prefix=host.prefix) for host in (alpha,)]
    qemus.append(await lab.start(machine, prefix=beta.prefix, incoming=True))
    here = await carried(alpha, qemus[0].pid)
    assert here.taps == ("t0",)
    assert here.state == (NetworkState.UP, "")
    there = await carried(beta, qemus[1].pid)
    assert list(compare(here, there, "beta")) == []
    assert arrival_state(here, there) == (NetworkState.UP, "")
    for change, codes in BREAKS.items():
        change(beta)
        there = await carried(beta, qemus[1].pid)
        found = list(compare(here, there, "beta"))
        assert [each.code for each in found] == codes, (change, found)
        assert all(CATALOGUE[each.code].overridable and "beta" in each.message for each in found)
        assert arrival_state(here, there)[0] is NetworkState.DOWN
        assert list(compare(there, there, "beta")) == [], "as it was at the source it may be at the target"
        _mend(beta)
        assert list(compare(here, await carried(beta, qemus[1].pid), "beta")) == []


async def test_vlans_of_ports_and_of_ways_out(lab: Lab, hosts: LabHosts) -> None:
    alpha, beta = hosts["alpha"], hosts["beta"]
    try:
        for host in hosts:
            host.add_tap("v0", bridge="br1")
            host.run("ip", "link", "set", "br1", "type", "bridge", "vlan_filtering", "1")
    except NetworkError as error:
        pytest.skip(f"the kernel has no VLANs of bridges: {error}")
    machine = GuestMachine(extra=tap("v0"))
    first = await lab.start(machine, prefix=alpha.prefix)
    second = await lab.start(machine, prefix=beta.prefix, incoming=True)

    async def found() -> list[str]:
        here, there = await carried(alpha, first.pid), await carried(beta, second.pid)
        return [f"{each.code}: {each.message}" for each in compare(here, there, "beta")]

    assert await found() == []
    alpha.run("bridge", "vlan", "add", "dev", "v0", "vid", "20", "pvid", "untagged")
    (said,) = await found()
    assert "tap-vlan" in said
    assert "20 PVID" in said
    beta.run("bridge", "vlan", "add", "dev", "v0", "vid", "20", "pvid", "untagged")
    assert await found() == []


async def test_the_taps_of_a_process_are_read_whatever_they_are_called(lab: Lab, hosts: LabHosts) -> None:
    alpha = hosts["alpha"]
    alpha.add_tap("twice", bridge="br1")
    unnamed = ("-netdev", "tap,id=n0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0")
    machine = GuestMachine(extra=(*unnamed, *tap("twice", number=1), "-netdev", "user,id=n2"))
    qemu = await lab.start(machine, prefix=alpha.prefix)
    found = await carried(alpha, qemu.pid)
    assert found.taps is not None
    assert len(found.taps) == 2
    assert found.taps[1] == "twice"
    assert found.state == (NetworkState.DOWN, f"{found.taps[0]} is down")
    none = await lab.start(prefix=alpha.prefix)
    assert (await carried(alpha, none.pid)).state == (NetworkState.NONE, "")
    assert (await carried(alpha, 2**22 - 1)).state == (NetworkState.UNKNOWN, "")
