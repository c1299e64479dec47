"""The hosts of the site, as the engine uses them: :class:`migrator.ports.Site` over SSH, QMP and processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from migrator.core.drivers import Driver
from migrator.core.inventory import Guest
from migrator.core.model import Finding, RunState
from migrator.core.policy import Policy
from migrator.errors import HostError, MigratorError, Occupied, QemuError, Unreachable
from migrator.hosts.access import Access
from migrator.hosts.facts import read_facts
from migrator.hosts.local import LocalAccess
from migrator.hosts.resident import read_resident
from migrator.hosts.site_config import HostConfig
from migrator.hosts.sockets import FoundSocket, RemoteMonitor, find_sockets
from migrator.ports import HostLook, Qemu, Waiting
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.identify import Identity, identify, identify_at

#: Guests of one host that are asked at a time.
_ASKED_AT_ONCE = 16
#: Monitors of one process that are tried; one that is stopped greets at none.
_MONITORS_TRIED = 3
#: Seconds that a look may take in all.
_LOOK_SECONDS = 45.0
#: Seconds to open a monitor for a migration.
_OPEN_SECONDS = 5.0
#: Run states of an end of a migration in which the guest is not, or not yet.
_ELSEWHERE = frozenset({RunState.INMIGRATE, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE})


class Checker(Protocol):
    """What hosts tell against a target; see :meth:`migrator.ports.Site.check`."""

    async def check(self, guest: Guest, source: Qemu, target: str, policy: Policy) -> tuple[Finding, ...]:
        """Changes nothing, starts nothing."""


class Launcher(Protocol):
    """Starts and clears away QEMUs; see the calls of the same names of :class:`migrator.ports.Site`."""

    async def start_destination(
        self, guest: Guest, source: Qemu, target: str, *, migration: str, accepted: Sequence[str] = ()
    ) -> Waiting:
        """Start the QEMU that the guest moves into."""

    async def abandon(self, host: str, *, migration: str) -> None:
        """Remove what an earlier start has left."""

    async def clear(self, guest: Guest) -> None:
        """Remove what is left of a source that has ended."""


class _OpenEndpoint(Endpoint):
    """Says when it is closed."""

    def __init__(self, address: Address, *, on_close: Callable[[], None], **how: Any) -> None:
        super().__init__(address, **how)
        self._on_close = on_close

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._on_close()


class Reach:
    """Every host, how to reach it, and the monitors that this controller holds open.

    :param hosts: by name: the way to it and what is configured of it.
    :param driver: who marks the QEMUs that are changed; ``None`` for whoever changes none.
    """

    def __init__(
        self, hosts: Mapping[str, tuple[Access, HostConfig]], *, driver: Driver | None = None
    ) -> None:
        self._hosts = dict(hosts)
        self._driver = driver
        #: Role of every monitor held open, by host and path of its socket.
        self.held: dict[tuple[str, str], str] = {}

    def access(self, host: str) -> Access:
        """The way to a host.

        :raise HostError: when none of that name is configured.
        """
        return self._host(host)[0]

    def config(self, host: str) -> HostConfig:
        """What is configured of a host.

        :raise HostError: when none of that name is configured.
        """
        return self._host(host)[1]

    def _host(self, name: str) -> tuple[Access, HostConfig]:
        try:
            return self._hosts[name]
        except KeyError:
            raise HostError(name, "it is not in the configuration") from None

    def endpoint(self, host: str, socket: str, *, role: str) -> Endpoint:
        """One end of a migration at a QMP socket of a host, not connected yet. It counts as held until it is closed."""
        access = self.access(host)
        key = host, socket
        self.held[key] = role
        if isinstance(access, LocalAccess):
            address, way = Address(kind="unix", path=socket), None
        else:
            address, way = Address(kind="ssh", host=host, path=socket), RemoteMonitor(access, socket)

        def let_go() -> None:
            self.held.pop(key, None)

        return _OpenEndpoint(address, role=role, way=way, driver=self._driver, on_close=let_go)

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> Endpoint:
        """As :meth:`migrator.ports.Site.open`. A process that lives and is silent is opened too where its identity is
        given: its looks will tell.
        """
        end = self.endpoint(host, socket, role=role)
        try:
            if identity:
                await end.take_hold(identity)
                if end.process is not None and end.process.alive:
                    try:
                        await end.connect(timeout=_OPEN_SECONDS)
                    except Unreachable:
                        pass  # its looks will tell
                elif not end.dead and not absent:
                    raise HostError(
                        host, f"whether pid {identity['pid']} of {end.name} lives cannot be told now"
                    )
            else:
                await end.connect(timeout=_OPEN_SECONDS)
        except BaseException as error:
            await end.close()
            if isinstance(error, MigratorError) and not isinstance(error, HostError | QemuError):
                raise QemuError(end.name, str(error)) from error
            raise
        return end

    async def close(self) -> None:
        """Let go of every host."""
        await asyncio.gather(*(access.close() for access, _ in self._hosts.values()))


class SiteHosts:
    """Implements :class:`migrator.ports.Site`.

    :param reach: shared with `checker` and `launcher`, which open monitors of their own through it.
    """

    def __init__(self, reach: Reach, *, checker: Checker, launcher: Launcher) -> None:
        self._reach = reach
        self._checker = checker
        self._launcher = launcher
        #: Every guest as it was last seen, by host and path of its socket.
        self._known: dict[tuple[str, str], Guest] = {}

    # --- looking -----------------------------------------------------------------------------------------------------

    async def look(self, host: str) -> HostLook:
        """Facts and guests, read afresh.

        A guest whose monitor this controller holds as a source's is shown as it was before; a destination's is left
        out. QEMUs that only wait, or that a guest has left, are shown with the run state that says so.
        """
        access, config = self._reach.access(host), self._reach.config(host)
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                qemus = [config.qemu] if config.qemu else []
                facts = await read_facts(access, address=config.address, qemus=qemus)
                found = await find_sockets(access, config.sockets)
                limit = asyncio.Semaphore(_ASKED_AT_ONCE)
                asked = [self._ask(host, sockets, limit) for sockets in _by_process(found)]
                guests = [guest for guest in await asyncio.gather(*asked) if guest is not None]
        except TimeoutError:
            raise HostError(host, f"it could not be looked at within {_LOOK_SECONDS:g} s") from None
        for key in [key for key in self._known if key[0] == host and key not in self._reach.held]:
            del self._known[key]
        resident = await read_resident(access, [guest.pid for guest in guests if guest.pid is not None])
        guests = [
            replace(guest, resident_bytes=resident.get(guest.pid or 0)) for guest in _told_apart(guests)
        ]
        self._known |= {(host, guest.socket): guest for guest in guests}
        return HostLook(facts=facts, guests=tuple(guests))

    async def _ask(self, host: str, sockets: list[FoundSocket], limit: asyncio.Semaphore) -> Guest | None:
        """The guest behind the sockets of one process; ``None`` where there is none."""
        if held := self._held(host, sockets):
            return None if held[1] == "destination" else self._as_known(host, held[0])
        for each in sockets:
            if each.libvirt:
                text = "libvirt manages it: move it with virsh migrate"
                return replace(self._as_known(host, each), obstacle=text, obstacle_code="libvirt")
        silent: FoundSocket | None = None
        for each in sorted(sockets, key=lambda each: each.busy)[:_MONITORS_TRIED]:
            try:
                async with limit:
                    identity = await self._identify(host, each.path)
                return _guest(host, each, identity)
            except Occupied:
                silent = silent or each
            except QemuError:
                continue  # it went away, or does not speak QMP
        if silent is None:
            return None
        if held := self._held(host, sockets):  # we took it meanwhile
            return None if held[1] == "destination" else self._as_known(host, held[0])
        guest = self._as_known(host, silent)
        if silent.busy:
            text = f"its monitor is held by {silent.holders}: close that, or give QEMU a second -qmp"
            return replace(guest, obstacle=text, obstacle_code="monitor-held")
        text = (
            f"its monitor {silent.path} does not greet: QEMU is stopped or stuck, or a client holds it that cannot be "
            "seen from its host"
        )
        return replace(guest, obstacle=text, obstacle_code="monitor-silent")

    def _held(self, host: str, sockets: Iterable[FoundSocket]) -> tuple[FoundSocket, str] | None:
        """The socket of these that this controller holds, with its role."""
        for each in sockets:
            if role := self._reach.held.get((host, each.path)):
                return each, role
        return None

    async def _identify(self, host: str, path: str) -> Identity:
        local = await self._reach.access(host).forward(path)
        return await identify_at(local, name=f"{host}:{path}")

    def _as_known(self, host: str, found: FoundSocket) -> Guest:
        """A guest that cannot be asked: as it was, if it is the same process, else as its command line says."""
        known = self._known.get((host, found.path))
        if known is not None and found.pid in (known.pid, None):
            return replace(known, obstacle="", obstacle_code="")
        return _guest(host, found, Identity(uuid=found.uuid, name=found.name))

    # --- using -------------------------------------------------------------------------------------------------------

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> Qemu:
        """See :meth:`Reach.open`."""
        end = await self._reach.open(host, socket, role=role, identity=identity, absent=absent)
        if role == "source" and (host, socket) not in self._known and end.monitor.connected:
            try:
                found = FoundSocket(path=socket, pid=end.process.pid if end.process else None)
                self._known[host, socket] = _guest(host, found, await identify(end.monitor))
            except QemuError:
                pass  # what its command line says will do
        return end

    async def check(self, guest: Guest, source: Qemu, target: str, policy: Policy) -> tuple[Finding, ...]:
        """See :class:`Checker`."""
        return await self._checker.check(guest, source, target, policy)

    async def start_destination(
        self, guest: Guest, source: Qemu, target: str, *, migration: str, accepted: Sequence[str] = ()
    ) -> Waiting:
        """See :class:`Launcher`."""
        return await self._launcher.start_destination(
            guest, source, target, migration=migration, accepted=accepted
        )

    async def abandon(self, host: str, *, migration: str) -> None:
        """See :class:`Launcher`."""
        await self._launcher.abandon(host, migration=migration)

    async def clear(self, guest: Guest) -> None:
        """See :class:`Launcher`."""
        await self._launcher.clear(guest)

    async def close(self) -> None:
        """Let go of every host."""
        await self._reach.close()


def _by_process(found: Iterable[FoundSocket]) -> list[list[FoundSocket]]:
    """Sockets that somebody listens at, those of one process together; it may have several monitors."""
    groups: dict[int | str, list[FoundSocket]] = {}
    for each in found:
        if each.listening:
            groups.setdefault(each.path if each.pid is None else each.pid, []).append(each)
    return list(groups.values())


def _guest(host: str, found: FoundSocket, identity: Identity) -> Guest:
    key = identity.uuid or (f"{host}/{identity.name}" if identity.name else f"{host}:{found.path}")
    return Guest(
        key=key,
        host=host,
        uuid=identity.uuid,
        name=identity.name,
        socket=found.path,
        pid=found.pid,
        memory_bytes=identity.memory_bytes,
        vcpus=identity.vcpus,
        run=identity.run,
    )


def _told_apart(guests: list[Guest]) -> Iterable[Guest]:
    """No key twice on a host: by their sockets where names are equal; equal uuids are for a person to mend."""
    # The two ends of a migration within a host have one uuid: the guest is the end that it has not left.
    count = Counter(guest.key for guest in guests if guest.run not in _ELSEWHERE)
    for guest in guests:
        if count[guest.key] > 1 or (guest.run in _ELSEWHERE and count[guest.key]):
            other = replace(guest, key=f"{guest.host}:{guest.socket}")
            if guest.uuid and guest.run not in _ELSEWHERE and not guest.obstacle:
                text = f"another QEMU on host {guest.host} has the same uuid {guest.uuid}: give one of them another"
                other = replace(other, obstacle=text, obstacle_code="not-movable")
            yield other
        else:
            yield guest
