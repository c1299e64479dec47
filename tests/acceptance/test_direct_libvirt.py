"""``migrator direct`` with guests of libvirt: two real libvirtd, one of them behind a real SSH server."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrator.testing.guest import IDLE, Habit
from migrator.testing.lab import until
from migrator.testing.libvirtd import LibvirtDaemon, LibvirtHosts
from tests.command import MIGRATOR, Command, Ended, started
from tests.libvirt_hosts import guest_name
from tests.libvirt_moves import MIB, WRITES, definition, has
from tests.sshd import Sshd

#: The image is one file for both hosts, on a file system that libvirt does not know to be shared.
_ACCEPT = ("--accept", "libvirt-unsafe-cache")
_SLOWLY = ("--max-bandwidth", "1MiB/s", "--postcopy", "never")


@dataclass(frozen=True)
class Site:
    """Two hosts with a libvirt each, the second behind an SSH server, and a home directory to reach that from."""

    alpha: LibvirtDaemon
    beta: LibvirtDaemon
    home: Path

    def running(self, name: str, *options: str) -> AbstractAsyncContextManager[Command]:
        """The command that moves a guest from the first to the second."""
        return started(
            "direct",
            *("--source", f"qemu:///system?socket={self.alpha.socket}&guest={name}"),
            *("--destination", f"qemu+ssh://beta/system?socket={self.beta.socket}"),
            *("--listen", f"tcp:{self.beta.host.address}:0", "--json"),
            *options,
            variables={"HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state")},
            accepting=False,
        )

    async def direct(self, name: str, *options: str) -> Ended:
        async with self.running(name, *options) as command:
            return await command.ended(within=60)

    @property
    def records(self) -> list[Path]:
        return list((self.home / "state/migrator/direct").glob("*.jsonl"))

    async def until_copies(self, name: str) -> None:
        async def copies() -> bool:
            job = await self.alpha.virsh("domjobinfo", name)
            return "Memory processed" in job and "Memory processed: 0.000" not in job

        await until(copies, what="memory on its way", within=60)


@pytest.fixture
def site(libvirt_hosts: LibvirtHosts, tmp_path: Path) -> Iterator[Site]:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    with Sshd(tmp_path / "sshd") as server:
        (home / ".ssh/known_hosts").write_text(server.host_key_line)
        (home / ".ssh/config").write_text(
            f"Host beta\n  HostName {server.address}\n  Port {server.port}\n  User root\n  IdentityFile {server.key}\n"
        )
        yield Site(libvirt_hosts["alpha"], libvirt_hosts["beta"], home)


async def test_guest_is_moved_over_ssh_as_it_was_and_a_second_time_is_refused(
    site: Site, tmp_path: Path
) -> None:
    name = guest_name()
    await site.alpha.start_guest(name, tmp_path / "image", habit=IDLE, autostart=True)
    before = await definition(site.alpha, name)
    refused = await site.direct(name)
    assert (refused.code, refused.state) == (3, "failed")
    assert "libvirt-unsafe-cache" in refused.codes
    ended = await site.direct(name, *_ACCEPT)
    assert (ended.code, ended.state, ended.document["mode"]) == (0, "completed", "precopy"), ended
    assert ended.document["downtime_seconds"] > 0
    assert await has(site.alpha, name) == {}
    assert await definition(site.beta, name) == before
    now = await has(site.beta, name)
    assert (now["State"], now["Persistent"], now["Autostart"]) == ("running", "yes", "enable")
    await site.beta.wait_beating(name)
    again = await site.direct(name, *_ACCEPT)
    assert again.code == 3
    assert "was moved from" in again.error
    assert "it is there" in again.error
    assert not site.records


async def test_between_two_daemons_of_this_machine_it_loads_nothing_that_it_does_not_use(
    libvirt_hosts: LibvirtHosts, tmp_path: Path
) -> None:
    name, (alpha, beta) = guest_name(), (libvirt_hosts["alpha"], libvirt_hosts["beta"])
    await alpha.start_guest(name, tmp_path / "image", habit=IDLE)
    async with started(
        "direct",
        *("--source", f"qemu:///system?socket={alpha.socket}&guest={name}"),
        *("--destination", f"qemu:///system?socket={beta.socket}"),
        *("--listen", f"tcp:{beta.host.address}:0", "--json", *_ACCEPT),
        program=(sys.executable, "-X", "importtime", *MIGRATOR),
        variables={"XDG_STATE_HOME": str(tmp_path / "state")},
        accepting=False,
    ) as command:
        ended = await command.ended(within=60)
    assert ended.code == 0, ended.err
    loaded = set(re.findall(r"^import time:.*\|\s+(\S+)$", ended.err, re.MULTILINE))
    assert {"libvirt", "migrator.engine.migration.managed_driver"} <= loaded
    # Each costs as much as several steps of such a migration.
    others = (
        *("asyncssh", "pydantic", "pydantic_core", "qemu.qmp", "rich", "sqlalchemy", "structlog", "typer"),
        *("random", "secrets", "statistics", "urllib.request", "uuid", "xml.sax"),
    )
    assert not loaded & {*others, "migrator.engine.migration.driver", "migrator.hosts.facts"}
    assert not [each for each in loaded if each.startswith(("migrator.settings", "migrator.qemu.endpoint"))]


@pytest.mark.matrix
async def test_cancelled_by_ctrl_c_it_stays(site: Site, tmp_path: Path) -> None:
    name = guest_name()
    await site.alpha.start_guest(name, tmp_path / "image", habit=WRITES)
    before = await definition(site.alpha, name)
    async with site.running(name, *_ACCEPT, *_SLOWLY) as command:
        await site.until_copies(name)
        command.signal(signal.SIGINT)
        ended = await command.ended(within=60)
    assert (ended.code, ended.state) == (4, "cancelled"), ended
    assert await definition(site.alpha, name) == before
    await site.alpha.wait_beating(name)
    assert await has(site.beta, name) == {}
    assert not site.records


@pytest.mark.matrix
async def test_killed_the_same_command_ends_what_it_left_and_the_next_one_moves_the_guest(
    site: Site, tmp_path: Path
) -> None:
    name = guest_name()
    habit = Habit(region_bytes=16 * MIB, bytes_per_second=float(MIB))
    await site.alpha.start_guest(name, tmp_path / "image", habit=habit)
    async with site.running(name, *_ACCEPT, *_SLOWLY) as command:
        await site.until_copies(name)
        await command.kill()
    assert site.records
    ended = await site.direct(name, *_ACCEPT)
    assert (ended.code, ended.state) == (1, "failed"), ended
    await site.alpha.wait_beating(name)
    assert await has(site.beta, name) == {}
    assert not site.records
    moved = await site.direct(name, *_ACCEPT)
    assert (moved.code, moved.state) == (0, "completed"), moved
    await site.beta.wait_beating(name)
