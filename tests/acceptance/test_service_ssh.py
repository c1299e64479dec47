"""Hosts over SSH that are cut off while guests move between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine
from tests.acceptance.service_site import MIB, SLOW, LiveSite, Witness, eventually, guest, made
from tests.acceptance.ssh_site import CONTROL, reached_over_ssh, tunnels
from tests.conftest import missing
from tests.sshd import Sshd

#: Bytes per second of a link on which a guest's first round takes a quarter of a minute.
_CRAWL = 4 * MIB


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def over_ssh(
    machines: list[GuestMachine],
    directory: Path,
    *names: str,
    extra: str = "",
    each_other: bool = False,
) -> AsyncIterator[tuple[LiveSite, dict[str, Sshd]]]:
    """Hosts with an sshd each, and a service on a host of its own, which is not one of its hosts.

    :param extra: further sections of the configuration.
    :param each_other: the hosts can log in to each other.
    """
    async with made(machines, *names, CONTROL, speed=SLOW, extra=extra) as site:
        with reached_over_ssh(site, directory, *names, each_other=each_other) as servers:
            site.serve()
            await site.until_served()
            await site.known(len(machines))
            yield site, servers
            site.kill()


@pytest.mark.matrix
async def test_connections_that_are_killed_again_and_again_cost_no_guest(tmp_path: Path) -> None:
    machines = [guest("calm"), guest("busy", region=48 * MIB, speed=30 * MIB)]
    async with over_ssh(machines, tmp_path, "a", "b") as (site, servers), Witness(site, machines):
        begun = await site.post("hosts/a/evacuate")
        broken = 0
        for what in ("preparing", "precopy", "precopy", "finishing"):
            with contextlib.suppress(AssertionError):  # some phases are too short to be seen
                await site.until_state(what, within=3)
            await eventually(lambda: connected(servers), "a connection", site)
            for server in servers.values():
                broken += server.break_connections()
        assert broken >= 4
        await site.ended(begun["id"], "completed", within=120)
        await site.everyone_at(machines, "b")


async def connected(servers: Mapping[str, Sshd]) -> bool:
    """There is something to break."""
    return any(server.sessions() for server in servers.values())


@pytest.mark.matrix
async def test_target_that_cannot_be_reached_for_a_while_costs_no_guest(tmp_path: Path) -> None:
    machine = guest("db", region=64 * MIB)
    async with over_ssh([machine], tmp_path, "a", "b") as (site, _), Witness(site, [machine]):
        begun, _ = await copying(site)
        site.host("b").black_hole()
        await down(site, "b")
        assert [site.where(qemu) for qemu in await site.running(machine)] == ["a"]
        assert (await site.get("guests"))["items"][0]["host"] == "a"
        site.host("b").heal()
        as_fast_as_before(site)
        await site.ended(begun["id"], "completed", within=120)
        await site.everyone_at([machine], "b")


async def copying(site: LiveSite) -> tuple[Any, Any]:
    """Host a is being evacuated, over a link so slow that there is time to break it; see :func:`as_fast_as_before`."""
    for host in site.hosts:
        if host.name not in ("a", "control"):
            host.set_speed(_CRAWL)
    begun = await site.post("hosts/a/evacuate")
    return begun, await site.until_state("precopy")


def as_fast_as_before(site: LiveSite) -> None:
    """After :func:`copying`."""
    for host in site.hosts:
        host.set_speed(SLOW)


async def down(site: LiveSite, host: str) -> None:
    """The service has found out that a host does not answer."""

    async def seen() -> bool:
        return (await site.get(f"hosts/{host}"))["up"] is False

    await eventually(seen, f"host {host} being down", site, within=30)


async def runs_on(site: LiveSite, machine: GuestMachine) -> None:
    """Its clock goes on, in one process."""
    (qemu,) = await site.running(machine)
    before = (await qemu.counters()).ticks

    async def goes_on() -> bool:
        return (await qemu.counters()).ticks > before

    await eventually(goes_on, "another tick of the guest", site)


async def runs_at(site: LiveSite, machine: GuestMachine, host: str) -> bool:
    """There and nowhere else."""
    return [site.where(qemu) for qemu in await site.running(machine)] == [host]


@pytest.mark.matrix
@pytest.mark.parametrize("stays", [False, True])
async def test_target_that_goes_away_for_good_is_replaced_and_cleared_when_it_is_back(
    tmp_path: Path, stays: bool
) -> None:
    """Where the source is lost to the one that waits, also once the host is back, its QEMU waits on."""
    machine = guest("db", region=64 * MIB)
    async with over_ssh([machine], tmp_path, "a", "b", "c") as (site, _), Witness(site, [machine]):
        begun, moving = await copying(site)
        gone = moving["destination"]
        (other,) = {"b", "c"} - {gone}
        if stays:
            site.host("a").lose(site.host(gone))
        site.host(gone).black_hole()
        as_fast_as_before(site)
        await runs_on(site, machine)
        failed = await site.migration_ended(moving["id"], "failed", within=75)
        assert "the destination's host does not answer" in failed["error"]
        assert "left-over" in [finding["code"] for finding in failed["findings"]]
        assert [site.where(qemu) for qemu in await site.running(machine)] == ["a"]
        await site.ended(begun["id"], "completed", within=60)
        (there,) = await site.running(machine)
        assert site.where(there) == other
        assert site.left_in(gone)
        assert {await qemu.run_state() for qemu in site.instances(machine)} == {"running", "inmigrate"}

        await site.restart()  # what was left is not forgotten
        site.host(gone).heal()
        await eventually(lambda: asyncio.sleep(0, not site.left_in(gone)), "an empty host", site, within=60)
        await site.everyone_at([machine], other)


@pytest.mark.matrix
@pytest.mark.timeout(350)
async def test_target_that_is_gone_when_the_controller_comes_back_costs_no_guest(tmp_path: Path) -> None:
    machine = guest("db", region=64 * MIB)
    async with over_ssh([machine], tmp_path, "a", "b", "c") as (site, _), Witness(site, [machine]):
        begun, moving = await copying(site)
        gone = moving["destination"]
        site.host(gone).black_hole()
        as_fast_as_before(site)
        await site.restart()
        await site.migration_ended(moving["id"], "failed", within=120)
        await site.ended(begun["id"], "completed", within=60)
        assert [site.where(qemu) for qemu in await site.running(machine)] != [gone]
        site.host(gone).heal()
        await eventually(lambda: asyncio.sleep(0, not site.left_in(gone)), "an empty host", site, within=60)
        await site.everyone_at([machine], *({"b", "c"} - {gone}))


@pytest.mark.matrix
@pytest.mark.parametrize("fast", [False, True])
async def test_source_that_is_lost_to_the_controller_alone_costs_no_guest(tmp_path: Path, fast: bool) -> None:
    """One that writes fast runs on; one that does not comes to the switch meanwhile, and waits there."""
    machine = guest("db", region=64 * MIB, speed=(60 if fast else 4) * MIB)
    async with over_ssh([machine], tmp_path, "a", "b") as (site, _), Witness(site, [machine]):
        begun, moving = await copying(site)
        site.host("a").lose(site.host("control"))
        as_fast_as_before(site)

        async def held() -> object:
            return [each for each in await site.migrations("held") if each["id"] == moving["id"]]

        await eventually(held, "a migration that is held", site, within=75)
        assert [site.where(qemu) for qemu in site.instances(machine)] == ["a"]
        if fast:
            await runs_on(site, machine)
        site.host("a").heal()
        await site.migration_ended(moving["id"], "failed", within=60)
        await site.ended(begun["id"], "completed", within=90)
        await site.everyone_at([machine], "b")


@pytest.mark.matrix
@pytest.mark.timeout(350)
async def test_source_that_is_lost_for_long_ends_its_evacuation(tmp_path: Path) -> None:
    machine = guest("db", region=64 * MIB)
    async with over_ssh([machine], tmp_path, "a", "b") as (site, _), Witness(site, [machine]):
        begun, _ = await copying(site)
        site.host("a").lose(site.host("control"))
        as_fast_as_before(site)
        ended = await site.ended(begun["id"], "incomplete", within=120)
        assert "1 guest still on a: db: " in ended["error"]
        site.host("a").heal()
        await eventually(lambda: runs_at(site, machine, "a"), "the guest at its source", site, within=60)
        begun = await site.post("hosts/a/evacuate")
        await site.ended(begun["id"], "completed", within=90)
        await site.everyone_at([machine], "b")


@pytest.mark.matrix
@pytest.mark.timeout(350)
async def test_source_and_target_that_go_away_together_cost_no_guest(tmp_path: Path) -> None:
    machine = guest("db", region=64 * MIB)
    async with over_ssh([machine], tmp_path, "a", "b", "c") as (site, _), Witness(site, [machine]):
        begun, moving = await copying(site)
        both = [site.host(name) for name in ("a", moving["destination"])]
        for host in both:
            host.black_hole()
        as_fast_as_before(site)
        await site.ended(begun["id"], "incomplete", within=150)
        held = await site.get(f"migrations/{moving['id']}")
        assert held["state"] == "held"
        assert len(await site.running(machine)) <= 1
        for host in both:
            host.heal()
        await site.migration_ended(moving["id"], "failed", within=90)
        await runs_on(site, machine)
        await site.everyone_at([machine], "a")
        begun = await site.post("hosts/a/evacuate")
        await site.ended(begun["id"], "completed", within=90)
        await site.everyone_at([machine], "b", "c")


@pytest.mark.parametrize(
    "each_other",
    [
        pytest.param(False, id="through the controller"),
        pytest.param(True, id="from host to host", marks=pytest.mark.matrix),
    ],
)
async def test_guest_goes_through_an_ssh_tunnel(tmp_path: Path, each_other: bool) -> None:
    machine = guest("db", region=8 * MIB)
    policy = '[policies.tunnel]\nextends = "default"\nstream = "ssh"\n'
    async with (
        over_ssh([machine], tmp_path, "a", "b", extra=policy, each_other=each_other) as (site, servers),
        Witness(site, [machine]),
    ):
        before = {name: len(server.sessions()) for name, server in servers.items()}
        begun = await site.post("migrations", guest="db", to="b", policy="tunnel")
        await site.migration_ended(begun["id"], "completed", within=60)
        document = await site.get(f"migrations/{begun['id']}")
        warned = "stream-through-controller" in [each["code"] for each in document["findings"]]
        (way,) = [each["reason"] for each in document["decisions"] if each["action"] == "tunnel"]
        assert (warned, "the controller" in way) == (not each_other, not each_other), way
        await site.everyone_at([machine], "b")

        async def closed() -> bool:
            return all(len(server.sessions()) <= before[name] for name, server in servers.items())

        await eventually(closed, "no tunnel being left", site)


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["main", "channels", "postcopy"])
async def test_a_tunnel_that_is_killed_in_the_middle_of_a_stream_costs_no_guest(
    tmp_path: Path, how: str
) -> None:
    machine = guest("db", region=64 * MIB, speed=MIB)
    ways = {"main": 'postcopy = "never"', "channels": 'postcopy = "never"\nstreams = 3'}
    policy = f'[policies.tunnel]\nextends = "default"\nstream = "ssh"\n{ways.get(how, "")}\n'
    policy += '[policies.early]\nextends = "postcopy-first"\nstream = "ssh"\n'
    async with (
        over_ssh([machine], tmp_path, "a", "b", extra=policy, each_other=True) as (site, _),
        Witness(site, [machine]),
    ):
        for host in site.hosts:
            host.set_speed(_CRAWL)
        named = "early" if how == "postcopy" else "tunnel"
        begun = await site.post("migrations", guest="db", to="b", policy=named)
        await site.until_state("postcopy" if how == "postcopy" else "precopy")
        killed = tunnels(site, "b")
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        as_fast_as_before(site)
        if how == "postcopy":
            document = await site.migration_ended(begun["id"], "completed", within=90)
            assert document["recoveries"] >= 1
            await site.everyone_at([machine], "b")
            return
        document = await site.migration_ended(begun["id"], "failed", within=90)
        assert "Unable to write to socket" in document["error"], document["error"]
        await runs_on(site, machine)
        await site.everyone_at([machine], "a")
        # And with a tunnel that is let live it arrives.
        begun = await site.post("migrations", guest="db", to="b", policy=named)
        await site.migration_ended(begun["id"], "completed", within=90)
        await site.everyone_at([machine], "b")
