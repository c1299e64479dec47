"""Hosts whose QEMUs are fakes of other processes: everything the engine does with them goes over QMP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.scale.farm import Farm
from migrator.core.inventory import Guest, HostFacts
from migrator.core.migration.drivers import Driver
from migrator.core.model import Finding
from migrator.ports import HostLook
from migrator.ports.qemu import Qemu
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.source import SourceEndpoint
from migrator.testing.simulated_site import SimulatedSite

GIB = 1 << 30
#: Of every host.
_MEMORY_BYTES, _CPUS = 4096 * GIB, 4096
#: As a look at a real host over a fast network.
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class GuestSpec:
    """A guest, and where it is at first."""

    name: str
    host: str
    memory_bytes: int
    #: What it writes to, and how fast; 0: it is idle.
    working_bytes: int = 0
    bytes_per_second: float = 0.0
    #: Of its host's link.
    link_bytes_per_second: float = 1.0e9

    @property
    def key(self) -> str:
        """Return the guest's uuid."""
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, self.name))

    def request(self, directory: Path, *, incoming: bool) -> dict[str, Any]:
        """Return what a farm is asked to start."""
        return {
            **asdict(self),
            "uuid": self.key,
            "directory": str(directory),
            "link": self.host,
            "incoming": incoming,
        }


class _Incoming:
    """Implements :class:`migrator.ports.IncomingDestination`."""

    def __init__(self, qemu: Endpoint, socket: str) -> None:
        self.qemu: Qemu = qemu
        self.listen = "tcp:127.0.0.1:0"
        self.notes: tuple[Finding, ...] = ()
        self.socket = socket

    async def discard(self) -> None:
        await self.qemu.quit()


class FarmSite(SimulatedSite):
    """Implements :class:`migrator.ports.Site`; a guest's QEMUs are all in one farm."""

    def __init__(self, hosts: Sequence[str], guests: Sequence[GuestSpec], farms: Sequence[Farm]) -> None:
        super().__init__()
        for name in hosts:
            self.add_host(name)
        self._specs = {guest.key: guest for guest in guests}
        self._farms = {guest.key: farms[n % len(farms)] for n, guest in enumerate(guests)}
        self._guests: dict[str, dict[str, Guest]] = {name: {} for name in hosts}
        self._where: dict[str, str] = {}
        self._arriving: dict[str, tuple[str, str]] = {}
        self._driver: Driver | None = None

    async def fill(self) -> None:
        """Start all guests."""
        for farm in dict.fromkeys(self._farms.values()):
            mine = [key for key, its in self._farms.items() if its is farm]
            for at in range(0, len(mine), 100):
                requests = []
                for key in mine[at : at + 100]:
                    spec = self._specs[key]
                    directory = farm.new_directory(spec.name)
                    requests.append(spec.request(directory, incoming=False))
                    self._put(key, spec.host, str(directory / "qmp"))
                await farm.ask(do="start", qemus=requests)

    def _put(self, key: str, host: str, socket: str) -> None:
        spec = self._specs[key]
        if key in self._where:
            del self._guests[self._where[key]][key]
        self._where[key] = host
        self._guests[host][key] = Guest(
            key=key, uuid=key, name=spec.name, host=host, socket=socket, memory_bytes=spec.memory_bytes
        )

    def in_place(self, _: object, *, driver: Driver | None = None, **__: object) -> FarmSite:
        """Take the place of the function that makes the service's own site."""
        self._driver = driver
        return self

    def prepare(self, sections: object) -> Callable[[], None]:
        """Nothing of a configuration concerns what is simulated."""
        del sections
        return lambda: None

    # --- the port ----------------------------------------------------------------------------------------------------

    async def look(self, host: str) -> HostLook:
        await asyncio.sleep(_LOOK_SECONDS)
        facts = HostFacts(
            memory_total_bytes=_MEMORY_BYTES, memory_free_bytes=_MEMORY_BYTES // 2, cpus=_CPUS, kvm=True
        )
        return HostLook(facts=facts, guests=tuple(self._guests[host].values()))

    async def open(self, host: str, socket: str, *, role: str, **_: Any) -> Any:  # noqa: ARG002 - a farm has all hosts
        end = SourceEndpoint(Address(kind="unix", path=socket), **self._about(socket, role))
        await end.connect()
        return end

    def _about(self, socket: str, role: str) -> dict[str, Any]:
        dead, fence = Path(socket).with_name("dead"), Path(socket).with_name("fence")
        kill = f"[ -e {dead} ] || echo > {fence}; until [ -e {dead} ]; do sleep 0.01; done"
        return {"role": role, "fence_command": kill, "driver": self._driver}

    async def start_destination(self, guest: Guest, source: Any, target: str, **_: Any) -> Any:  # noqa: ARG002 - a farm starts it by itself
        spec, farm = self._specs[guest.key], self._farms[guest.key]
        directory = farm.new_directory(spec.name)
        await farm.ask(do="start", qemus=[spec.request(directory, incoming=True) | {"link": target}])
        socket = str(directory / "qmp")
        self._arriving[guest.key] = (target, socket)
        end = Endpoint(Address(kind="unix", path=socket), **self._about(socket, "destination"))
        await end.connect()
        return _Incoming(end, socket)

    async def clear(self, guest: Guest) -> None:
        arrived = self._arriving.pop(guest.key, None)
        if arrived is not None:
            self._put(guest.key, *arrived)
