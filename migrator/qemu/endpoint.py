"""One QEMU of a migration: implements :class:`migrator.ports.Qemu` over QMP and, where it is local, its process."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from migrator import logs
from migrator.core.migration.drivers import Driver
from migrator.core.model import ProcessState, View
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.errors import CommandFailed, HostError, QemuError, Unreachable
from migrator.ports import GuestProcess, MigrationSettings, QemuEvent, StreamOptions, StreamSockets, Tuning
from migrator.qemu import features, incoming, marks, migration_settings, stream, stream_cancel, stream_tls
from migrator.qemu.address import Address
from migrator.qemu.block_mirrors import EndpointMirroring
from migrator.qemu.claim import ASLEEP_AFTER_SECONDS, DriverClaim
from migrator.qemu.dirty_rate import DirtyRate
from migrator.qemu.disk_comparison import DiskComparison
from migrator.qemu.events import EventBuffer
from migrator.qemu.features import Features
from migrator.qemu.monitor import Monitor
from migrator.qemu.naming import pass_on_name
from migrator.qemu.non_migrated_state import read_disk_users
from migrator.qemu.pending_connects import PendingConnects
from migrator.qemu.process_ending import ProcessEnding
from migrator.qemu.process_handle import ProcessHandle
from migrator.qemu.read_facts import read_facts
from migrator.qemu.runtime_state import RuntimeState, read_runtime_state, restore_runtime_state
from migrator.qemu.source_guard import EndpointGuard, GuardProcess
from migrator.qemu.status_query import StatusQuery
from migrator.qemu.stream_sockets import stream_sockets
from migrator.qemu.transport import MonitorTransport
from migrator.qemu.view_reader import ViewReader

if TYPE_CHECKING:
    from migrator.qemu.identify import GuestIdentity

#: Name of the mark at a destination that was told to run its guest.
_RAN = "ran"


class Endpoint:
    """One end of a migration; see :class:`migrator.ports.Qemu` for what each call promises.

    :param role: ``source`` or ``destination``, for messages.
    :param pid: the process, where the address does not tell it (anything but a unix socket).
    :param fence_command: run to kill the process where we cannot; exit 0 must mean that it is dead for certain.
    :param transport: to a monitor of another host; `address` is then for people alone.
    :param pending_connects: see :class:`~migrator.qemu.monitor.Monitor`.
    :param driver: who drives it: QEMU is marked before it is changed, and not changed while another's mark is there.
    :param lease_holds: see :class:`~migrator.qemu.claim.DriverClaim`.
    :param by_force: a person has said that the controller which the mark names is dead, where that cannot be seen.
    :param asleep_after_seconds: see :class:`~migrator.qemu.claim.DriverClaim`.
    :param guard_process: of the host of a source; ``None``: nobody guards it.
    :param rescue: path of another monitor of it there; empty where there is none.
    :param make_monitor: makes the session, as :class:`~migrator.qemu.monitor.Monitor` does.
    """

    def __init__(
        self,
        address: Address,
        *,
        role: str,
        pid: int | None = None,
        fence_command: str | None = None,
        tls: ssl.SSLContext | None = None,
        transport: MonitorTransport | None = None,
        pending_connects: PendingConnects | None = None,
        driver: Driver | None = None,
        lease_holds: Callable[[], bool] = lambda: True,
        by_force: bool = False,
        asleep_after_seconds: float = ASLEEP_AFTER_SECONDS,
        guard_process: GuardProcess | None = None,
        rescue: str = "",
        make_monitor: Callable[..., Monitor] = Monitor,
    ) -> None:
        self.address = address
        self.name = f"{role} {address}"
        self._transport = transport
        self._handle = ProcessHandle(self.name, pid=pid, transport=transport)
        self._events = EventBuffer(ran=role != "destination")
        self._arrives = role == "destination"
        self._features: Features | None = None
        #: Whether memory has channels of its own; ``None``: another controller may have seen to that.
        self._in_channels: bool | None = None
        self._connecting = asyncio.Lock()
        self._dirty_rate = DirtyRate()
        self._monitor = make_monitor(
            address,
            name=self.name,
            on_event=self._on_event,
            on_break=self._on_break,
            tls=tls,
            pending_connects=pending_connects,
        )
        self._claim = DriverClaim(
            self._monitor,
            driver,
            name=self.name,
            lease_holds=lease_holds,
            by_force=by_force,
            asleep_after_seconds=asleep_after_seconds,
        )
        self.guard = EndpointGuard(
            self._monitor, self._claim, process=guard_process, socket=address.path, rescue=rescue
        )
        self.mirroring = EndpointMirroring(self._monitor, self._claim, lambda: self._handle.process)
        self.comparison = DiskComparison(self._monitor)
        self._ending = ProcessEnding(
            self._monitor, self._claim, self._handle, self._events, fence_command=fence_command
        )
        self._status = StatusQuery(
            self._monitor, name=self.name, connect=self.connect, on_answer=self._claim.note_answer
        )
        self._views = ViewReader(
            self._monitor, self._handle, self._events, self._status, can_fence=lambda: self._ending.possible
        )

    @property
    def monitor(self) -> Monitor:
        """The session itself, for the rest of this package: devices and backends."""
        return self._monitor

    @property
    def connected(self) -> bool:
        """There is a session; it may have broken since."""
        return self._monitor.connected

    @property
    def address_text(self) -> str:
        return str(self.address)

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._handle.identity

    @property
    def shares_clock(self) -> bool:
        return self._handle.is_local

    @property
    def process(self) -> GuestProcess | None:
        """The process behind the monitor, once it is known."""
        return self._handle.process

    @property
    def dead(self) -> bool:
        """True once its process is proven dead."""
        return self._handle.state is ProcessState.DEAD

    @property
    def round_trip_seconds(self) -> float:
        return self._monitor.round_trip_seconds

    @property
    def least_round_trip_seconds(self) -> float:
        return self._monitor.least_round_trip_seconds

    async def connect(self, *, timeout: float = 5.0) -> None:
        """Open the session and take hold of the process; two callers at once open one session.

        :raise Unreachable: when there is none.
        :raise QemuError: when another process answers than the one that is held.
        """
        try:
            async with asyncio.timeout(None if self._transport is None else 2 * timeout), self._connecting:
                await self._connect(timeout)
        except HostError as error:
            raise Unreachable(self.name, str(error)) from error
        except TimeoutError as error:
            raise Unreachable(self.name, f"its host did not answer within {2 * timeout:g} s") from error

    async def _connect(self, timeout: float) -> None:
        if self._transport is not None:
            self._monitor.address = Address(kind="unix", path=await self._transport.socket_path())
        failure: QemuError | None = None
        try:
            await self._monitor.connect(timeout=timeout)
        except QemuError as error:
            failure = error  # whose monitor it is can be told all the same
        try:
            await self._handle.verify(self._monitor.pid)
        except BaseException:
            await self._monitor.close()  # nobody knows whose session it is
            raise
        if failure is not None:
            raise failure

    def expect_process(self, identity: Mapping[str, Any]) -> None:
        """Bind this end to a process of this machine; see :meth:`migrator.qemu.process_handle.ProcessHandle.expect`."""
        self._handle.expect(identity)

    async def expect_remote_process(self, identity: Mapping[str, Any]) -> None:
        """Bind this end to a process of any host; see
        :meth:`~migrator.qemu.process_handle.ProcessHandle.expect_remote`.
        """
        await self._handle.expect_remote(identity)

    def presume_dead(self) -> None:
        """Take the process for dead because a person says so; it is not looked for."""
        self._handle.gone = True

    # --- looking ---------------------------------------------------------------------------------------------------

    async def identify(self) -> GuestIdentity:
        """Read which guest is in it, in one round trip.

        :raise QemuError: when it cannot be asked.
        """
        from migrator.qemu.identify import identify  # noqa: PLC0415 - for who looks for guests

        return await identify(self._monitor)

    async def pass_on_name(self, destination: Endpoint) -> None:
        """Mark the destination with the name of the guest here, where that has no uuid.

        :raise QemuError: one of them cannot be asked.
        """
        await pass_on_name(self._monitor, self.identity, destination.monitor)

    async def observe(self, *, timeout: float = 1.0) -> View:
        return await self._views.read(timeout)

    def on_change(self, callback: Callable[[], None]) -> None:
        self._events.notify = callback

    def _on_event(self, message: Mapping[str, Any]) -> None:
        self._events.record(message)

    def _on_break(self) -> None:
        self._events.notify()

    def take_events(self) -> Sequence[QemuEvent]:
        return self._events.take()

    async def facts(self) -> Facts:
        facts, self._features, driver = await asyncio.gather(
            read_facts(self._monitor, self._handle.process),
            features.read(self._monitor, self._binary_identity()),
            self._claim.blocking_driver(),
        )
        return replace(facts, driven_by=driver)

    def _binary_identity(self) -> str:
        return self._handle.process.binary_identity() if self._handle.process else ""

    def stderr_tail(self) -> str:
        return self._handle.process.stderr_tail() if self._handle.process else ""

    async def read_runtime_state(self) -> RuntimeState:
        return await read_runtime_state(self._monitor)

    async def restore_runtime_state(self, given: RuntimeState, present: RuntimeState) -> Sequence[str]:
        return await restore_runtime_state(self._monitor, given, present)

    async def release_monitor(self) -> None:
        await self._monitor.close()

    async def disk_users(self) -> DiskUsers:
        if not self._monitor.connected:
            await self.connect()

        async def ask(command: str) -> Any:
            try:
                return await self._monitor.execute(command)
            except CommandFailed:
                return None  # one too old for it

        return await read_disk_users(ask)

    # --- the right to change it ------------------------------------------------------------------------------------

    async def claim(self, migration: str, *, was: Mapping[str, Any] | None = None) -> None:
        await self._claim.take(migration, was)

    async def driver(self) -> Driver | None:
        """Return the driver that QEMU's mark names; ``None`` where it has no mark."""
        return await self._claim.read_driver()

    async def other_driver(self) -> str:
        """Describe the other controller that the mark names and that may not be followed; empty where there is none."""
        return await self._claim.blocking_driver()

    async def release(self) -> None:
        await self.guard.forget()
        await self._claim.release()

    # --- settings --------------------------------------------------------------------------------------------------

    async def settings(self) -> MigrationSettings:
        found = await migration_settings.read(self._monitor)
        self._in_channels = found.capabilities.get("multifd", False)
        return found

    async def enable(self, capabilities: Mapping[str, bool]) -> None:
        await self._claim.execute("migrate-set-capabilities", migration_settings.capabilities(capabilities))
        self._in_channels = capabilities.get("multifd", self._in_channels)

    async def tune(self, tuning: Tuning) -> None:
        if parameters := migration_settings.parameters(tuning):
            await self._claim.execute("migrate-set-parameters", parameters)

    async def restore(self, settings: MigrationSettings) -> None:
        parameters, switched = migration_settings.different(settings, await self.settings())
        if parameters:
            await self._claim.execute("migrate-set-parameters", parameters)
        if switched:
            await self.enable(switched)

    async def encrypt(self, migration: str, tls: StreamTls) -> None:
        await stream_tls.make(self._monitor, self._claim, migration, tls, arrives=self._arrives)

    async def do_not_encrypt(self) -> None:
        await stream_tls.do_without(self._monitor, self._claim)

    async def forget_encryption(self) -> None:
        await stream_tls.remove(self._monitor, self._claim)

    # --- steps -----------------------------------------------------------------------------------------------------

    async def listen(self, uri: str) -> str:
        return await incoming.listen(self._monitor, self._claim, self._known_features, uri)

    async def _known_features(self) -> Features:
        if self._features is None:
            self._features = await features.read(self._monitor, self._binary_identity())
        return self._features

    async def migrate(self, uri: str) -> None:
        await self._claim.execute("migrate", {"uri": uri})

    async def stream_addresses(self) -> Sequence[str]:
        return await incoming.addresses(self._monitor)

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        return await stream_sockets(self._handle.process, peers, options, again=again)

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None:
        if exact and not self._monitor.connected:
            await self.connect()
        await self._dirty_rate.start(self._monitor, period_seconds, exact=exact)

    async def dirty_rate(self) -> float | None:
        return await self._dirty_rate.read(self._monitor)

    async def start_postcopy(self) -> None:
        await self._claim.execute("migrate-start-postcopy")

    async def switch(self) -> None:
        # QEMU carries out what one monitor was told in order, and both are sent at once, so that the guest does not
        # stand still for one more round trip: where the mark is, QEMU was not told. QEMU cannot refuse to remove a mark
        # that is there (tests/integration/test_guard_order.py); if one did, the guard was told to let go all the same.
        await self._claim.ensure()
        answers: Sequence[object] = await asyncio.gather(
            self.guard.before_switch(),
            self._monitor.execute("migrate-continue", {"state": "pre-switchover"}),
            return_exceptions=True,
        )
        removed, told = answers
        if isinstance(told, BaseException):
            raise told
        if isinstance(removed, QemuError):
            logs.logger().warning(
                "a mark was not removed before the switch", qemu=self.name, error=str(removed)
            )
        elif isinstance(removed, BaseException):
            raise removed

    async def pause_stream(self) -> None:
        await self._claim.refuse_another()
        await stream.pause(self._monitor)

    async def listen_again(self, address: str) -> str:
        await self._claim.refuse_another()
        return await stream.listen_again(self._monitor, address)

    async def resume_stream(self, uri: str) -> None:
        await self._claim.execute("migrate", {"uri": uri, "resume": True})

    async def cancel(self) -> None:
        await self._claim.refuse_another()
        await stream_cancel.cancel(self._monitor, in_channels=self._in_channels)

    async def cont(self) -> None:
        if not self._arrives:
            await self._claim.execute("cont")
            return
        # QEMU carries out what one monitor was told in order, and both are sent at once: where the mark is, it ran.
        await self._claim.ensure()
        answers: Sequence[object] = await asyncio.gather(
            self._monitor.execute("cont"), marks.add(self._monitor, _RAN, "1"), return_exceptions=True
        )
        told, marked = answers
        if isinstance(told, BaseException):
            if isinstance(told, CommandFailed) and marked is True:
                await marks.remove(self._monitor, _RAN)
            raise told
        if isinstance(marked, BaseException) and not isinstance(marked, QemuError):
            raise marked

    async def was_run(self) -> bool:
        return _RAN in await marks.read(self._monitor, _RAN)

    async def stop(self) -> None:
        await self._claim.execute("stop")

    async def announce(self) -> None:
        # The values that QEMU itself announces with by default: 5 rounds, 50 ms apart at first, 550 ms at most.
        await self._claim.execute("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100})

    async def mend_clock(self, local: Callable[[str], Awaitable[str]], *, stood_seconds: float) -> str:
        """See :func:`migrator.qemu.guest_agent.mend_clock`."""
        # What few migrations need is not imported by all of them.
        from migrator.qemu.guest_agent import mend_clock  # noqa: PLC0415

        return await mend_clock(self._monitor, local, stood_seconds=stood_seconds)

    async def flush_disks(self, local: Callable[[str], Awaitable[str]]) -> str:
        """See :func:`migrator.qemu.guest_agent.flush_disks`."""
        from migrator.qemu.guest_agent import flush_disks  # noqa: PLC0415 - as above

        return await flush_disks(self._monitor, local)

    async def thaw_disks(self, local: Callable[[str], Awaitable[str]]) -> bool:
        """See :func:`migrator.qemu.guest_agent.thaw_disks`."""
        from migrator.qemu.guest_agent import thaw_disks  # noqa: PLC0415 - as above

        return await thaw_disks(self._monitor, local)

    async def quit(self, *, timeout: float = 5.0) -> bool:
        return await self._ending.quit(timeout=timeout)

    async def fence(self) -> bool:
        return await self._ending.fence()

    async def close(self) -> None:
        await self._monitor.close()
        await self._status.close()
        self._handle.close()
