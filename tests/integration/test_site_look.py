"""Guests are found by their sockets, told apart, and left alone: on real QEMUs of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.core.inventory import Guest, Host
from migrator.core.model import Finding, RunState
from migrator.core.policy import Policy
from migrator.core.process.guest_network import NetworkState
from migrator.engine.inventory import Inventory
from migrator.errors import HostError, QemuError, StrangeAnswer
from migrator.hosts.host_config import HostConfig, access
from migrator.hosts.launch import Launcher
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import find_sockets, literal
from migrator.ports import IncomingDestination, Qemu
from migrator.qemu.identify import identify_at
from migrator.settings.host_sections import HostSettings
from migrator.settings.models import LimitsSettings
from migrator.site import discovery
from migrator.site.connections import HostConnections
from migrator.site.from_settings import ConfiguredSite
from migrator.site.hosts import SiteHosts
from migrator.testing.lab import GuestMachine, Lab
from migrator.testing.network import LabHosts
from tests.acceptance.test_two_controllers import frozen
from tests.command import direct, direct_doomed

UNNUMBERED = ("-uuid", "00000000-0000-0000-0000-000000000000")
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


def site_of(*configs: HostConfig) -> SiteHosts:
    connections = HostConnections({config.name: (access(config), config) for config in configs})
    return SiteHosts(connections, checker=NobodyThere(), launcher=NobodyThere())


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[SiteHosts]:
    """One host ``here`` with the QEMUs of the lab, of which each has two monitors."""
    pattern = literal(str(lab.directory))
    site = site_of(
        HostConfig(
            name="here",
            processes=False,
            sockets=(f"{pattern}/*.qmp", f"{pattern}/*.rescue", f"{pattern}/extra/*"),
        )
    )
    yield site
    await site.close()
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


async def guests(site: SiteHosts) -> dict[str, Guest]:
    look = await site.look("here")
    found = {
        guest.key: replace(guest, resident_bytes=None, managed_by="", process="") for guest in look.guests
    }
    assert len(found) == len(look.guests), "a key stands for one guest"
    return found


@contextlib.contextmanager
def connected(path: Path) -> Any:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    try:
        yield client
    finally:
        client.close()


class TestLook:
    async def test_shows_what_qemu_says_of_a_guest(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.boot(GuestMachine(name="web, 1", memory_bytes=96 << 20, smp=2))
        (guest,) = (await guests(site)).values()
        assert guest == Guest(
            key=str(qemu.machine.uuid),
            uuid=str(qemu.machine.uuid),
            host="here",
            name="web, 1",
            socket=str(qemu.qmp),
            pid=qemu.pid,
            memory_bytes=96 << 20,
            vcpus=2,
            run=RunState.RUNNING,
            network=(NetworkState.NONE, ""),
        )

    async def test_leaves_the_monitors_to_others(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start()
        for _ in range(3):
            await guests(site)
            with connected(qemu.qmp) as client:
                client.settimeout(5)
                assert b"QMP" in client.recv(100)

    async def test_of_a_host_without_guests(self, lab: Lab, site: SiteHosts) -> None:
        look = await site.look("here")
        assert look.guests == ()
        assert look.facts.memory_total_bytes > 0

    async def test_passes_over_the_socket_of_a_qemu_that_was_killed(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start()
        qemu.kill()
        await qemu.wait_dead()
        assert qemu.qmp.exists()
        assert await guests(site) == {}

    async def test_tells_equal_names_and_absent_uuids_apart(self, lab: Lab, site: SiteHosts) -> None:
        twins = [await lab.start(GuestMachine(name="twin")) for _ in range(2)]
        single = await lab.start(GuestMachine(name="single", extra=UNNUMBERED))
        first, second = [await lab.start(GuestMachine(name="double", extra=UNNUMBERED)) for _ in range(2)]
        nobody = await lab.start(GuestMachine(name="", extra=UNNUMBERED))
        found = await guests(site)
        assert {guest.pid for guest in found.values()} == {
            qemu.pid for qemu in (*twins, single, first, second, nobody)
        }
        assert {found[str(qemu.machine.uuid)].pid for qemu in twins} == {qemu.pid for qemu in twins}
        named = {guest.identity: guest for key, guest in found.items() if not guest.uuid}
        assert all(identity.startswith("guest-") and identity in found for identity in named)
        assert {guest.label for guest in named.values()} == {"single", "double", f"here:{nobody.qmp}"}
        assert await guests(site) == found, "they are called the same whenever they are looked at"
        # Whoever cannot ask one comes to the same name by its process.
        nobody.sigstop()
        other = site_of(site.connections.config("here"))
        assert {each.key for each in (await other.look("here")).guests} == set(found)
        nobody.sigcont()
        await other.close()

    async def test_two_that_claim_one_uuid_cannot_be_moved(self, lab: Lab, site: SiteHosts) -> None:
        machine = GuestMachine(image_locking="off")
        copies = [await lab.start(machine) for _ in range(2)]
        found = await guests(site)
        assert sorted(found) == sorted(f"here:{qemu.qmp}" for qemu in copies)
        assert {guest.obstacle_code for guest in found.values()} == {"not-movable"}

    async def test_the_end_that_waits_is_not_taken_for_the_guest(self, lab: Lab, site: SiteHosts) -> None:
        pair = await lab.pair()
        found = await guests(site)
        guest = found.pop(str(pair.source.machine.uuid))
        assert (guest.pid, guest.obstacle) == (pair.source.pid, "")
        assert {(each.pid, each.run) for each in found.values()} == {
            (pair.destination.pid, RunState.INMIGRATE)
        }

    async def test_names_are_never_read_by_a_shell(
        self, lab: Lab, site: SiteHosts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lab.directory)
        (lab.directory / "extra").mkdir()
        path = lab.directory / "extra" / EVIL.replace("/", "")
        qemu = await lab.start(
            GuestMachine(name=EVIL), extra=("-qmp", f"unix:{str(path).replace(',', ',,')},server=on,wait=off")
        )
        (found,) = await find_sockets(LocalAccess("here"), [f"{literal(str(lab.directory))}/extra/*"])
        assert (found.path, found.pid, found.listening) == (str(path), qemu.pid, True)
        (found,) = await find_sockets(LocalAccess("here"), [literal(str(path))])
        assert (found.path, found.name, found.uuid) == (str(path), EVIL, str(qemu.machine.uuid))
        (guest,) = (await guests(site)).values()
        assert (guest.name, guest.pid) == (EVIL, qemu.pid)
        pattern = "/x/$(touch EVIL)`touch EVIL`; touch EVIL\n touch EVIL/*"
        assert await find_sockets(LocalAccess("here"), [pattern, "/x/'\"*"]) == []
        assert not list(lab.directory.rglob("EVIL"))

    async def test_socket_that_was_made_by_a_relative_name(self, lab: Lab, site: SiteHosts) -> None:
        (lab.directory / "extra").mkdir()
        listener = socket.socket(socket.AF_UNIX)
        before = Path.cwd()
        os.chdir(lab.directory / "extra")
        try:
            listener.bind("relative name")
        finally:
            os.chdir(before)
        listener.listen()
        (found,) = await find_sockets(LocalAccess("here"), [f"{literal(str(lab.directory))}/extra/*"])
        assert (found.pid, found.busy) == (os.getpid(), False)
        listener.close()

    @pytest.mark.parametrize("name", ["a?", "a[b]", "a*", "a\\b"])
    async def test_literal_pattern_matches_nothing_else(self, tmp_path: Path, name: str) -> None:
        listeners = []
        for each in (name, "ab", "ax"):
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[-1].bind(str(tmp_path / each))
        found = await find_sockets(LocalAccess("here"), [literal(str(tmp_path / name))])
        assert [each.path for each in found] == [str(tmp_path / name)]
        for listener in listeners:
            listener.close()


class TestObstacles:
    async def test_monitor_that_another_holds_is_told_with_who(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start(GuestMachine(name="held"))
        with connected(qemu.qmp), connected(qemu.rescue):
            (guest,) = (await guests(site)).values()
        assert guest.socket == str(qemu.qmp)
        assert guest.obstacle_code == "monitor-held"
        assert f"(pid {os.getpid()})" in guest.obstacle
        assert Path("/proc/self/comm").read_text().strip() in guest.obstacle
        assert (guest.key, guest.name) == (str(qemu.machine.uuid), "held")
        (guest,) = (await guests(site)).values()
        assert guest.obstacle == ""

    async def test_second_monitor_serves_where_the_first_is_held(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start()
        with connected(qemu.qmp):
            (guest,) = (await guests(site)).values()
        assert (guest.obstacle, guest.socket) == ("", str(qemu.rescue))

    async def test_qemu_that_never_greets(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start(GuestMachine(name="stuck"))
        await guests(site)
        qemu.sigstop()
        (guest,) = (await guests(site)).values()
        assert guest.obstacle_code == "monitor-silent"
        assert (guest.name, guest.memory_bytes) == ("stuck", qemu.machine.memory_bytes)

    @pytest.mark.matrix  # it takes its time
    async def test_many_that_never_greet_are_asked_together(self, lab: Lab, site: SiteHosts) -> None:
        (lab.directory / "extra").mkdir()
        listeners = []
        for number in range(20):
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[-1].bind(str(lab.directory / "extra" / str(number)))
            listeners[-1].listen()
        began = asyncio.get_running_loop().time()
        found = await guests(site)
        assert asyncio.get_running_loop().time() - began < 6
        # They are one process, and so one guest.
        assert [guest.obstacle_code for guest in found.values()] == ["monitor-silent"]
        for listener in listeners:
            listener.close()

    async def test_guest_of_libvirt_is_not_touched(self, lab: Lab, site: SiteHosts) -> None:
        (lab.directory / "extra").mkdir()
        path = lab.directory / "extra" / "monitor.sock"
        chardev = f"socket,id=charmonitor,path={path},server=on,wait=off"
        await lab.start(
            GuestMachine(name="theirs"),
            extra=("-chardev", chardev, "-mon", "chardev=charmonitor,id=monitor,mode=control"),
        )
        (guest,) = (await guests(site)).values()
        assert (guest.obstacle_code, guest.name) == ("libvirt", "theirs")
        assert "virsh" in guest.obstacle


class TestMigrationThatNobodyDrives:
    async def test_both_ends_are_guests_with_what_is_to_be_done(
        self, lab: Lab, site: SiteHosts, each_qemu: Path
    ) -> None:
        pair = await lab.pair(source=each_qemu, destination=each_qemu)
        dead = await direct_doomed(pair, "KILL before source.switch", "--postcopy", "never")
        assert dead.code == -signal.SIGKILL
        (standing,) = [guest for guest in (await guests(site)).values() if guest.obstacle]
        assert (standing.pid, standing.obstacle_code) == (pair.source.pid, "unfinished-migration")
        assert (
            "it stands still at the switch of a migration, which migrator direct, pid " in standing.obstacle
        )
        assert "migrator direct --rescue" in standing.obstacle
        assert (await direct(pair, "--postcopy", "never")).code == 0
        (arrived,) = (await guests(site)).values()
        assert arrived.obstacle == ""

    async def test_a_guest_that_arrived_and_was_not_let_run_is_told_from_a_paused_one(
        self, lab: Lab, site: SiteHosts
    ) -> None:
        pair = await lab.pair()
        await direct_doomed(pair, "KILL before destination.cont", "--postcopy", "never")
        found = {guest.pid: guest for guest in (await guests(site)).values()}
        assert found[pair.source.pid].obstacle.startswith(
            "it was left standing by a migration that has sent all"
        )
        assert found[pair.destination.pid].obstacle.startswith(
            "it has arrived by a migration, and nobody has let it"
        )

    async def test_of_one_that_another_controller_drives_that_is_said(
        self, lab: Lab, site: SiteHosts
    ) -> None:
        pair = await lab.pair()
        async with frozen(pair, "before source.migrate") as command:
            (guest,) = [guest for guest in (await guests(site)).values() if guest.run is RunState.RUNNING]
            assert guest.obstacle_code == "driven-elsewhere"
            assert f"migrator direct, pid {command.pid} on " in guest.obstacle


class TestHeldByOurselves:
    async def test_source_is_shown_as_it_was(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start(GuestMachine(name="moving"))
        before = await guests(site)
        end = await site.open("here", str(qemu.qmp), role="source")
        assert await guests(site) == before
        assert (await end.observe()).answers
        await end.close()
        assert await guests(site) == before

    async def test_source_is_shown_that_was_opened_before_it_was_looked_at(
        self, lab: Lab, site: SiteHosts
    ) -> None:
        qemu = await lab.start(GuestMachine(name="moving"))
        end = await site.open("here", str(qemu.qmp), role="source")
        (guest,) = (await guests(site)).values()
        assert (guest.name, guest.memory_bytes, guest.run) == (
            "moving",
            qemu.machine.memory_bytes,
            RunState.RUNNING,
        )
        await end.close()

    async def test_source_that_a_migration_has_stopped_counts_at_its_host_also_where_it_was_opened_first(
        self, lab: Lab, site: SiteHosts
    ) -> None:
        pair = await lab.pair()
        await direct_doomed(pair, "KILL before source.switch", "--postcopy", "never")
        end = await site.open("here", str(pair.source.qmp), role="source")
        shown = (await guests(site)).values()
        (guest,) = [guest for guest in shown if guest.pid == pair.source.pid]
        assert (guest.key, guest.obstacle_code) == (str(pair.source.machine.uuid), "unfinished-migration")
        assert "of this service" in guest.obstacle
        await end.close()

    async def test_destination_is_left_out(self, lab: Lab, site: SiteHosts) -> None:
        pair = await lab.pair()
        end = await site.open("here", str(pair.destination.qmp), role="destination")
        assert [guest.pid for guest in (await guests(site)).values()] == [pair.source.pid]
        await end.close()


class TestOpen:
    async def test_process_that_was_meant(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start()
        end = await site.open("here", str(qemu.qmp), role="source")
        identity = dict(end.identity)
        assert (identity["pid"], end.shares_clock) == (qemu.pid, True)
        await end.close()
        end = await site.open("here", str(qemu.qmp), role="source", identity=identity)
        assert (await end.observe()).answers
        await end.close()

    async def test_process_that_has_died_is_opened_as_dead(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start()
        end = await site.open("here", str(qemu.qmp), role="source")
        identity = dict(end.identity)
        await end.close()
        qemu.kill()
        await qemu.wait_dead()
        qemu.discard()
        end = await site.open("here", str(qemu.qmp), role="source", identity=identity)
        assert (await end.observe()).process == "dead"
        await end.close()

    async def test_another_process_at_the_socket_is_refused(self, lab: Lab, site: SiteHosts) -> None:
        meant, other = await lab.start(), await lab.start()
        end = await site.open("here", str(meant.qmp), role="source")
        identity = dict(end.identity)
        await end.close()
        meant.qmp.unlink()
        meant.qmp.symlink_to(other.qmp)
        with pytest.raises(QemuError, match=f"pid {other.pid} answers there"):
            await site.open("here", str(meant.qmp), role="source", identity=identity)

    async def test_process_that_lives_and_is_silent_is_opened(self, lab: Lab, site: SiteHosts) -> None:
        qemu = await lab.start()
        end = await site.open("here", str(qemu.qmp), role="source")
        identity = dict(end.identity)
        await end.close()
        qemu.qmp.unlink()
        end = await site.open("here", str(qemu.qmp), role="source", identity=identity)
        view = await end.observe()
        assert (view.process, view.answers, view.can_fence) == ("alive", False, True)
        await end.close()

    async def test_nobody_there(self, lab: Lab, site: SiteHosts) -> None:
        with pytest.raises(QemuError, match="No such file"):
            await site.open("here", str(lab.directory / "nothing"), role="source")

    async def test_what_was_begun_at_a_host_that_only_another_controller_has_is_left_and_said(self) -> None:
        own = ConfiguredSite([HostSettings(name="here", address=("127.0.0.1",))], LimitsSettings())
        with pytest.raises(HostError, match="host there: it is not in the configuration"):
            await own.abandon("there", migration="m1", images=True)

    async def test_host_that_is_not_configured(self, lab: Lab, site: SiteHosts) -> None:
        with pytest.raises(HostError, match="host there: it is not in the configuration"):
            await site.open("there", "/x", role="source")
        with pytest.raises(HostError, match="there"):
            await site.look("there")


async def test_guests_in_network_namespaces_belong_to_their_hosts(hosts: LabHosts, lab: Lab) -> None:
    configs = []
    for host in hosts:
        (lab.directory / host.name).mkdir()
        configs.append(
            HostConfig(
                name=host.name,
                prefix=host.prefix,
                addresses=(host.address,),
                sockets=(f"{lab.directory}/{host.name}/*",),
            )
        )
    site = site_of(*configs)
    qemus = {}
    for host in hosts:
        more = ("-qmp", f"unix:{lab.directory}/{host.name}/qmp,server=on,wait=off")
        qemus[host.name] = await lab.start(prefix=host.prefix, extra=more)
    for host in hosts:
        look = await site.look(host.name)
        assert [(guest.pid, guest.host) for guest in look.guests] == [(qemus[host.name].pid, host.name)]
        assert "uplink" in look.facts.interfaces
    await site.close()


async def test_look_is_cheap(lab: Lab, site: SiteHosts) -> None:
    # What commands cost on the host is not counted, nor what QEMU does.
    await lab.start()
    await guests(site)
    before = os.times()
    for _ in range(5):
        await guests(site)
    after = os.times()
    assert (after.user + after.system - before.user - before.system) / 5 < 0.2


async def test_look_and_open_at_the_same_time_do_not_hinder_each_other(lab: Lab, site: SiteHosts) -> None:
    qemu = await lab.start(GuestMachine(name="wanted"))
    await guests(site)
    for _ in range(5):
        found, end = await asyncio.gather(guests(site), site.open("here", str(qemu.qmp), role="source"))
        assert [(guest.name, guest.obstacle) for guest in found.values()] == [("wanted", "")]
        assert (await end.observe()).answers
        await end.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("UUID"), "an error of migrator itself (KeyError: 'UUID'); its log has it under "),
        (
            StrangeAnswer("here", "query-status", "it is 5"),
            "what it answers to query-status is no answer: it is 5",
        ),
    ],
    ids=["ours", "its own"],
)
async def test_one_that_cannot_be_looked_at_is_shown_so_and_the_others_are_as_ever(
    lab: Lab, site: SiteHosts, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    bad, good = GuestMachine(), GuestMachine()
    await asyncio.gather(lab.start(bad), lab.start(good))
    before = await guests(site)
    strange = before[str(bad.uuid)]

    async def fails(path: str, **how: Any) -> Any:
        if path.rpartition(".")[0] == strange.socket.rpartition(".")[0]:
            raise error
        return await identify_at(path, **how)

    monkeypatch.setattr(discovery, "identify_at", fails)
    after = await guests(site)
    assert after[str(good.uuid)] == before[str(good.uuid)]
    shown = after[str(bad.uuid)]
    assert shown.lost_contact
    assert words in shown.obstacle
    monkeypatch.undo()
    assert await guests(site) == before


@pytest.mark.parametrize("first", ["here", "there"])
async def test_a_link_to_the_monitor_of_a_guest_at_another_host_of_this_machine_is_no_second_guest(
    lab: Lab, first: str
) -> None:
    qemu = await lab.boot()
    before = lab.directory / "before"
    before.mkdir()
    (before / qemu.qmp.name).symlink_to(qemu.qmp)
    patterns = {"here": literal(str(lab.directory)), "there": literal(str(before))}
    site = site_of(
        *(HostConfig(name=name, sockets=(f"{at}/*.qmp",), processes=False) for name, at in patterns.items())
    )
    try:
        looks = [await site.look(name) for name in (first, *patterns)]
        assert looks[-1].guests == ()
        (guest,) = (await site.look("here")).guests
        assert (guest.socket, guest.pid) == (str(qemu.qmp), qemu.pid)
        assert guest.process
    finally:
        await site.close()


async def test_two_hosts_with_the_same_sockets_show_one_process(lab: Lab) -> None:
    await lab.boot()
    sockets = (f"{literal(str(lab.directory))}/*.qmp",)
    hosts = [Host(name=name) for name in ("here", "alias")]
    site = site_of(*(HostConfig(name=host.name, sockets=sockets, processes=False) for host in hosts))
    inventory = Inventory(hosts, site=site)
    try:
        for _ in range(2):
            await inventory.look_at_all()
        shown = inventory.guests()
        assert [guest.host for guest in shown] == ["here", "alias"]
        assert all("hosts alias and here, which are one machine" in guest.obstacle for guest in shown)
        assert inventory.doubled() == {}
    finally:
        await site.close()
