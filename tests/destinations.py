"""Two hosts that are directories of this machine, and guests that move between them by our own hands."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from migrator.core.findings import accept
from migrator.core.inventory import Guest
from migrator.core.model import Severity, State
from migrator.core.policy import builtin
from migrator.engine.migration.driver import MigrationDriver
from migrator.hosts.access import HostAccess
from migrator.hosts.host_config import HostConfig
from migrator.hosts.local import LocalAccess
from migrator.qemu.source import SourceEndpoint
from migrator.settings.host_sections import HostDefaults
from migrator.site.connections import HostConnections
from migrator.site.destinations import Destinations
from migrator.site.incoming_destination import WaitingQemu
from migrator.site.launch_config import LaunchConfig
from migrator.store.records import FileRecord
from migrator.testing.lab import GuestMachine, Lab, LabQemu
from tests.command import ACCEPTED_CODES

MIB = 1 << 20
POLICY = builtin("gentle").but(max_downtime_seconds=0.5)


class Site:
    """Two hosts that are directories of this machine, and what a service would do with them."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.directory = lab, lab.directory
        self.hosts: dict[str, tuple[HostAccess, HostConfig]] = {
            name: (LocalAccess(name), HostConfig(name=name)) for name in ("alpha", "beta")
        }
        #: How QEMUs are started; a test may change it.
        self.config = LaunchConfig(
            section=HostDefaults(
                run_dir=str(lab.directory / "run"),
                log_dir=str(lab.directory / "log"),
                start_timeout=20.0,
            )
        )
        self._opened_connections: list[HostConnections] = []
        self.join()
        self.opened: list[SourceEndpoint] = []
        self._moves = 0
        #: What the last move could not put under the path that it had.
        self.lacking: list[str] = []

    def configure(self, **keys: Any) -> None:
        """Start QEMUs in another way from now on; keys of ``[host_defaults]``, unchecked."""
        self.config = replace(self.config, section=self.config.section.model_copy(update=keys))

    def join(self) -> None:
        """After a change of the hosts."""
        self.connections = HostConnections(self.hosts)
        self._opened_connections.append(self.connections)
        self.destinations = Destinations(self.connections, how=lambda guest, host: self.config)

    def have(self, *binaries: Path) -> None:
        """Give alpha the one QEMU and beta the other."""
        for name, binary in zip(self.hosts, binaries, strict=True):
            access, config = self.hosts[name]
            self.hosts[name] = access, replace(config, qemu=str(binary))
        self.join()

    def reached_by(self, access: HostAccess) -> None:
        """Reach beta by other means."""
        self.hosts["beta"] = access, self.hosts["beta"][1]
        self.join()

    async def source(self, guest: Guest) -> SourceEndpoint:
        end = await self.connections.open(guest.host, guest.socket, role="source")
        self.opened.append(end)
        return end

    async def start(self, guest: Guest, target: str = "beta") -> WaitingQemu:
        self._moves += 1
        started = await self.destinations.start_destination(
            guest, await self.source(guest), target, migration=f"move-{self._moves}"
        )
        assert isinstance(started, WaitingQemu)
        assert isinstance(started.qemu, SourceEndpoint)
        self.opened.append(started.qemu)
        return started

    async def move(self, guest: Guest, target: str) -> Guest:
        """The whole migration; the guest as it is found afterwards."""
        started = await self.start(guest, target)
        source = self.opened[-2]
        record = FileRecord(f"move-{self._moves}")
        migration = MigrationDriver(
            name=record.path.stem,
            source=source,
            destination=started.qemu,
            policy=POLICY,
            listen=started.listen,
            record=record,
        )
        findings = [
            finding
            for finding in accept(await migration.check(), ACCEPTED_CODES)
            if finding.severity is Severity.ERROR
        ]
        assert not findings, [finding.message for finding in findings]
        result = await migration.run()
        record.close()
        assert result.state is State.COMPLETED, result.error
        await self.destinations.clear(guest)
        await self.close()
        there = replace(guest, host=target, socket=started.socket, pid=None)
        self.lacking = await self.destinations.settle(there)
        return there

    async def close(self) -> None:
        """Let go of every QEMU."""
        while self.opened:
            await self.opened.pop().close()

    async def leave(self) -> None:
        """Let go of the hosts too, and of what still waits at a monitor that did not greet in time."""
        await self.close()
        while self._opened_connections:
            await self._opened_connections.pop().close()

    @property
    def processes(self) -> list[int]:
        """Every QEMU that was started in one of our run directories."""
        return processes_with(str(self.directory / "run"))

    def kill(self) -> None:
        """All of them."""
        for pid in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def left(self) -> list[str]:
        """What stands among the run directories."""
        return sorted(path.name for path in (self.directory / "run").glob("*"))

    @property
    def logs(self) -> str:
        """What stands in all logs."""
        return "\n".join(path.read_text(errors="replace") for path in (self.directory / "log").glob("*"))


@asynccontextmanager
async def site_of(lab: Lab) -> AsyncIterator[Site]:
    """A site whose QEMUs are gone in the end."""
    site = Site(lab)
    try:
        yield site
    finally:
        await site.leave()
        site.kill()


def guest_of(qemu: LabQemu, host: str = "alpha") -> Guest:
    """As an inventory would have it."""
    machine = qemu.machine
    return Guest(
        key=str(machine.uuid), host=host, uuid=str(machine.uuid), name=machine.name, socket=str(qemu.qmp)
    )


class Moved(LabQemu):
    """A QEMU that was started by us, looked into by its rescue monitor."""

    def __init__(self, machine: GuestMachine, lab: Lab, socket: str) -> None:
        super().__init__(machine, Path("qemu"), lab.directory, f"moved-{Path(socket).parent.name}")
        self.rescue = Path(socket).with_name("rescue.qmp")
        (self.pid,) = processes_with(f"{self.rescue.parent}/")


def arguments_of(pid: int) -> list[str]:
    """Its command line."""
    return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]


def processes_with(text: str) -> list[int]:
    """Every QEMU whose command line names it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            ours = text.encode() in path.read_bytes()
            if ours and (path.parent / "exe").readlink().name.startswith("qemu"):
                found.append(int(path.parent.name))
    return found
