"""Connections to the hosts of the site, and the monitors that this controller holds open there."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from migrator.core.migration.drivers import Driver
from migrator.errors import HostError, MigratorError, Occupied, QemuError, Unreachable
from migrator.hosts.access import HostAccess
from migrator.hosts.guard import GuardPace, HostGuard
from migrator.hosts.host_config import HostConfig, Reconfigurable
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import RemoteMonitorTransport
from migrator.hosts.stream_tunnel import TunnelEnd
from migrator.ports import GuestProcess
from migrator.qemu import guard as guard_program
from migrator.qemu.address import Address
from migrator.qemu.pending_connects import PendingConnects
from migrator.qemu.source import SourceEndpoint
from migrator.site.monitor_clients import MonitorClients
from migrator.site.recent_facts import RecentFacts
from migrator.site.recent_processes import RecentProcesses

#: Said of a host that the configuration does not have, or has no more.
NOT_CONFIGURED = "it is not in the configuration"
#: The monitors of a destination that we start: the second is for whoever has to end it.
_CONTROL, _RESCUE = "/control.qmp", "/rescue.qmp"
#: Seconds to open a monitor for a migration.
_OPEN_SECONDS = 5.0
#: ... where a former controller may have it: by then that one's connection is ended.
_FORMER_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class DrivenElsewhere:
    """Where a migration is that another controller drives."""

    #: Host and path of the socket.
    source: tuple[str, str]
    target: str
    #: Path of the socket there; empty while it is not known.
    destination: str = ""

    def is_destination(self, migration: str, socket: str) -> bool:
        """Tell whether that socket of the target is the destination's: in a directory that is named for it."""
        directory = socket.rpartition("/")[0].rpartition("/")[2]
        return socket == self.destination or directory.rpartition("-")[0] == migration


class _OpenEndpoint(SourceEndpoint):
    """An endpoint that reports when it is closed."""

    def __init__(
        self,
        address: Address,
        *,
        on_close: Callable[[], None],
        before_connect: Callable[[], Awaitable[None]],
        ending_former: Callable[[], Callable[[], Awaitable[None]] | None],
        **how: Any,
    ) -> None:
        super().__init__(address, **how)
        self._on_close, self._before_connect = on_close, before_connect
        self._ending_former = ending_former
        self._was_connected = False
        self._behind: asyncio.Task[None] | None = None

    async def connect(self, *, timeout: float = 5.0) -> None:
        if not self._was_connected:
            await self._before_connect()
        elif self._behind is None or self._behind.done():
            # Its guest may stand still now: neither the journal nor that host is waited for.
            self._behind = asyncio.create_task(self._settle(), name=f"clients of {self.name}")
        await self._connect_past_former(timeout)
        self._was_connected = True

    async def _connect_past_former(self, timeout: float) -> None:
        if (end_former := self._ending_former()) is not None:
            try:
                await super().connect(timeout=min(timeout, _FORMER_SECONDS))
                return
            except Occupied:
                await end_former()
        await super().connect(timeout=timeout)

    async def _settle(self) -> None:
        await self._before_connect()

    async def close(self) -> None:
        try:
            if self._behind is not None:
                self._behind.cancel()
                await asyncio.wait({self._behind})
            await super().close()
        finally:
            self._on_close()


class HostConnections:
    """Every host, how to reach it, and the monitors that this controller holds open.

    :param hosts: by name: the way to it and what is configured of it.
    :param driver: who marks the QEMUs that are changed; ``None`` for whoever changes none.
    :param lease_holds: see :class:`~migrator.qemu.claim.DriverClaim`.
    :param clients: where other controllers may take the place of this one.
    """

    def __init__(
        self,
        hosts: Mapping[str, tuple[HostAccess, HostConfig]],
        *,
        driver: Driver | None = None,
        lease_holds: Callable[[], bool] = lambda: True,
        clients: MonitorClients | None = None,
    ) -> None:
        self._hosts = dict(hosts)
        self._clients = clients
        self._lease_holds = lease_holds
        self.driver = driver
        #: Role of every monitor held open, by host and path of its socket.
        self.held: dict[tuple[str, str], str] = {}
        #: Migrations that another controller drives, by id: it holds their monitors.
        self.driven_elsewhere: dict[str, DrivenElsewhere] = {}
        #: What waits for a monitor to answer.
        self.pending_connects = PendingConnects()
        self.facts = RecentFacts(self)
        self.processes = RecentProcesses()
        self._starting: list[tuple[str, str]] = []
        #: The guards of hosts whose guests move away.
        self._guards: dict[str, HostGuard] = {}
        self._pace = GuardPace()
        #: By host: set, and forgotten, when another configuration of it is in force.
        self._configured: dict[str, asyncio.Event] = {}

    def driven_by(self, driver: Driver, lease_holds: Callable[[], bool]) -> Self:
        """Return the same connections for whoever changes QEMUs under another right; all else is shared."""
        same = copy.copy(self)
        same.act_as(driver, lease_holds)
        return same

    def act_as(self, driver: Driver, lease_holds: Callable[[], bool]) -> None:
        """Change QEMUs under this right from now on."""
        self.driver, self._lease_holds = driver, lease_holds

    def role(self, host: str, socket: str) -> str | None:
        """Return the role in which this controller, or another that it gave a migration to, holds a monitor."""
        if role := self.held.get((host, socket)):
            return role
        for migration, each in self.driven_elsewhere.items():
            if (host, socket) == each.source:
                return "source"
            if host == each.target and each.is_destination(migration, socket):
                return "destination"
        return None

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

    def access(self, host: str) -> HostAccess:
        """The way to a host.

        :raise HostError: when none of that name is configured.
        """
        return self._host(host)[0]

    def config(self, host: str) -> HostConfig:
        """Return what is configured of a host.

        :raise HostError: when none of that name is configured.
        """
        return self._host(host)[1]

    def tunnel_end(self, host: str) -> TunnelEnd:
        """Return a host as one end of an SSH tunnel.

        :raise HostError: none of that name is configured.
        """
        access, config = self._host(host)
        ssh = config.ssh
        if ssh is None:
            return TunnelEnd(access=access, server=config.addresses[0])
        return TunnelEnd(access=access, server=ssh.host, port=ssh.port, user=ssh.user, ssh=ssh)

    @contextlib.contextmanager
    def starting(self, host: str, directory: str) -> Iterator[None]:
        """For as long as a QEMU that will live in that directory is being started: it is no guest."""
        self._starting.append((host, directory))
        try:
            yield
        finally:
            self._starting.remove((host, directory))

    def starting_directories(self, host: str) -> list[str]:
        """Directories of QEMUs that are being started there now."""
        return [directory for name, directory in self._starting if name == host]

    def _host(self, name: str) -> tuple[HostAccess, HostConfig]:
        try:
            return self._hosts[name]
        except KeyError:
            raise HostError(name, NOT_CONFIGURED) from None

    async def settle_clients(self, host: str) -> None:
        """See :meth:`~migrator.site.monitor_clients.MonitorClients.prepare`; at once where nobody shares the journal.

        :raise HostError: no host of that name is configured.
        """
        if self._clients is not None:
            await self._clients.prepare(self.access(host), self._sockets(host))

    def guard(self, host: str) -> HostGuard:
        """Return the guard of a host; it is begun when it is first needed.

        :raise HostError: no host of that name is configured.
        """
        if host not in self._guards:
            access = self.access(host)
            self._guards[host] = HostGuard.of(
                access, program=guard_program.PROGRAM, module=guard_program, pace=self._pace
            )
        return self._guards[host]

    def _sockets(self, host: str) -> list[str]:
        found = self.config(host).sockets
        rescue = [each.removesuffix(_CONTROL) + _RESCUE for each in found if each.endswith(_CONTROL)]
        return [*found, *rescue]

    def _ending_former(self, host: str) -> Callable[[], Awaitable[None]] | None:
        """Return what ends the connections that former controllers have there by now; ``None``: there were none."""
        clients = self._clients
        if clients is None or not clients.may_hold(host):
            return None

        async def end() -> None:
            # What cannot be ended stays: then the monitor is found occupied once more.
            with contextlib.suppress(HostError):
                await clients.disconnect_again(self.access(host), self._sockets(host))

        return end

    def endpoint(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        listener: GuestProcess | None = None,
        likely: int | None = None,
    ) -> SourceEndpoint:
        """One end of a migration at a QMP socket of a host, not connected yet. It counts as held until it is closed.

        :param listener: see :class:`~migrator.hosts.sockets.RemoteMonitorTransport`; `likely` too.
        """
        access = self.access(host)
        key = host, socket
        self.held[key] = role
        if isinstance(access, LocalAccess):
            address, transport = Address(kind="unix", path=socket), None
        else:
            address, transport = (
                Address(kind="ssh", host=host, path=socket),
                RemoteMonitorTransport(access, socket, listener=listener, likely=likely),
            )

        def let_go() -> None:
            self.held.pop(key, None)

        return _OpenEndpoint(
            address,
            role=role,
            transport=transport,
            driver=self.driver,
            lease_holds=self._lease_holds,
            pending_connects=self.pending_connects,
            guard_process=self.guard(host) if role == "source" else None,
            rescue=socket.removesuffix(_CONTROL) + _RESCUE if socket.endswith(_CONTROL) else "",
            on_close=let_go,
            before_connect=lambda: self.settle_clients(host),
            ending_former=lambda: self._ending_former(host),
        )

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
        likely: int | None = None,
    ) -> SourceEndpoint:
        """See :meth:`migrator.ports.Site.open`. A process that lives and is silent is opened too where its identity is
        given: its looks will tell.

        :param likely: pid of the process that listened at that socket when it was looked for the last time.
        """
        end = self.endpoint(host, socket, role=role, likely=None if identity else likely)
        try:
            if identity:
                await end.expect_remote_process(identity)
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
        self.pending_connects.close()
        await asyncio.gather(*(guard.close() for guard in self._guards.values()))
        await asyncio.gather(*(access.close() for access, _ in self._hosts.values()))
