"""The hosts of the site, as the engine uses them: :class:`migrator.ports.Site` over SSH, QMP and processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from migrator.core.findings import errors_first
from migrator.core.inventory import Guest
from migrator.core.migration.drivers import Driver
from migrator.core.model import Finding
from migrator.core.policy import Policy
from migrator.core.preflight.managers import Manager, manager, unit_of
from migrator.core.preflight.managers import findings as managing
from migrator.core.process.carriers import Carried
from migrator.core.process.listening import without
from migrator.errors import HostError, MigratorError, QemuError, Unreachable
from migrator.hosts.access import Access
from migrator.hosts.carriers import read_carriers
from migrator.hosts.facts import read_facts
from migrator.hosts.listening import read_listening
from migrator.hosts.local import LocalAccess
from migrator.hosts.managers import Units, read_processes
from migrator.hosts.notice import notice
from migrator.hosts.resident import read_resident
from migrator.hosts.site_config import HostConfig, Reconfigurable
from migrator.hosts.sockets import FoundSocket, RemoteMonitor
from migrator.ports import HostLook, Qemu, Waiting
from migrator.qemu import naming
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.identify import identify
from migrator.qemu.knocks import Knocks
from migrator.site.discovery import Looker
from migrator.site.guest_records import guest_of

#: Seconds that a look may take in all.
_LOOK_SECONDS = 45.0
#: Seconds to open a monitor for a migration.
_OPEN_SECONDS = 5.0


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

    async def settle(self, guest: Guest) -> Sequence[str]:
        """Have the paths that the operator knows lead to a guest that has arrived."""

    async def clear(self, guest: Guest) -> None:
        """Remove what is left of a source that has ended."""

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> list[str]:
        """Remove what guests left that have ended."""


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
        self.driver = driver
        #: Role of every monitor held open, by host and path of its socket.
        self.held: dict[tuple[str, str], str] = {}
        #: What waits for a monitor to answer.
        self.knocks = Knocks()
        self._starting: list[tuple[str, str]] = []
        #: By host: set, and forgotten, when another configuration of it is in force.
        self._configured: dict[str, asyncio.Event] = {}

    def configure(self, config: HostConfig) -> None:
        """Another configuration of a host that is reached in the same way; cannot fail."""
        access, before = self._hosts[config.name]
        if config == before:
            return
        self._hosts[config.name] = access, config
        if config.ssh is not None and isinstance(access, Reconfigurable):
            access.configure(config.ssh)
        if (event := self._configured.pop(config.name, None)) is not None:
            event.set()

    async def configured(self, host: str) -> None:
        """Wait until another configuration of a host is in force."""
        await self._configured.setdefault(host, asyncio.Event()).wait()

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

    @contextlib.contextmanager
    def starting(self, host: str, directory: str) -> Iterator[None]:
        """For as long as a QEMU that will live in that directory is being started: it is no guest."""
        self._starting.append((host, directory))
        try:
            yield
        finally:
            self._starting.remove((host, directory))

    def starts(self, host: str) -> list[str]:
        """Directories of QEMUs that are being started there now."""
        return [directory for name, directory in self._starting if name == host]

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

        return _OpenEndpoint(
            address, role=role, way=way, driver=self.driver, knocks=self.knocks, on_close=let_go
        )

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
        self.knocks.close()
        await asyncio.gather(*(access.close() for access, _ in self._hosts.values()))


class SiteHosts:
    """Implements :class:`migrator.ports.Site`.

    :param reach: shared with `checker` and `launcher`, which open monitors of their own through it.
    """

    def __init__(self, reach: Reach, *, checker: Checker, launcher: Launcher) -> None:
        self._reach = self.reach = reach
        self._checker = checker
        self._launcher = launcher
        self._looker = Looker(reach)
        self._watching: dict[str, Callable[[], None]] = {}
        reach.knocks.on_answer = self._answered

    # --- looking -----------------------------------------------------------------------------------------------------

    async def look(self, host: str) -> HostLook:
        """Facts and guests, read afresh; see :meth:`migrator.site.discovery.Looker.guests`."""
        access, config = self._reach.access(host), self._reach.config(host)
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                qemus = [config.qemu] if config.qemu else []
                facts = await read_facts(access, address=config.address, qemus=qemus)
                guests = await self._looker.guests(host)
                pids = [each.pid for each in guests if each.pid is not None]
                resident = await read_resident(access, pids)
                carried = await read_carriers(access, pids, links=facts.links)
                processes = await read_processes(access, pids)
                listening = await read_listening(access, {*pids, *self._looker.qemus(host)})
        except TimeoutError:
            raise HostError(host, f"it could not be looked at within {_LOOK_SECONDS:g} s") from None
        # Those that wait for a guest listen too, and are no strangers.
        strangers = without(facts.ports, [port for ports in listening.values() for port in ports])
        facts = replace(facts, ports=strangers)
        managers = {pid: manager(process) for pid, process in processes.items()}
        shown = [
            replace(
                each,
                managed_by=managers.get(each.pid or 0, Manager()).name,
                restarts=managers.get(each.pid or 0, Manager()).restarts,
                resident_bytes=resident.get(each.pid or 0),
                listens=listening.get(each.pid or 0, ()),
                network=carried.get(each.pid or 0, Carried()).state,
            )
            for each in guests
        ]
        return HostLook(facts=facts, guests=tuple(shown))

    async def watch(self, host: str, changed: Callable[[], None]) -> None:
        """See :meth:`migrator.ports.Site.watch`: sockets that come or go, monitors that answer again."""
        self._watching[host] = changed
        try:
            while await self._watch(host, changed):
                pass  # for other sockets from now on
        finally:
            self._watching.pop(host, None)

    async def _watch(self, host: str, changed: Callable[[], None]) -> bool:
        """True: another configuration of the host is in force meanwhile."""
        watching = asyncio.create_task(
            notice(self._reach.access(host), self._reach.config(host).sockets, changed),
            name=f"watch sockets of {host}",
        )
        configured = asyncio.create_task(self._reach.configured(host), name=f"configuration of {host}")
        try:
            await asyncio.wait({watching, configured}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
                return False
            return True
        finally:
            for task in (watching, configured):
                task.cancel()
            await asyncio.wait({watching, configured})

    def _answered(self, path: str) -> None:
        """A monitor that was silent is not any more."""
        changed = self._watching.get(self._looker.asked.pop(path, ""))
        if changed is not None:
            changed()

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
        if role == "source" and (host, socket) not in self._looker.known and end.monitor.connected:
            try:
                found = FoundSocket(path=socket, pid=end.process.pid if end.process else None)
                first = naming.of_process(end.identity)
                self._looker.known[host, socket] = guest_of(
                    host, found, await identify(end.monitor), first=first
                )
            except QemuError:
                pass  # what its command line says will do
        return end

    async def check(self, guest: Guest, source: Qemu, target: str, policy: Policy) -> tuple[Finding, ...]:
        """See :class:`Checker`; and what who manages the guest would do when it has left."""
        return errors_first([*managing(guest), *await self._checker.check(guest, source, target, policy)])

    async def hold_off(self, guest: Guest) -> None:
        """See :meth:`migrator.ports.Site.hold_off`: a unit of systemd is told."""
        if unit := unit_of(guest):
            await Units(self._reach.access(guest.host)).hold_off(unit)

    async def let_be(self, guest: Guest) -> None:
        """See :meth:`migrator.ports.Site.let_be`."""
        if unit := unit_of(guest):
            await Units(self._reach.access(guest.host)).let_be(unit)

    async def start_destination(
        self, guest: Guest, source: Qemu, target: str, *, migration: str, accepted: Sequence[str] = ()
    ) -> Waiting:
        """See :class:`Launcher`."""
        return await self._launcher.start_destination(
            guest, source, target, migration=migration, accepted=accepted
        )

    async def carried(self, host: str, pid: int) -> Carried:
        """See :func:`read_carriers`."""
        return (await read_carriers(self._reach.access(host), [pid]))[pid]

    async def abandon(self, host: str, *, migration: str) -> None:
        """See :class:`Launcher`."""
        await self._launcher.abandon(host, migration=migration)

    async def settle(self, guest: Guest) -> Sequence[str]:
        """See :class:`Launcher`."""
        return await self._launcher.settle(guest)

    async def clear(self, guest: Guest) -> None:
        """See :class:`Launcher`."""
        await self._launcher.clear(guest)

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> Sequence[str]:
        """See :class:`Launcher`."""
        return await self._launcher.sweep(host, under_way=under_way)

    async def close(self) -> None:
        """Let go of every host."""
        await self._reach.close()
