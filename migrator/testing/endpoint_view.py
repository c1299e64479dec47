"""A QEMU of a shared site as a process of one controller has it open: over a network, and under its mark.

Who may change it is decided by the real :class:`~migrator.qemu.claim.DriverClaim`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast

from migrator.core.migration.drivers import MARK, Driver
from migrator.core.model import ProcessState, View
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.errors import Occupied, QemuError, TimedOut, Unreachable
from migrator.ports import (
    DiskMirroring,
    MigrationSettings,
    QemuEvent,
    StreamOptions,
    StreamSockets,
    Tuning,
)
from migrator.qemu.claim import DriverClaim
from migrator.qemu.marks import PREFIX
from migrator.qemu.source_guard import EndpointGuard, GuardProcess
from migrator.testing.shared_site import Connection, SharedSite
from migrator.testing.simulated_qemu import SimulatedQemu
from migrator.testing.simulated_source import WithoutDevices
from migrator.testing.wire import Lost, Wire

T = TypeVar("T")

_COMMAND_SECONDS, _HOST_SECONDS, _CONNECT_SECONDS = 5.0, 10.0, 2.0
_MARK = f"{PREFIX}{MARK}"


class ControllerSite(Protocol):
    """The site of the controller: :class:`migrator.testing.site_view.SiteView`."""

    shared: SharedSite
    wire: Wire
    client: str
    driver: Driver
    lease_holds: Callable[[], bool]

    def guard_process(self, host: str) -> GuardProcess | None:
        """Return the guard of a host; ``None`` where there is none."""

    async def settle_clients(self, host: str) -> None:
        """See :meth:`migrator.site.connections.HostConnections.settle_clients`."""

    async def disconnect_again(self, host: str) -> bool:
        """See :meth:`migrator.site.monitor_clients.MonitorClients.disconnect_again`."""


class EndpointView(WithoutDevices):
    """See :class:`migrator.ports.SourceQemu`; as :class:`migrator.qemu.endpoint.Endpoint`."""

    def __init__(self, site: ControllerSite, qemu: SimulatedQemu) -> None:
        self.site, self.qemu = site, qemu
        self.name, self.host, self.socket = qemu.name, qemu.host, qemu.socket
        self.address_text, self.identity = qemu.address_text, qemu.identity
        self.shares_clock = True
        self.round_trip_seconds = self.least_round_trip_seconds = 0.001
        self.connection: Connection | None = None
        self._events: list[QemuEvent] = []
        self._notify: Callable[[], None] = lambda: None
        self._dead = False
        self.claims = DriverClaim(
            cast("Any", self), site.driver, name=self.name, lease_holds=site.lease_holds
        )
        #: How many sessions there were.
        self.sessions = 0
        process = None if qemu.is_destination else site.guard_process(self.host)
        self.guard = EndpointGuard(cast("Any", self), self.claims, process=process, socket=self.socket)

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
        self.sessions += 1
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

    async def restore_runtime_state(self, given: None, present: None) -> Sequence[str]:
        return await self._do(lambda: self.qemu.restore_runtime_state(given, present), "runtime state")

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
        await self.guard.forget()
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
        # As the endpoint does: both are sent at once, and arrive in this order.
        await self.claims.ensure()
        told = self._do(self._seen("migrate-continue", self.qemu.switch), "migrate-continue")
        answers: Sequence[object] = await asyncio.gather(
            self.guard.before_switch(), told, return_exceptions=True
        )
        for answer in reversed(answers):
            if isinstance(answer, BaseException):
                raise answer

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
