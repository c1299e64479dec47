"""A site of simulated hosts: everything the engine asks of hosts and QEMUs, with :class:`Simulator` behind it.

For scale, and for faults at a whole site; what single QEMUs do is tested on real ones. Time is the event loop's, so
that under looptime an evacuation of an hour takes seconds.

::

    site = SimulatedSite()
    site.add_host("a", link=100 * MIB); site.add_host("b", link=100 * MIB)
    site.add_guest("vm-1", host="a", workload=steady(64 * MIB, 5 * MIB), memory_bytes=512 * MIB)
    ...                                     # give it to an Engine
    site.running("vm-1")                    # the hosts it runs on: one, always
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from migrator.core.image_removal import ImageRemoval
from migrator.core.inventory import Guest, HostFacts
from migrator.core.model import Finding, MigrationStatus, RunState
from migrator.core.policy import Policy
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.core.process.guest_network import GuestTaps
from migrator.errors import ComparisonFailed, HostError, QemuError
from migrator.ports import HostLook, PathHealth, StreamPath, StreamTunnel
from migrator.testing.link import Link
from migrator.testing.simulated_host import SimulatedGuest, SimulatedHost
from migrator.testing.simulated_qemu import SimulatedQemu, SimulatedStream
from migrator.testing.workload import MIB, Workload, idle


class _Waiting:
    """Implements :class:`migrator.ports.IncomingDestination`."""

    def __init__(self, qemu: SimulatedQemu) -> None:
        self.qemu = qemu
        self.listen = "sim"
        self.notes: tuple[Finding, ...] = ()
        self.new_images: tuple[str, ...] = ()
        self.socket = qemu.socket

    async def discard(self, *, images: bool = False) -> None:
        if not self.qemu.dead and self.qemu.waits:
            self.qemu.die()


class _WholePath:
    """A network that carries everything."""

    addresses = ("127.0.0.1",)

    async def probe(self, address: str) -> PathHealth:
        return PathHealth(carries=True)


class SimulatedSite:
    """Implements :class:`migrator.ports.Site`.

    :ivar started: for every guest's uuid, how often a destination was started.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, SimulatedHost] = {}
        self.machines: dict[str, SimulatedGuest] = {}
        self.waiting: dict[tuple[str, str], SimulatedQemu] = {}
        self.streams: dict[str, SimulatedStream] = {}
        self.started: dict[str, int] = {}
        #: Destinations that were started for a migration.
        #: Whether images went with what was abandoned; and paths of images that were put aside.
        self.abandoned: list[bool] = []
        self.put_away: list[str] = []
        #: Why images are not the same, by migration; and paths of images that were removed.
        self.unlike: dict[str, str] = {}
        self.removed: list[str] = []
        self.made: dict[str, list[SimulatedQemu]] = {}
        #: Hosts that were swept, and host and socket of every source that was cleared away.
        self.swept: list[str] = []
        self.cleared: list[tuple[str, str]] = []
        #: Findings by guest's name and host, as a check would give them.
        self.findings: dict[tuple[str, str], tuple[Finding, ...]] = {}
        #: Why a check against a host fails, by its name.
        self.unasked: dict[str, str] = {}
        #: Of every check, the policy that it was asked about.
        self.policies: list[str] = []

    def add_host(
        self, name: str, *, link: float = 1000 * MIB, memory_bytes: int = 64 << 30, **how: Any
    ) -> SimulatedHost:
        """Add a host with a link of so many bytes per second in either direction."""
        host = SimulatedHost(name, Link(link), Link(link), memory_bytes, **how)
        self.hosts[name] = host
        return host

    def add_guest(
        self,
        name: str,
        *,
        host: str,
        workload: Workload | None = None,
        memory_bytes: int = 512 * MIB,
        run: RunState = RunState.RUNNING,
        resident_bytes: int | None = None,
        obstacle: str = "",
        namesake: bool = False,
    ) -> str:
        """Add a guest that runs; return its uuid.

        :param namesake: another has that name already.
        """
        machine = SimulatedGuest(
            name,
            str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name} on {host}" if namesake else name)),
            host,
            workload or idle(),
            memory_bytes,
            1,
            run,
            resident_bytes=resident_bytes,
            obstacle=obstacle,
        )
        self.machines[machine.uuid] = machine
        return machine.uuid

    def running(self, name: str) -> list[str]:
        """Return every host on which this guest runs at this moment."""
        return self.running_machine(next(each for each in self.machines.values() if each.name == name))

    def running_machine(self, machine: SimulatedGuest) -> list[str]:
        """See :meth:`running`."""
        stream = self.streams.get(machine.socket)
        if stream is None:
            return [machine.host] if machine.run is RunState.RUNNING else []
        found = []
        for end in stream.listeners:
            if end.dead:
                continue
            run = stream.simulator.run
            if not end.is_destination and run is RunState.RUNNING:
                found.append(end.host)
            if end.is_destination and stream.simulator.at_destination:
                found.append(end.host)
        return found

    # --- the port ----------------------------------------------------------------------------------------------------

    def _up(self, host: str) -> SimulatedHost:
        found = self.hosts[host]
        if found.down:
            raise HostError(host, "it does not answer")
        return found

    async def watch(self, host: str, changed: Callable[[], None]) -> None:
        """Nothing is noticed: looks have to do."""
        await asyncio.Event().wait()

    async def look(self, host: str) -> HostLook:
        await asyncio.sleep(0.01)
        here = self._up(host)
        guests = [machine for machine in self.machines.values() if machine.host == host]
        free = here.memory_bytes - sum(machine.memory_bytes for machine in guests)
        facts = HostFacts(
            memory_total_bytes=here.memory_bytes,
            memory_free_bytes=max(1, free),
            cpus=1000,
            kvm=True,
            shut_off_guests=here.shut_off_guests,
            libvirt_error=here.libvirt_error,
        )
        return HostLook(
            facts=facts,
            guests=tuple(
                Guest(
                    key=machine.uuid,
                    uuid=machine.uuid,
                    name=machine.name,
                    host=host,
                    socket=machine.socket,
                    memory_bytes=machine.memory_bytes,
                    resident_bytes=machine.resident_bytes,
                    run=machine.run,
                    obstacle=machine.obstacle,
                    obstacle_code="not-movable" if machine.obstacle else "",
                )
                for machine in guests
            ),
        )

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> SimulatedQemu:
        await asyncio.sleep(0.001)
        if not absent:
            self._up(host)
        # /sim/UUID.GENERATION
        machine = self.machines.get(socket.rpartition("/")[2].partition(".")[0])
        if machine is not None and machine.socket == socket:
            return self._source_of(machine, host, socket, known=bool(identity))
        if (host, socket) in self.waiting:
            return self.waiting[host, socket]
        for end in [end for made in self.made.values() for end in made] if identity else ():
            if end.dead and (end.host, end.socket) == (host, socket):
                return end
        raise QemuError(f"{host}:{socket}", "there is no QEMU")

    def _source_of(self, machine: SimulatedGuest, host: str, socket: str, *, known: bool) -> SimulatedQemu:
        stream = self.streams.get(socket)
        ends = [end for end in stream.listeners if end.socket == socket] if stream is not None else []
        for end in ends:
            if end.dead and not known:
                raise QemuError(f"{host}:{socket}", "there is no QEMU")
            over = end.stream is not None and end.stream.simulator.status in (
                MigrationStatus.FAILED,
                MigrationStatus.CANCELLED,
            )
            if end.dead or not over:
                end.gone = False
                return end
        return SimulatedQemu(self, machine, host, socket)

    async def check(self, guest: Guest, source: Any, target: str, policy: Policy) -> tuple[Finding, ...]:
        self._up(target)
        self.policies.append(policy.name)
        if target in self.unasked:
            raise HostError(target, self.unasked[target])
        return self.findings.get((guest.name, target), ())

    async def start_destination(
        self,
        guest: Guest,
        source: Any,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> _Waiting:
        self.started[guest.key] = self.started.get(guest.key, 0) + 1
        host = self._up(target)
        await asyncio.sleep(host.start_seconds)
        if host.refuses:
            raise HostError(target, host.refuses)
        machine = self.machines[guest.key]
        machine.started += 1
        socket = machine.socket_of(machine.started)
        qemu = SimulatedQemu(self, machine, target, socket)
        self.waiting[target, socket] = qemu
        self.made.setdefault(migration, []).append(qemu)
        return _Waiting(qemu)

    async def mend_clock(self, host: str, end: Any, *, stood_seconds: float) -> str:
        return ""

    async def guest_taps(self, host: str, pid: int, *, taps: Sequence[str] = ()) -> GuestTaps:
        return GuestTaps(taps=())

    async def keep_images(self, host: str, *, migration: str) -> None:
        self._up(host)

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        self.put_away += paths
        return {}

    async def compare_images(self, removal: ImageRemoval) -> ImageRemoval:
        self._up(removal.host)
        if removal.migration in self.unlike:
            raise ComparisonFailed(self.unlike[removal.migration])
        return removal

    async def remove_images(self, removal: ImageRemoval) -> Mapping[str, str]:
        self._up(removal.host)
        self.removed += [image.path for image in removal.images]
        return {}

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        self._up(host)
        self.abandoned.append(images)
        for qemu in self.made.get(migration, ()):
            if not qemu.dead and qemu.waits:
                qemu.die()

    async def suppress_restart(self, guest: Guest) -> None:
        self._up(guest.host)

    async def allow_restart(self, guest: Guest) -> None:
        self._up(guest.host)

    async def settle(self, guest: Guest) -> Sequence[str]:
        self._up(guest.host)
        return ()

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> Sequence[str]:
        self._up(host)
        self.swept.append(host)
        return ()

    async def clear(self, guest: Guest) -> None:
        self._up(guest.host)
        self.cleared.append((guest.host, guest.socket))
        machine = self.machines[guest.key]
        if guest.socket != machine.socket:
            return  # it was done before
        stream = self.streams.pop(machine.socket, None)
        if stream is not None:
            for end in stream.listeners:
                if end.is_destination and not end.dead:
                    machine.host = end.host
                    machine.generation = machine.started
                    machine.run = end.shown()[0]

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice:
        return TlsChoice()

    async def spare_cpus(self, source: str, target: str) -> float | None:
        return None

    def stream_path(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamPath:
        return _WholePath()

    def stream_tunnel(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamTunnel:
        raise NotImplementedError("hosts of a simulated site have no SSH")

    async def close(self) -> None:
        return
