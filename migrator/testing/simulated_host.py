"""Simulated host, the guests on it, and the links between two hosts."""

from __future__ import annotations

from dataclasses import dataclass, field

from migrator.core.inventory import Host
from migrator.core.model import RunState
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.testing.link import Link
from migrator.testing.workload import Workload


class LinkPair(Link):
    """The links between two hosts: as fast as the slower of the two, shared with all other streams on either."""

    def __init__(self, out: Link, into: Link) -> None:
        super().__init__()
        self._links = (out, into)

    def join(self, stream: object, most_bytes_per_second: float) -> None:
        for link in self._links:
            link.join(stream, most_bytes_per_second)

    def leave(self, stream: object) -> None:
        for link in self._links:
            link.leave(stream)

    def share(self, stream: object) -> float:
        return min(link.share(stream) for link in self._links)


@dataclass
class SimulatedGuest:
    """One guest, wherever it is."""

    name: str
    uuid: str
    host: str
    workload: Workload
    memory_bytes: int
    vcpus: int
    run: RunState = RunState.RUNNING
    #: What its process is said to hold.
    resident_bytes: int | None = None
    #: Guests' processes come and go; the socket tells them apart.
    generation: int = 0
    #: Processes that were ever started for it besides its first.
    started: int = 0
    obstacle: str = ""
    #: Jobs and exports that a test has under way in it.
    disk_users: DiskUsers = field(default_factory=DiskUsers)

    @property
    def socket(self) -> str:
        return f"/sim/{self.uuid}.{self.generation}"

    def socket_of(self, generation: int) -> str:
        return f"/sim/{self.uuid}.{generation}"


@dataclass
class SimulatedHost:
    """One host; change what you like."""

    name: str
    out: Link
    into: Link
    memory_bytes: int
    #: Every call fails as for a host that does not answer.
    down: bool = False
    #: What starting a destination here fails with.
    refuses: str = ""
    #: Seconds that starting a destination takes.
    start_seconds: float = 0.3
    labels: dict[str, str] = field(default_factory=dict)
    #: What its libvirt has shut off, and why it cannot be asked.
    shut_off_guests: int = 0
    libvirt_error: str = ""

    def configured(self) -> Host:
        """Return the host as the configuration has it."""
        return Host(
            name=self.name,
            address=f"{self.name}.example",
            link_bytes_per_second=self.out.bytes_per_second,
            labels=self.labels,
        )
