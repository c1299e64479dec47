"""Hosts whose QEMUs are fakes of other processes: everything the engine does with them goes over QMP."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.scale.farm import Farm
from bench.simulated_service import ServiceSite
from migrator.core.inventory import Guest, HostFacts
from migrator.core.migration.drivers import Driver
from migrator.core.model import Finding, RunState
from migrator.ports import HostLook, IncomingDestination
from migrator.ports.qemu import Qemu
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.source import SourceEndpoint

GIB = 1 << 30
#: Of every host.
_MEMORY_BYTES, _CPUS = 4096 * GIB, 4096
#: As a look at a real host over a fast network.
_LOOK_SECONDS = 0.02
#: What the farms said is believed for so long.
_SEEN_SECONDS = 1.0


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

    @cached_property
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
        self.new_images: tuple[str, ...] = ()
        self.socket = socket

    async def discard(self, *, images: bool = False) -> None:  # noqa: ARG002 - it has none
        await self.qemu.quit()


async def fill(guests: Sequence[GuestSpec], farms: Sequence[Farm]) -> None:
    """Start the QEMUs of all guests, where :class:`FarmSite` expects them."""
    for number, farm in enumerate(farms):
        mine = guests[number :: len(farms)]
        for at in range(0, len(mine), 100):
            requests = [
                each.request(farm.new_directory(each.name), incoming=False) for each in mine[at : at + 100]
            ]
            await farm.ask(do="start", qemus=requests)


class FarmSite(ServiceSite):
    """Implements :class:`migrator.ports.Site`; a guest's QEMUs are all in one farm, and say where it is."""

    def __init__(self, hosts: Sequence[str], guests: Sequence[GuestSpec], farms: Sequence[Farm]) -> None:
        super().__init__()
        for name in hosts:
            self.add_host(name)
        self._specs = {guest.key: guest for guest in guests}
        self._farms = {guest.key: farms[n % len(farms)] for n, guest in enumerate(guests)}
        self._seen: dict[str, list[Guest]] = {}
        #: As they were made last, by directory, and what of: what is simulated shall cost the service little.
        self._guests: dict[str, tuple[dict[str, str], Guest]] = {}
        self._seen_at = float("-inf")
        self._seeing = asyncio.Lock()
        self._driver: Driver | None = None
        self._lease_holds: Callable[[], bool] = lambda: True

    async def _see(self) -> dict[str, list[Guest]]:
        """Return the guests of each host as they were a moment ago."""
        async with self._seeing:
            now = asyncio.get_running_loop().time()
            if now - self._seen_at > _SEEN_SECONDS:
                self._seen = {}
                for farm in dict.fromkeys(self._farms.values()):
                    for each in await farm.ask(do="list"):
                        self._seen.setdefault(each["host"], []).append(self._guest(each))
                self._seen_at = now
        return self._seen

    def _guest(self, each: dict[str, str]) -> Guest:
        made_of, guest = self._guests.get(each["directory"], (None, None))
        if guest is None or made_of != each:
            spec = self._specs[each["uuid"]]
            guest = Guest(
                key=spec.key,
                uuid=spec.key,
                name=spec.name,
                host=each["host"],
                socket=f"{each['directory']}/qmp",
                memory_bytes=spec.memory_bytes,
                run=RunState(each["run"]),
            )
            self._guests[each["directory"]] = each, guest
        return guest

    def in_place(self, _: object, *, driver: Driver | None = None, **__: object) -> FarmSite:
        """Take the place of the function that makes the service's own site."""
        self._driver = driver
        return self

    def act_as(self, driver: Driver, lease_holds: Callable[[], bool]) -> None:
        """See :meth:`migrator.site.hosts.SiteHosts.act_as`."""
        self._driver, self._lease_holds = driver, lease_holds

    def driven_by(self, driver: Driver, lease_holds: Callable[[], bool]) -> FarmSite:
        """See :meth:`migrator.site.from_settings.ConfiguredSite.driven_by`."""
        same = copy.copy(self)
        same.act_as(driver, lease_holds)
        return same

    def mark_with(self, number: int) -> None:
        """See :meth:`migrator.site.hosts.SiteHosts.mark_with`."""
        if self._driver is not None:
            self._driver = replace(self._driver, lease=number)

    def note_driven_elsewhere(self, *_: object, **__: object) -> None:
        """A look here opens no monitor."""

    def forget_driven_elsewhere(self, migration: str) -> None:
        """See :meth:`note_driven_elsewhere`."""

    # --- the port ----------------------------------------------------------------------------------------------------

    async def look(self, host: str) -> HostLook:
        await asyncio.sleep(_LOOK_SECONDS)
        facts = HostFacts(
            memory_total_bytes=_MEMORY_BYTES, memory_free_bytes=_MEMORY_BYTES // 2, cpus=_CPUS, kvm=True
        )
        return HostLook(facts=facts, guests=tuple((await self._see()).get(host, ())))

    async def open(self, host: str, socket: str, *, role: str, **_: Any) -> Any:  # noqa: ARG002 - a farm has all hosts
        end = SourceEndpoint(Address(kind="unix", path=socket), **self._about(socket, role))
        await end.connect()
        return end

    def _about(self, socket: str, role: str) -> dict[str, Any]:
        dead, fence = Path(socket).with_name("dead"), Path(socket).with_name("fence")
        # It ends by itself, whoever is killed meanwhile.
        waits = f"n=0; until [ -e {dead} ] || [ $n = 300 ]; do sleep 0.05; n=$((n + 1)); done; [ -e {dead} ]"
        kill = f"[ -e {dead} ] || echo > {fence}; {waits}"
        return {"role": role, "fence_command": kill, "driver": self._driver, "lease_holds": self._lease_holds}

    async def start_destination(self, guest: Guest, source: Any, target: str, **_: Any) -> Any:  # noqa: ARG002 - a farm starts it by itself
        spec, farm = self._specs[guest.key], self._farms[guest.key]
        directory = farm.new_directory(spec.name)
        waiting = spec.request(directory, incoming=True) | {"host": target, "link": target}
        await farm.ask(do="start", qemus=[waiting])
        socket = str(directory / "qmp")
        end = Endpoint(Address(kind="unix", path=socket), **self._about(socket, "destination"))
        await end.connect()
        incoming: IncomingDestination = _Incoming(end, socket)
        return incoming

    async def clear(self, guest: Guest) -> None:  # noqa: ARG002 - it has quit
        self._seen_at = float("-inf")
