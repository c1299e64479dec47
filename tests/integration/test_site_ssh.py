"""Guests on hosts over SSH: found, opened, and never taken for another; a host that is away harms nobody."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.core.inventory import Guest
from migrator.core.model import Finding, ProcessState
from migrator.core.policy import Policy
from migrator.errors import HostError, QemuError, Unreachable
from migrator.hosts.host_config import HostConfig, access
from migrator.hosts.launch import Launcher
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import RemoteMonitorTransport, find_sockets, literal
from migrator.hosts.ssh import SshAccess
from migrator.ports import IncomingDestination, Qemu
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.site.connections import HostConnections
from migrator.site.hosts import SiteHosts
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Lab, until
from migrator.testing.network import LabHosts, inside
from tests.conftest import missing
from tests.sshd import Sshd

EVIL = "a 'b' \"c\" $(touch EVIL) `touch EVIL`\n; touch EVIL"


class NobodyThere:
    """Stands where destinations are checked and started; nothing here does either."""

    async def check(self, guest: Guest, source: Qemu, target: str, policy: Policy) -> tuple[Finding, ...]:
        raise AssertionError

    async def start_destination(
        self,
        guest: Guest,
        source: Qemu,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> IncomingDestination:
        raise AssertionError

    def launcher_of(self, host: str) -> Launcher:
        raise AssertionError

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        raise AssertionError

    async def keep_images(self, host: str, *, migration: str) -> None:
        raise AssertionError

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        raise AssertionError

    async def settle(self, guest: Guest) -> Sequence[str]:
        raise AssertionError

    async def clear(self, guest: Guest) -> None:
        raise AssertionError

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> list[str]:
        raise AssertionError


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Hosts alpha and beta with an sshd each, seen from a third."""
    if reason := network.possible():
        missing(reason)
    with LabHosts("alpha", "beta", "control", isolated=True) as hosts, Lab() as lab:
        servers = {
            name: Sshd(tmp_path / name, address=hosts[name].address, prefix=hosts[name].prefix)
            for name in ("alpha", "beta")
        }
        with servers["alpha"], servers["beta"], inside(hosts["control"].namespace):
            yield SimpleNamespace(hosts=hosts, lab=lab, **servers)
        print(lab.report())  # noqa: T201 - pytest shows it with a failed test


@pytest.fixture
async def site(world: SimpleNamespace) -> AsyncIterator[SiteHosts]:
    pattern = literal(str(world.lab.directory))
    configs = [
        HostConfig(
            name=name,
            addresses=(world.hosts[name].address,),
            sockets=(f"{pattern}/*{name}.qmp", f"{pattern}/{name}/*"),
            processes=False,
            ssh=getattr(world, name).config(connect_seconds=1.5, keepalive_seconds=0.4),
        )
        for name in ("alpha", "beta")
    ]
    site = SiteHosts(
        HostConnections({config.name: (access(config), config) for config in configs}),
        checker=NobodyThere(),
        launcher=NobodyThere(),
    )
    yield site
    await site.close()
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


async def test_guests_are_found_where_they_are(world: SimpleNamespace, site: SiteHosts) -> None:
    there = await world.lab.start(GuestMachine(name=EVIL), prefix=world.hosts["alpha"].prefix, label="alpha")
    also = await world.lab.start(prefix=world.hosts["beta"].prefix, label="beta")
    for host, qemu in (("alpha", there), ("beta", also)):
        look = await site.look(host)
        (guest,) = look.guests
        assert (guest.host, guest.pid, guest.name) == (host, qemu.pid, qemu.machine.name)
        assert (guest.key, guest.memory_bytes) == (str(qemu.machine.uuid), qemu.machine.memory_bytes)
        assert "uplink" in look.facts.interfaces
    assert not list(Path.home().glob("EVIL"))


async def test_path_that_a_shell_would_stumble_over(world: SimpleNamespace, site: SiteHosts) -> None:
    (world.lab.directory / "alpha").mkdir()
    path = world.lab.directory / "alpha" / EVIL
    monitor = ("-qmp", f"unix:{path},server=on,wait=off")
    qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="x", extra=monitor)
    (guest,) = (await site.look("alpha")).guests
    assert (guest.socket, guest.pid, guest.obstacle) == (str(path), qemu.pid, "")
    end = await site.open("alpha", guest.socket, role="source")
    assert (await end.observe()).answers
    assert end.identity["pid"] == qemu.pid
    await end.close()
    assert not list(Path.home().glob("EVIL"))


async def test_process_is_that_of_qemu_and_not_of_who_forwards(
    world: SimpleNamespace, site: SiteHosts
) -> None:
    qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
    end = await site.open("alpha", str(qemu.qmp), role="destination")
    assert end.identity["pid"] == qemu.pid
    assert end.identity["pid"] != os.getpid()
    assert not end.shares_clock
    assert (await end.facts()).pid == qemu.pid
    assert await end.fence()
    assert not qemu.alive
    assert (await end.observe()).process is ProcessState.DEAD
    await end.close()


async def test_guest_that_we_hold_is_shown_as_it_was(world: SimpleNamespace, site: SiteHosts) -> None:
    qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
    before = [replace(guest, resident_bytes=None) for guest in (await site.look("alpha")).guests]
    end = await site.open("alpha", str(qemu.qmp), role="source")
    assert [replace(guest, resident_bytes=None) for guest in (await site.look("alpha")).guests] == before
    await end.close()
    assert [replace(guest, resident_bytes=None) for guest in (await site.look("alpha")).guests] == before


async def test_monitor_that_another_holds_there(world: SimpleNamespace, site: SiteHosts) -> None:
    qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
    code = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(9); print()"
    holder = await asyncio.create_subprocess_exec(
        *world.hosts["alpha"].prefix,
        *(sys.executable, "-u", "-c", f"{code}; time.sleep(3600)", str(qemu.qmp)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        await holder.stdout.readline()
        (guest,) = (await site.look("alpha")).guests
    finally:
        holder.kill()
        await holder.communicate()
    assert (guest.obstacle_code, guest.pid) == ("monitor-held", qemu.pid)
    assert f"(pid {holder.pid})" in guest.obstacle
    assert guest.key == str(qemu.machine.uuid)


@pytest.mark.parametrize("how", ["black hole", "no server", "wrong key"])
async def test_host_that_is_away_harms_no_other(world: SimpleNamespace, site: SiteHosts, how: str) -> None:
    await world.lab.start(prefix=world.hosts["beta"].prefix, label="beta")
    if how == "black hole":
        world.hosts["alpha"].black_hole()
    elif how == "no server":
        world.alpha.stop()
    else:
        world.alpha.known_hosts.write_text(
            world.beta.host_key_line.replace(world.beta.address, world.alpha.address)
        )
    began = time.monotonic()
    away, there = await asyncio.gather(site.look("alpha"), site.look("beta"), return_exceptions=True)
    assert isinstance(away, HostError)
    assert str(away).startswith("host alpha: ")
    assert not isinstance(there, BaseException)
    assert len(there.guests) == 1
    assert time.monotonic() - began < 15


async def test_host_that_comes_back(world: SimpleNamespace, site: SiteHosts) -> None:
    qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
    end = await site.open("alpha", str(qemu.qmp), role="source")
    identity = dict(end.identity)
    world.alpha.stop()
    await until(
        lambda: _state(end) is ProcessState.UNKNOWN, what="an end of which nothing is known", within=5
    )
    view = await end.observe(timeout=0.3)
    assert (view.process, view.answers, view.can_fence) == (ProcessState.UNKNOWN, False, True)
    assert not await end.fence(), "there is no proof"
    assert qemu.alive
    with pytest.raises(HostError, match="alpha"):
        await site.open("alpha", str(qemu.qmp), role="destination", identity=identity)
    world.alpha.start()

    async def answers() -> bool:
        view = await end.observe(timeout=2)
        return view.answers and view.process is ProcessState.ALIVE

    await until(answers, what="an answer", within=15)
    await end.close()


def _state(end: Qemu) -> ProcessState:
    assert isinstance(end, Endpoint)
    process = end.process
    assert process is not None
    return {None: ProcessState.UNKNOWN, True: ProcessState.ALIVE, False: ProcessState.DEAD}[process.alive]


class TestIdentity:
    async def test_that_has_died_is_opened_as_dead(self, world: SimpleNamespace, site: SiteHosts) -> None:
        qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
        end = await site.open("alpha", str(qemu.qmp), role="source")
        identity = dict(end.identity)
        await end.close()
        qemu.discard()
        end = await site.open("alpha", str(qemu.qmp), role="source", identity=identity)
        assert (await end.observe()).process is ProcessState.DEAD
        await end.close()

    async def test_of_an_earlier_boot_is_opened_as_dead(
        self, world: SimpleNamespace, site: SiteHosts
    ) -> None:
        qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
        end = await site.open("alpha", str(qemu.qmp), role="source")
        identity = dict(end.identity) | {"boot_id": "another"}
        await end.close()
        end = await site.open("alpha", str(qemu.qmp), role="source", identity=identity)
        assert (await end.observe()).process is ProcessState.DEAD
        await end.close()

    async def test_other_than_the_one_that_answers_is_refused(
        self, world: SimpleNamespace, site: SiteHosts
    ) -> None:
        meant = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
        other = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="other")
        end = await site.open("alpha", str(meant.qmp), role="source")
        identity = dict(end.identity)
        await end.close()
        meant.qmp.unlink()
        other.qmp.rename(meant.qmp)
        with pytest.raises(QemuError, match=f"pid {other.pid} answers there"):
            await site.open("alpha", str(meant.qmp), role="source", identity=identity)
        assert (await other.query("query-status"))["status"] == "running"

    async def test_other_that_takes_its_socket_is_never_commanded(
        self, world: SimpleNamespace, site: SiteHosts
    ) -> None:
        meant = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
        other = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="other")
        end = await site.open("alpha", str(meant.qmp), role="source")
        meant.qmp.unlink()
        other.qmp.rename(meant.qmp)
        assert world.alpha.break_connections() == 1

        async def looked() -> bool:
            return (await end.observe(timeout=0.5)).process is ProcessState.ALIVE

        await until(looked, what="the connection to be back", within=10)
        assert not (await end.observe(timeout=2)).answers
        with pytest.raises(Unreachable):
            await end.stop()
        assert (await other.query("query-status"))["status"] == "running"
        await end.close()

    async def test_that_could_not_be_asked_at_first_is_found_out_later(self, world: SimpleNamespace) -> None:
        qemu = await world.lab.start(prefix=world.hosts["alpha"].prefix, label="alpha")
        reached = SshAccess("alpha", world.alpha.config(connect_seconds=1.0))
        first = Endpoint(
            Address(kind="ssh", host="alpha", path=str(qemu.qmp)),
            role="source",
            transport=RemoteMonitorTransport(reached, str(qemu.qmp)),
        )
        await first.connect()
        identity = dict(first.identity)
        await first.close()
        for there, wanted in (
            (identity, ProcessState.ALIVE),
            (identity | {"start_time": 1}, ProcessState.DEAD),
        ):
            world.alpha.stop()
            end = Endpoint(
                Address(kind="ssh", host="alpha", path=str(qemu.qmp)),
                role="source",
                transport=RemoteMonitorTransport(reached, str(qemu.qmp)),
            )
            await end.expect_remote_process(there)
            assert (await end.observe(timeout=0.2)).process is ProcessState.UNKNOWN
            world.alpha.start()

            async def known(end: Endpoint = end, wanted: ProcessState = wanted) -> bool:
                return (await end.observe(timeout=1)).process is wanted

            await until(known, what=f"{wanted}", within=15)
            await end.close()
        await reached.close()


async def test_qemus_that_cannot_be_asked_are_guests_there(world: SimpleNamespace) -> None:
    # A namespace over SSH looks like the whole machine, on which others may have QEMUs.
    config = HostConfig(
        name="alpha", sockets=(f"{literal(str(world.lab.directory))}/*alpha.qmp",), ssh=world.alpha.config()
    )
    site = SiteHosts(
        HostConnections({"alpha": (access(config), config)}), checker=NobodyThere(), launcher=NobodyThere()
    )
    prefix = world.hosts["alpha"].prefix
    elsewhere = await world.lab.start(GuestMachine(name="elsewhere"), prefix=prefix, label="elsewhere")
    stopped = await world.lab.start(GuestMachine(name="stopped"), prefix=prefix, label="alpha")
    stopped.sigstop()
    for _ in range(3):
        found = {guest.pid: guest for guest in (await site.look("alpha")).guests}
        assert found[elsewhere.pid].obstacle_code == "no-monitor"
        assert found[stopped.pid].obstacle_code == "monitor-silent"
        for qemu in (elsewhere, stopped):
            guest = found[qemu.pid]
            assert (guest.key, guest.state) == (str(qemu.machine.uuid), "lost-contact")
        (socket,) = await find_sockets(LocalAccess("alpha", prefix), [literal(str(stopped.qmp))])
        assert socket.waiting == 1
    stopped.sigcont()
    await site.close()
