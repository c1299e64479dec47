"""A QEMU that cannot be asked is a guest that cannot be asked: real QEMUs on a host of their own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from migrator.core.inventory import Guest
from migrator.errors import HostError
from migrator.hosts.host_config import HostConfig, access
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import find_sockets, literal, survey_host
from migrator.machine import exists
from migrator.site.connections import HostConnections
from migrator.site.hosts import SiteHosts
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, binaries, until
from migrator.testing.network import LabHosts
from tests.command import SLOWLY, started
from tests.conftest import missing
from tests.integration.test_site_look import NobodyThere


@pytest.fixture
async def site(hosts: LabHosts, lab: Lab) -> AsyncIterator[SiteHosts]:
    """The host of the first namespace, with the monitors that end in ``.qmp``."""
    here = next(iter(hosts))
    config = HostConfig(name="here", prefix=here.prefix, sockets=(f"{literal(str(lab.directory))}/*.qmp",))
    site = SiteHosts(
        HostConnections({"here": (access(config), config)}), checker=NobodyThere(), launcher=NobodyThere()
    )
    yield site
    await site.close()


#: By :func:`bare`.
_STARTED: list[int] = []


async def guests(site: SiteHosts) -> dict[str, Guest]:
    return {guest.name: guest for guest in (await site.look("here")).guests}


def prefix(hosts: LabHosts) -> tuple[str, ...]:
    return next(iter(hosts)).prefix


async def bare(hosts: LabHosts, lab: Lab, name: str, *words: str, program: Path | None = None) -> int:
    """A QEMU that is started as somebody else would, without the lab's monitors; its pid."""
    pidfile = lab.directory / f"{name}.pid"
    command = [
        *(
            *prefix(hosts),
            str(program or next(iter(binaries().values()))),
            "-machine",
            "pc",
            "-nodefaults",
            "-name",
            name,
        ),
        *("-display", "none", "-m", "64", "-S", "-pidfile", str(pidfile), "-daemonize", *words),
    ]
    child = await asyncio.create_subprocess_exec(*command)
    assert await child.wait() == 0
    pid = int(pidfile.read_text())
    _STARTED.append(pid)
    return pid


@pytest.fixture(autouse=True)
def _nobody_left() -> Iterator[None]:
    yield
    while _STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.kill(_STARTED.pop(), signal.SIGKILL)


async def waiting(hosts: LabHosts, qemu: LabQemu) -> int:
    (found,) = await find_sockets(LocalAccess("here", prefix(hosts)), [literal(str(qemu.qmp))])
    return found.waiting


async def test_qemus_without_a_monitor_that_we_see_are_guests_in_the_way(
    hosts: LabHosts, lab: Lab, site: SiteHosts
) -> None:
    # QEMU finds its modules and firmware from where its program is.
    wrapped = lab.directory / "usr" / "bin" / "vmm"
    wrapped.parent.mkdir(parents=True)
    for name in ("lib", "share"):
        (lab.directory / "usr" / name).symlink_to(f"/usr/{name}")
    shutil.copy(next(iter(binaries().values())), wrapped)
    elsewhere = lab.directory / "elsewhere.sock"
    started = {
        "none": await bare(hosts, lab, "none"),
        "elsewhere": await bare(hosts, lab, "elsewhere", "-qmp", f"unix:{elsewhere},server=on,wait=off"),
        "tcp": await bare(hosts, lab, "tcp", "-qmp", "tcp:127.0.0.1:0,server=on,wait=off"),
        "wrapped": await bare(hosts, lab, "wrapped", program=wrapped),
        "human": await bare(
            hosts, lab, "human", "-monitor", f"unix:{lab.directory}/human.qmp,server=on,wait=off"
        ),
    }
    seen = await lab.start(GuestMachine(name="seen"), prefix=prefix(hosts))
    found = await guests(site)
    assert {name: guest.pid for name, guest in found.items()} == {**started, "seen": seen.pid}
    assert (found["seen"].monitored, found["seen"].state) == (True, "running")
    for name in started:
        assert found[name].state == "lost-contact"
    codes = {name: guest.obstacle_code for name, guest in found.items() if not guest.monitored}
    assert codes == dict.fromkeys(("none", "elsewhere", "tcp", "wrapped"), "no-monitor")
    assert found["human"].obstacle_code == "monitor-silent"
    assert f"{elsewhere} of" in found["elsewhere"].obstacle
    assert "add it" in found["elsewhere"].obstacle
    assert "has no QMP monitor" in found["none"].obstacle
    assert "tcp:127.0.0.1:0" in found["tcp"].obstacle
    assert found["none"].memory_bytes == 64 << 20
    assert len({guest.key for guest in found.values()}) == len(found)
    # One that ends is gone at the next look, and nothing else is.
    os.kill(started["none"], 9)
    await until(lambda: not exists(started["none"]), what="its end")
    assert sorted(await guests(site)) == sorted({*started, "seen"} - {"none"})


async def test_qemus_that_were_started_alike_are_counted_each(
    hosts: LabHosts, lab: Lab, site: SiteHosts
) -> None:
    words = ("qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64", "-S", "-qmp", "stdio")
    both = [
        await asyncio.create_subprocess_exec(
            *prefix(hosts), *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    try:
        pids = {each.pid for each in both}
        await until(
            lambda: all(b"-qmp" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids), what="both"
        )
        assert {guest.pid for guest in (await site.look("here")).guests} == pids
    finally:
        for each in both:
            each.kill()
            await each.wait()


async def test_a_guest_that_another_controller_brings_is_on_its_way(
    hosts: LabHosts, lab: Lab, site: SiteHosts
) -> None:
    """The host is not empty: it will have the guest at any moment."""
    machine = GuestMachine(
        name="comes", image_locking="off", habit=Habit(region_bytes=16 << 20, bytes_per_second=8 << 20)
    )
    source = await lab.boot(machine, prefix=prefix(hosts), label="from")
    there = await lab.start(machine, prefix=prefix(hosts), label="here", incoming=True)
    assert {guest.pid for guest in (await site.look("here")).guests if guest.obstacle} == set()
    ends = ("--source", f"unix:{source.rescue}", "--destination", f"unix:{there.rescue}")
    async with started("direct", *ends, *SLOWLY):

        async def seen() -> bool:
            found = {guest.pid: guest for guest in (await site.look("here")).guests}
            coming = found[there.pid]
            return "is on its way here, migrator direct" in coming.obstacle and coming.key != coming.uuid

        await until(seen, what="a guest on its way")


async def test_a_qemu_that_is_stopped_stays_and_its_queue_is_not_filled(
    hosts: LabHosts, lab: Lab, site: SiteHosts
) -> None:
    qemu = await lab.start(GuestMachine(name="stopped"), prefix=prefix(hosts))
    before = (await guests(site))["stopped"]
    qemu.sigstop()
    for _ in range(4):
        guest = (await guests(site))["stopped"]
        assert (guest.state, guest.obstacle_code, guest.key) == ("lost-contact", "monitor-silent", before.key)
        assert await waiting(hosts, qemu) == 1
    qemu.sigcont()

    async def asked() -> bool:
        return (await guests(site))["stopped"].state == before.state

    await until(asked, what="its answer")
    assert await waiting(hosts, qemu) == 0


async def test_a_queue_that_others_have_filled_is_not_taken_for_absence(
    hosts: LabHosts, lab: Lab, site: SiteHosts
) -> None:
    qemu = await lab.start(GuestMachine(name="full", uuid=GuestMachine().uuid), prefix=prefix(hosts))
    qemu.sigstop()
    refused = 0
    while not refused:  # what gives up stays in the queue
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            refused = client.connect_ex(str(qemu.qmp))
    assert refused == errno.EAGAIN
    for _ in range(2):
        guest = (await guests(site))["full"]  # never asked before: known by its command line
        assert (guest.state, guest.key) == ("lost-contact", str(qemu.machine.uuid))
    qemu.sigcont()


async def test_a_socket_that_was_removed_leaves_the_guest_known(
    hosts: LabHosts, lab: Lab, site: SiteHosts
) -> None:
    qemu = await lab.start(GuestMachine(name="orphan"), prefix=prefix(hosts))
    before = (await guests(site))["orphan"]
    qemu.qmp.unlink()
    guest = (await guests(site))["orphan"]
    assert (guest.key, guest.pid, guest.monitored) == (before.key, qemu.pid, False)
    assert "was removed" in guest.obstacle


async def test_a_destination_that_is_being_started_is_no_guest(
    hosts: LabHosts, lab: Lab, site: SiteHosts
) -> None:
    run = lab.directory / "run"
    run.mkdir()
    await bare(hosts, lab, "ours", "-incoming", "defer", "-qmp", f"unix:{run}/control,server=on,wait=off")
    with site.connections.starting("here", str(run)):
        assert await guests(site) == {}
    assert list(await guests(site)) == ["ours"]


async def test_a_host_that_hides_processes_is_not_taken_for_an_empty_one(hosts: LabHosts, lab: Lab) -> None:
    hide = 'mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
    prefix = ("unshare", "-m", "sh", "-c", hide, "sh")
    config = HostConfig(name="here", prefix=prefix, sockets=(f"{literal(str(lab.directory))}/*.qmp",))
    if (await access(config).run(["true"])).status:
        missing("/proc cannot be mounted in a namespace here")
    site = SiteHosts(
        HostConnections({"here": (access(config), config)}), checker=NobodyThere(), launcher=NobodyThere()
    )
    with pytest.raises(HostError, match=r"the processes of other users are hidden there .* look_for"):
        await site.look("here")
    await site.close()


async def test_one_that_is_started_while_the_processes_are_read_is_seen_with_its_network(
    tmp_path: Path,
) -> None:
    """In another's network it is no guest of this host: taken for one, it would have to be evacuated."""
    qemu, program, pids = next(iter(binaries().values())), tmp_path / "find", tmp_path / "pid"
    program.write_text(
        f"""#!/bin/sh
if [ ! -e {pids} ]; then
  {qemu} -machine pc -nodefaults -display none -m 64 -S >/dev/null 2>&1 </dev/null & echo $! >{pids}
  while ! tr '\\0' ' ' </proc/$!/cmdline | {shutil.which("grep")} -q nodefaults; do sleep 0.01; done
fi
exec {shutil.which("find")} "$@"
""",
        encoding="utf-8",
    )
    program.chmod(0o755)
    host = LocalAccess("here", ("env", f"PATH={tmp_path}:{os.environ['PATH']}"))
    try:
        seen = (await survey_host(host, [])).processes
        (found,) = [each for each in seen.qemus if each.pid == int(pids.read_text())]
        assert found.sure
        assert found.network == seen.network
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)
