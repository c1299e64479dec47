"""A simulated site as one of several controllers sees it: over a network, monitors that serve one at a time, and marks.

What all of them share is a :class:`SharedSite`; each process of a controller has a :class:`SiteView` of it, and an
:class:`EndpointView` of each QEMU that it opens. Who may change a QEMU is decided by the real
:class:`~migrator.qemu.claim.DriverClaim`, and former controllers' connections are ended by the real
:class:`~migrator.site.monitor_clients.MonitorClients`.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from migrator.core.inventory import Guest
from migrator.core.migration.drivers import MARK, Driver
from migrator.core.model import Finding, ProcessState, View
from migrator.core.policy import Policy
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.core.preflight.stream_tls import StreamTls, TlsChoice
from migrator.core.process.guest_network import GuestTaps
from migrator.errors import CommandFailed, HostError, Occupied, QemuError, TimedOut, Unreachable
from migrator.ports import (
    DiskMirroring,
    HostLook,
    MigrationSettings,
    QemuEvent,
    SourceGuard,
    StreamOptions,
    StreamPath,
    StreamSockets,
    Tuning,
    Unguarded,
)
from migrator.qemu.claim import DriverClaim
from migrator.qemu.marks import PREFIX
from migrator.site.monitor_clients import MonitorClients
from migrator.testing.simulated_qemu import SimulatedGuest, SimulatedQemu
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.simulated_source import WithoutDevices
from migrator.testing.wire import Lost, Wire

T = TypeVar("T")

_COMMAND_SECONDS, _HOST_SECONDS, _CONNECT_SECONDS = 5.0, 10.0, 2.0
_MARK = f"{PREFIX}{MARK}"


@dataclass
class Connection:
    """A client's connection to a monitor."""

    host: str
    client: str
    open: bool = True
    #: Called when it was ended from outside.
    on_break: Callable[[], None] = lambda: None
    #: What goes over it arrives in order.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedSite(SimulatedSite):
    """The site itself.

    :ivar on_command: called with a view, the command and the present mark of the QEMU when a command that changes
        something is carried out.
    """

    def __init__(self) -> None:
        super().__init__()
        #: By the socket: a QEMU has one client, and objects by their ids.
        self.clients: dict[str, Connection] = {}
        self.marks: dict[str, dict[str, str]] = {}
        self.on_command: Callable[[EndpointView, str, str | None], None] = lambda view, command, mark: None
        self._sources: dict[str, SimulatedQemu] = {}
        self._started: dict[str, SimulatedQemu] = {}

    async def start_destination(self, *args: Any, **how: Any) -> Any:
        waiting = await super().start_destination(*args, **how)
        self._started[waiting.socket] = waiting.qemu
        return waiting

    def _source_of(self, machine: SimulatedGuest, host: str, socket: str, *, known: bool) -> SimulatedQemu:
        """Return one QEMU to all who open it."""
        found = super()._source_of(machine, host, socket, known=known)
        there = self._sources.get(socket)
        if found.stream is None and there is not None and there.stream is None and not there.dead:
            return there
        self._sources[socket] = found
        return found

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> SimulatedQemu:
        """See :meth:`migrator.ports.Site.open`; an end that is known is found after it was cleared away, or arrived."""
        if identity:
            for end in (self._started.get(socket), self._sources.get(socket)):
                if end is not None and (end.dead or role == "destination"):
                    return end
        return await super().open(host, socket, role=role, identity=identity, absent=absent)

    def exists(self, machine: SimulatedGuest) -> bool:
        """Tell whether a process that lives has the whole of a guest."""
        stream = self.streams.get(machine.socket)
        if stream is None:
            source, arrived = self._sources.get(machine.socket), self._started.get(machine.socket)
            return not any(end is not None and end.dead for end in (source, arrived))
        whole = stream.simulator.ready or stream.simulator.at_destination
        return any(not end.dead and (whole or not end.is_destination) for end in stream.listeners)

    def disconnect(self, host: str, client: str) -> int:
        """End the connections that a process holds at a host; how many there were."""
        ended = [each for each in self.clients.values() if (each.host, each.client) == (host, client)]
        for each in ended:
            each.open = False
        self.clients = {socket: each for socket, each in self.clients.items() if each.open}
        for each in ended:
            each.on_break()
        return len(ended)

    def connect(self, host: str, socket: str, client: str) -> Connection:
        """Take the monitor.

        :raise Occupied: another client has it.
        """
        there = self.clients.get(socket)
        if there is not None and there.open:
            raise Occupied(f"{host}:{socket}", "another client holds it")
        connection = self.clients[socket] = Connection(host, client)
        return connection

    def object_command(self, socket: str, command: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out a command about the objects of a QEMU, marks among them."""
        objects = self.marks.setdefault(socket, {})
        name = str(arguments.get("id") or str(arguments["path"]).rpartition("/")[2])
        if (command == "object-add") is (name in objects):
            raise CommandFailed(socket, command, "GenericError", f"no, as for {name}")
        match command:
            case "object-add":
                objects[name] = arguments["identity"]
            case "object-del":
                del objects[name]
            case "qom-set":
                objects[name] = arguments["value"]
            case "qom-get":
                return objects[name]
        return {}


class EndpointView(WithoutDevices):
    """See :class:`migrator.ports.SourceQemu`; as :class:`migrator.qemu.endpoint.Endpoint`."""

    def __init__(self, site: SiteView, qemu: SimulatedQemu) -> None:
        self.site, self.qemu = site, qemu
        self.name, self.host, self.socket = qemu.name, qemu.host, qemu.socket
        self.address_text, self.identity = qemu.address_text, qemu.identity
        self.shares_clock = True
        self.guard: SourceGuard = Unguarded()
        self.round_trip_seconds = self.least_round_trip_seconds = 0.001
        self.connection: Connection | None = None
        self._events: list[QemuEvent] = []
        self._notify: Callable[[], None] = lambda: None
        self._dead = False
        self.claims = DriverClaim(
            cast("Any", self), site.driver, name=self.name, lease_holds=site.lease_holds
        )

    # --- its session -------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Return whether there is a session."""
        return self.connection is not None and self.connection.open

    async def connect(self) -> None:
        """Open the session.

        :raise Unreachable: it cannot be opened.
        """
        await self.site.settle_clients(self.host)
        try:
            await self._connect()
        except Occupied:
            if not await self.site.disconnect_again(self.host):
                raise
            await self._connect()

    async def _connect(self) -> None:
        if self.connected:
            return

        wanted = True

        async def work() -> Connection | None:
            if self.qemu.dead or not wanted:
                return None
            return self.site.shared.connect(self.host, self.socket, self.site.client)

        try:
            connection = await self.site.wire.call(self.host, work, seconds=_CONNECT_SECONDS)
        except Lost as error:
            wanted = False  # one that comes about later is nobody's
            raise Unreachable(self.name, "the host does not answer") from error
        if connection is None:
            raise Unreachable(self.name, "the process has ended")
        self.connection = connection
        connection.on_break = self._broke
        self.qemu.on_change(self._heard)

    def _broke(self) -> None:
        if self.host not in self.site.wire.cut:
            self._notify()

    def _heard(self) -> None:
        if self.connected and self.host not in self.site.wire.cut:
            self._events += self.qemu.take_events()
            self._notify()

    async def _do(
        self, work: Callable[[], Awaitable[T]], what: str, *, seconds: float = _COMMAND_SECONDS
    ) -> T:
        connection = self.connection
        if connection is None or not connection.open:
            raise Unreachable(self.name, "there is no session")
        try:
            return await self.site.wire.call(
                self.host, work, seconds=seconds, open_still=lambda: connection.open, lock=connection.lock
            )
        except Lost as error:
            if not connection.open:
                raise Unreachable(self.name, "the session broke") from error
            raise TimedOut(self.name, what, seconds) from error

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = _COMMAND_SECONDS,
        oob: bool = False,  # noqa: ARG002 - as the monitor has it
    ) -> Any:
        """Execute a command about marks; as :meth:`migrator.qemu.monitor.Monitor.execute`."""

        async def work() -> Any:
            if self.qemu.dead:
                raise Unreachable(self.name, "the process has ended")
            return self.site.shared.object_command(self.socket, command, arguments or {})

        return await self._do(work, command, seconds=timeout)

    async def _change(self, command: str, work: Callable[[], Awaitable[T]]) -> T:
        await self.claims.ensure()
        return await self._do(self._seen(command, work), command)

    def _seen(self, command: str, work: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        async def done() -> T:
            if not self.qemu.dead:
                mark = self.site.shared.marks.get(self.socket, {}).get(_MARK)
                self.site.shared.on_command(self, command, mark)
            return await work()

        return done

    async def observe(self, *, timeout: float = 1.0) -> View:
        if self._dead:
            return View(process=ProcessState.DEAD, can_fence=True)
        try:
            if not self.connected:
                await self.connect()
            view = await self._do(self.qemu.observe, "query-status", seconds=timeout)
        except QemuError:
            return await self._unanswered()
        if view.process is ProcessState.DEAD:
            self._dead = True
        else:
            self.claims.note_answer()
        return view

    async def _unanswered(self) -> View:
        async def work() -> bool:
            return self.qemu.dead

        try:
            self._dead = await self.site.wire.call(self.host, work, seconds=1.0)
        except Lost:
            return View(process=ProcessState.UNKNOWN)
        return View(process=ProcessState.DEAD if self._dead else ProcessState.ALIVE, can_fence=True)

    def on_change(self, callback: Callable[[], None]) -> None:
        self._notify = callback

    def take_events(self) -> Sequence[QemuEvent]:
        taken, self._events = self._events, []
        return taken

    async def release_monitor(self) -> None:
        self._hang_up()

    async def close(self) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None and connection.open:
            connection.open = False
            if self.site.shared.clients.get(self.socket) is connection:
                del self.site.shared.clients[self.socket]

    # --- what is asked of it -----------------------------------------------------------------------------------------

    async def facts(self) -> Facts:
        return await self._do(self.qemu.facts, "facts")

    @property
    def mirroring(self) -> DiskMirroring:
        """Refuse: the guests here share their disks."""
        raise NotImplementedError

    async def disk_users(self) -> DiskUsers:
        if not self.connected:
            await self.connect()
        return await self._do(self.qemu.disk_users, "disk users")

    async def read_runtime_state(self) -> None:
        await self._do(self.qemu.read_runtime_state, "runtime state")

    async def restore_runtime_state(self, given: None) -> Sequence[str]:
        return await self._do(lambda: self.qemu.restore_runtime_state(given), "runtime state")

    async def encrypt(self, migration: str, tls: StreamTls) -> None:
        await self._do(lambda: self.qemu.encrypt(migration, tls), "encrypt")

    async def do_not_encrypt(self) -> None:
        await self._do(self.qemu.do_not_encrypt, "do not encrypt")

    async def forget_encryption(self) -> None:
        await self._do(self.qemu.forget_encryption, "forget encryption")

    async def settings(self) -> MigrationSettings:
        settings = await self._do(self.qemu.settings, "settings")
        return replace(settings, parameters={})  # they are put back as they were at its start

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None:
        await self._do(lambda: self.qemu.start_dirty_rate(period_seconds, exact=exact), "calc-dirty-rate")

    async def dirty_rate(self) -> float | None:
        return await self._do(self.qemu.dirty_rate, "query-dirty-rate")

    async def stream_addresses(self) -> Sequence[str]:
        return await self._do(self.qemu.stream_addresses, "query-migrate")

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        return await self.qemu.stream_sockets(peers, options, again=again)

    async def was_run(self) -> bool:
        return await self._do(self.qemu.was_run, "was run")

    def stderr_tail(self) -> str:
        return ""

    # --- what changes it ---------------------------------------------------------------------------------------------

    async def claim(self, migration: str, *, was: Mapping[str, Any] | None = None) -> None:
        await self.claims.take(migration, was)

    async def release(self) -> None:
        await self.claims.release()

    async def enable(self, capabilities: Mapping[str, bool]) -> None:
        await self._change("migrate-set-capabilities", lambda: self.qemu.enable(capabilities))

    async def tune(self, tuning: Tuning) -> None:
        await self._change("migrate-set-parameters", lambda: self.qemu.tune(tuning))

    async def restore(self, settings: MigrationSettings) -> None:
        await self._change("migrate-set-parameters", lambda: self.qemu.restore(settings))

    async def listen(self, uri: str) -> str:
        return await self._change("migrate-incoming", lambda: self.qemu.listen(uri))

    async def migrate(self, uri: str) -> None:
        await self._change("migrate", lambda: self.qemu.migrate(uri))

    async def start_postcopy(self) -> None:
        await self._change("migrate-start-postcopy", self.qemu.start_postcopy)

    async def pause_stream(self) -> None:
        await self._change("migrate-pause", self.qemu.pause_stream)

    async def listen_again(self, address: str) -> str:
        return await self._change("migrate-recover", lambda: self.qemu.listen_again(address))

    async def resume_stream(self, uri: str) -> None:
        await self._change("migrate", lambda: self.qemu.resume_stream(uri))

    async def switch(self) -> None:
        await self._change("migrate-continue", self.qemu.switch)

    async def cont(self) -> None:
        await self._change("cont", self.qemu.cont)

    async def stop(self) -> None:
        await self._change("stop", self.qemu.stop)

    async def announce(self) -> None:
        await self._change("announce-self", self.qemu.announce)

    async def cancel(self) -> None:
        await self.claims.refuse_another()
        await self._do(self._seen("migrate_cancel", self.qemu.cancel), "migrate_cancel")

    async def quit(self, *, timeout: float = 5.0) -> bool:
        await self.claims.refuse_another()
        try:
            await self._do(self._seen("quit", self.qemu.fence), "quit", seconds=timeout / 2)
        except QemuError:
            return await self._kill()
        self._dead = True
        return True

    async def fence(self) -> bool:
        await self.claims.refuse_another()
        return await self._kill()

    async def _kill(self) -> bool:
        try:
            self._dead = await self.site.wire.call(
                self.host, self._seen("kill", self.qemu.fence), seconds=_HOST_SECONDS
            )
        except Lost:
            return False
        return self._dead


class _WaitingView:
    """Implements :class:`migrator.ports.IncomingDestination`."""

    def __init__(self, view: EndpointView, site: SiteView) -> None:
        self.qemu, self.listen, self.socket = view, "sim", view.socket
        self.notes: tuple[Finding, ...] = ()
        self.new_images: tuple[str, ...] = ()
        self._site = site

    async def discard(self, *, images: bool = False) -> None:  # noqa: ARG002 - no guest here has any
        async def work() -> None:
            qemu = self.qemu.qemu
            if not qemu.dead and qemu.waits:
                qemu.die()

        await self._site.host_call(self.qemu.host, work)


class SiteView:
    """See :class:`migrator.ports.Site`: the site of one process of a controller.

    :param client: names the process, as hosts know it.
    :param clients: sees to it that no former controller holds a monitor.
    :ivar driver: who marks the QEMUs that are changed; see :meth:`act_as`.
    """

    def __init__(
        self,
        shared: SharedSite,
        wire: Wire,
        *,
        client: str,
        name: str,
        live: Callable[[], Mapping[str, int]],
        live_now: Callable[[], Awaitable[Mapping[str, int]]],
        read: Callable[[str], Awaitable[Mapping[str, str]]],
        keep: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self.shared, self.wire, self.client = shared, wire, client
        self.driver = Driver(token=client, controller="", who=client)
        self.lease_holds: Callable[[], bool] = lambda: True
        self._clients = MonitorClients(
            name=name, read=read, keep=keep, live=live, live_now=live_now, disconnect=self._disconnect
        )

    def act_as(self, driver: Driver, lease_holds: Callable[[], bool]) -> None:
        """See :meth:`migrator.site.hosts.SiteHosts.act_as`."""
        self.driver, self.lease_holds = driver, lease_holds

    def driven_by(self, driver: Driver, lease_holds: Callable[[], bool]) -> SiteView:
        """See :meth:`migrator.site.from_settings.ConfiguredSite.driven_by`."""
        same = copy.copy(self)
        same.act_as(driver, lease_holds)
        return same

    def mark_with(self, number: int) -> None:
        """See :meth:`migrator.site.hosts.SiteHosts.mark_with`."""
        self.driver = replace(self.driver, lease=number)

    def note_driven_elsewhere(
        self, migration: str, *, source: tuple[str, str], target: str, destination: str = ""
    ) -> None:
        """A look here opens no monitor."""

    def forget_driven_elsewhere(self, migration: str) -> None:
        """See :meth:`note_driven_elsewhere`."""

    async def _disconnect(self, access: Any, patterns: Sequence[str], client: Mapping[str, Any]) -> int:  # noqa: ARG002 - all sockets
        async def work() -> int:
            return self.shared.disconnect(access.name, str(client["client"]))

        return await self.host_call(access.name, work)

    async def settle_clients(self, host: str) -> None:
        """See :meth:`migrator.site.connections.HostConnections.settle_clients`."""
        await self._clients.prepare(_Access(host, self.client), ())

    async def disconnect_again(self, host: str) -> bool:
        """See :meth:`migrator.site.monitor_clients.MonitorClients.disconnect_again`."""
        try:
            return bool(await self._clients.disconnect_again(_Access(host, self.client), ()))
        except HostError:
            return False

    async def host_call(self, host: str, work: Callable[[], Awaitable[T]]) -> T:
        """Have something done at a host.

        :raise HostError: it does not answer.
        """
        try:
            return await self.wire.call(host, work, seconds=_HOST_SECONDS)
        except Lost as error:
            raise HostError(host, "it does not answer") from error

    async def watch(self, host: str, changed: Callable[[], None]) -> None:  # noqa: ARG002 - nothing is noticed
        await asyncio.Event().wait()

    async def look(self, host: str) -> HostLook:
        return await self.host_call(host, lambda: self.shared.look(host))

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> EndpointView:
        try:
            qemu = await self.host_call(
                host, lambda: self.shared.open(host, socket, role=role, identity=identity)
            )
        except HostError:
            if not absent:
                raise
            qemu = await self.shared.open(host, socket, role=role, identity=identity, absent=True)
        view = EndpointView(self, qemu)
        try:
            await view.connect()
        except Unreachable:
            if not identity:
                raise
        return view

    async def check(self, guest: Guest, source: Any, target: str, policy: Policy) -> tuple[Finding, ...]:
        return await self.host_call(target, lambda: self.shared.check(guest, source, target, policy))

    async def start_destination(
        self, guest: Guest, source: Any, target: str, *, migration: str, accepted: Sequence[str] = ()
    ) -> _WaitingView:
        waiting = await self.host_call(
            target,
            lambda: self.shared.start_destination(
                guest, source, target, migration=migration, accepted=accepted
            ),
        )
        view = EndpointView(self, waiting.qemu)
        await view.connect()
        return _WaitingView(view, self)

    async def guest_taps(self, host: str, pid: int) -> GuestTaps:
        return await self.host_call(host, lambda: self.shared.guest_taps(host, pid))

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        await self.host_call(host, lambda: self.shared.abandon(host, migration=migration, images=images))

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        return await self.host_call(
            guest.host, lambda: self.shared.put_aside(guest, paths, migration=migration)
        )

    async def mend_clock(self, host: str, end: Any, *, stood_seconds: float) -> str:
        return await self.host_call(
            host, lambda: self.shared.mend_clock(host, end, stood_seconds=stood_seconds)
        )

    async def suppress_restart(self, guest: Guest) -> None:
        await self.host_call(guest.host, lambda: self.shared.suppress_restart(guest))

    async def allow_restart(self, guest: Guest) -> None:
        await self.host_call(guest.host, lambda: self.shared.allow_restart(guest))

    async def settle(self, guest: Guest) -> Sequence[str]:
        return await self.host_call(guest.host, lambda: self.shared.settle(guest))

    async def clear(self, guest: Guest) -> None:
        await self.host_call(guest.host, lambda: self.shared.clear(guest))

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> Sequence[str]:
        return await self.host_call(host, lambda: self.shared.sweep(host, under_way=under_way))

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice:
        return await self.shared.stream_tls(source, target, policy)

    async def spare_cpus(self, source: str, target: str) -> float | None:
        return await self.shared.spare_cpus(source, target)

    def stream_path(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamPath:
        return self.shared.stream_path(source, target, processes=processes)

    async def close(self) -> None:
        return


class _Access:
    def __init__(self, name: str, client: str) -> None:
        self.name, self._client = name, client

    async def client_identity(self) -> Mapping[str, Any]:
        return {"client": self._client}
