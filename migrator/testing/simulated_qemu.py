"""Simulated QEMU at one end of a migration, and the stream that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.errors import CommandFailed, Unreachable
from migrator.ports import (
    DiskMirroring,
    MigrationSettings,
    QemuEvent,
    SourceGuard,
    StreamOptions,
    StreamSockets,
    Tuning,
    Unguarded,
)
from migrator.testing.settings import Parameters
from migrator.testing.simulated_host import LinkPair, SimulatedGuest, SimulatedHost
from migrator.testing.simulated_source import WithoutDevices
from migrator.testing.simulator import Simulator

_CAPABILITIES = frozenset(
    {"return-path", "pause-before-switchover", "events", "auto-converge", "postcopy-ram", "multifd", "xbzrle"}
)
#: What a stream here answers to whoever would recover it.
_WHOLE = "no stream of a simulated site breaks"

_NO_LIMIT = 1e15


class SimulatedStream:
    """One migration: the simulator that both of its ends look at."""

    def __init__(self, machine: SimulatedGuest, link: LinkPair) -> None:
        self.simulator = Simulator(
            machine.workload,
            memory_bytes=machine.memory_bytes,
            link=link,
            parameters=Parameters(max_bandwidth_bytes_per_second=_NO_LIMIT, pause_before_switchover=True),
            auto_hand_over=False,
        )
        self.simulator.run = machine.run
        self._began = asyncio.get_running_loop().time()
        self._told = 0
        self.listeners: list[SimulatedQemu] = []

    def advance(self) -> None:
        self.simulator.advance_to(asyncio.get_running_loop().time() - self._began)
        new, self._told = self.simulator.events[self._told :], len(self.simulator.events)
        for event in new:
            at = self._began + event.at_seconds
            for listener in self.listeners:
                if listener.is_destination == event.at_destination:
                    listener.hear(QemuEvent(name=event.name, arrived=at, stamped=at, data=event.data))


class SimulatedSurroundings(Protocol):
    """Parts of a site that its simulated QEMUs must know."""

    @property
    def hosts(self) -> Mapping[str, SimulatedHost]:
        """Hosts by name."""

    #: What waits for a guest, by host and socket.
    waiting: dict[tuple[str, str], SimulatedQemu]
    #: By the socket of their source.
    streams: dict[str, SimulatedStream]


class SimulatedQemu(WithoutDevices):
    """Implements :class:`migrator.ports.SourceQemu` for one end."""

    def __init__(self, site: SimulatedSurroundings, machine: SimulatedGuest, host: str, socket: str) -> None:
        self.name = f"{host}:{socket}"
        self.address_text = f"sim:{host}:{socket}"
        self.shares_clock = True
        self.guard: SourceGuard = Unguarded()
        self.round_trip_seconds = self.least_round_trip_seconds = 0.001
        self.host, self.socket = host, socket
        self.machine = machine
        self.is_destination = socket != machine.socket
        self.dead = False
        #: It is dead because its guest ended.
        self.ended = False
        self.gone = False  # it let go
        self.stream: SimulatedStream | None = None
        self._site = site
        self._parameters: dict[str, Any] = {}
        self._capabilities = dict.fromkeys(sorted(_CAPABILITIES), False)
        self._events: list[QemuEvent] = []
        self._notify: Callable[[], None] = lambda: None
        self._probed: tuple[float, float] | None = None
        self._paused_here = False

    @property
    def identity(self) -> dict[str, Any]:
        return {"socket": self.socket}

    def hear(self, event: QemuEvent) -> None:
        """An event of the stream."""
        self._events.append(event)
        self._notify()

    def _reach(self) -> None:
        if self._site.hosts[self.host].down:
            raise Unreachable(self.name, "the host does not answer")
        if self.dead:
            raise Unreachable(self.name, "the process has ended")
        if self.stream is not None:
            self.stream.advance()

    async def observe(self, *, timeout: float = 1.0) -> View:
        await asyncio.sleep(
            self.round_trip_seconds
        )  # without it a loop that waits for time to pass never ends
        if self.dead:
            return View(process=ProcessState.DEAD, ended=self.ended, can_fence=True)
        if self._site.hosts[self.host].down:
            return View(process=ProcessState.UNKNOWN)
        self._reach()
        run, status, sample = self.shown()
        return View(
            process=ProcessState.ALIVE, answers=True, run=run, status=status, can_fence=True, sample=sample
        )

    @property
    def waits(self) -> bool:
        """For a guest, of whom at most a part has arrived."""
        run, status, _ = self.shown()
        return run is RunState.INMIGRATE and status is not MigrationStatus.COMPLETED

    def shown(self) -> tuple[RunState, MigrationStatus, Any]:
        """Return what a look shows now: run state, status and sample."""
        if self.stream is None:
            return (
                (RunState.INMIGRATE if self.is_destination else self.machine.run),
                MigrationStatus.NONE,
                None,
            )
        simulator = self.stream.simulator
        if not self.is_destination:
            sample = simulator.sample() if simulator.status is not MigrationStatus.SETUP else None
            return simulator.run, simulator.status, sample
        if simulator.at_destination:
            run = RunState.PAUSED if self._paused_here else RunState.RUNNING
            done = simulator.status is MigrationStatus.COMPLETED
            return run, MigrationStatus.COMPLETED if done else MigrationStatus.POSTCOPY_ACTIVE, None
        if simulator.ready:
            postcopy = simulator.status is MigrationStatus.POSTCOPY_ACTIVE
            return (
                RunState.PAUSED,
                MigrationStatus.POSTCOPY_ACTIVE if postcopy else MigrationStatus.COMPLETED,
                None,
            )
        return RunState.INMIGRATE, MigrationStatus.ACTIVE, None

    def on_change(self, callback: Callable[[], None]) -> None:
        self._notify = callback

    def take_events(self) -> Sequence[QemuEvent]:
        taken, self._events = self._events, []
        return taken

    async def facts(self) -> Facts:
        self._reach()
        run, status, _ = self.shown()
        return Facts(
            version="10.0.2",
            run=run,
            status=status,
            uuid=self.machine.uuid,
            guest_name=self.machine.name,
            machine="pc-q35-10.0",
            accelerator="kvm",
            memory_bytes=self.machine.memory_bytes,
            capabilities=_CAPABILITIES,
        )

    @property
    def mirroring(self) -> DiskMirroring:
        """Refuse: the guests here share their disks."""
        raise NotImplementedError

    async def disk_users(self) -> DiskUsers:
        self._reach()
        return self.machine.disk_users

    async def read_runtime_state(self) -> None:
        self._reach()

    async def restore_runtime_state(self, given: None, present: None) -> Sequence[str]:
        self._reach()
        return ()

    async def release_monitor(self) -> None:
        pass

    async def encrypt(self, migration: str, tls: StreamTls) -> None:
        self._reach()

    async def do_not_encrypt(self) -> None:
        self._reach()

    async def forget_encryption(self) -> None:
        self._reach()

    async def settings(self) -> MigrationSettings:
        self._reach()
        return MigrationSettings(capabilities=dict(self._capabilities), parameters=dict(self._parameters))

    async def enable(self, capabilities: Mapping[str, bool]) -> None:
        self._reach()
        self._capabilities |= capabilities

    async def tune(self, tuning: Tuning) -> None:
        self._reach()
        if self.stream is None:
            self._parameters["tuning"] = [*self._parameters.get("tuning", ()), tuning]
            return
        simulator = self.stream.simulator
        changes: dict[str, Any] = {}
        if tuning.max_bandwidth_bytes_per_second is not None:
            changes["max_bandwidth_bytes_per_second"] = float(tuning.max_bandwidth_bytes_per_second)
        if tuning.downtime_limit_seconds is not None:
            changes["downtime_limit_seconds"] = tuning.downtime_limit_seconds
        if tuning.throttle_ratio is not None:
            share = max(0.01, tuning.throttle_ratio)
            changes |= {
                "auto_converge": True,
                "throttle_initial_ratio": share,
                "throttle_increment_ratio": share,
                "max_throttle_ratio": share,
                "throttle_trigger_ratio": 0.01 if tuning.throttle_ratio > 0 else 1.0,
            }
        simulator.parameters = replace(simulator.parameters, **changes)

    async def restore(self, settings: MigrationSettings) -> None:
        self._reach()

    async def listen(self, uri: str) -> str:
        self._reach()
        return f"sim:{self.host}:{self.socket}"

    async def migrate(self, uri: str) -> None:
        self._reach()
        if self.stream is not None and not self.stream.simulator.ended:
            raise CommandFailed(self.name, "migrate", "GenericError", "there is a migration in progress")
        _, host, socket = uri.split(":", 2)
        destination = self._site.waiting.get((host, socket))
        link = LinkPair(self._site.hosts[self.host].out, self._site.hosts[host].into)
        self.stream = SimulatedStream(self.machine, link)
        self.stream.listeners.append(self)
        self._site.streams[self.socket] = self.stream
        for tuning in self._parameters.pop("tuning", ()):
            await self.tune(tuning)
        self.stream.simulator.start()
        if destination is None or destination.dead:
            self.stream.simulator.fail()
            return
        destination.stream = self.stream
        self.stream.listeners.append(destination)

    async def stream_addresses(self) -> Sequence[str]:
        self._reach()
        return [f"sim:{self.host}:{self.socket}"] if self.is_destination else []

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        return StreamSockets()  # nobody may look into a simulated process

    async def pause_stream(self) -> None:
        raise CommandFailed(self.name, "migrate-pause", "GenericError", _WHOLE)

    async def listen_again(self, address: str) -> str:
        raise CommandFailed(self.name, "migrate-recover", "GenericError", f"not at {address}: {_WHOLE}")

    async def resume_stream(self, uri: str) -> None:
        raise CommandFailed(self.name, "migrate", "GenericError", f"not to {uri}: {_WHOLE}")

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None:
        self._reach()
        rate = sum(
            min(region.size_bytes, rate)
            for region, rate in zip(
                self.machine.workload.regions, self.machine.workload.rates_at(0.0)[0], strict=True
            )
        )
        self._probed = (asyncio.get_running_loop().time() + period_seconds, rate)

    async def dirty_rate(self) -> float | None:
        self._reach()
        if self._probed is None or asyncio.get_running_loop().time() < self._probed[0]:
            return None
        return self._probed[1]

    def _moving(self, command: str) -> Simulator:
        self._reach()
        if self.stream is None:
            raise CommandFailed(self.name, command, "GenericError", "there is no migration")
        return self.stream.simulator

    async def claim(self, migration: str, *, was: Mapping[str, Any] | None = None) -> None:
        self._reach()

    async def release(self) -> None:
        pass

    async def start_postcopy(self) -> None:
        self._moving("migrate-start-postcopy").start_postcopy()

    async def switch(self) -> None:
        self._moving("migrate-continue").proceed()

    async def cancel(self) -> None:
        self._moving("migrate_cancel").cancel()

    async def was_run(self) -> bool:
        self._reach()
        return self.stream is not None and self.stream.simulator.at_destination

    async def cont(self) -> None:
        self._reach()
        if self.is_destination and self.stream is not None:
            self.stream.simulator.hand_over()
            self.stream.advance()
            self._paused_here = False
        elif self.is_destination:
            pass  # nothing has arrived that could run
        elif self.stream is not None:
            self.stream.simulator.cont()
            self.stream.advance()
            self._keep_run_state()
        elif self.machine.run is not RunState.RUNNING:
            self._run_without_stream(RunState.RUNNING, "RESUME")

    async def stop(self) -> None:
        self._reach()
        if self.is_destination:
            self._paused_here = self._paused_here or (
                self.stream is not None and self.stream.simulator.at_destination
            )
        elif self.stream is not None:
            self.stream.simulator.stop()
            self.stream.advance()
            self._keep_run_state()
        elif self.machine.run is RunState.RUNNING:
            self._run_without_stream(RunState.PAUSED, "STOP")

    def _run_without_stream(self, run: RunState, event: str) -> None:
        self.machine.run = run
        at = asyncio.get_running_loop().time()
        self.hear(QemuEvent(name=event, arrived=at, stamped=at, data={}))

    def _keep_run_state(self) -> None:
        """Note what somebody wanted of the guest, for whoever opens its QEMU after this stream."""
        if self.stream is not None and self.stream.simulator.run in (RunState.RUNNING, RunState.PAUSED):
            self.machine.run = self.stream.simulator.run

    async def announce(self) -> None:
        self._reach()

    async def quit(self, *, timeout: float = 5.0) -> bool:
        return await self.fence()

    async def fence(self) -> bool:
        if self._site.hosts[self.host].down:
            return False
        self.die()
        return True

    def die(self, *, ended: bool = False) -> None:
        """Be a process that is no more, of whatever it died.

        :param ended: it exited because its guest ended.
        """
        self.dead, self.ended = True, ended
        self._site.waiting.pop((self.host, self.socket), None)
        if self.stream is not None and not self.stream.simulator.ended:
            self.stream.advance()
            self.stream.simulator.fail()
        self._notify()

    def stderr_tail(self) -> str:
        return ""

    async def close(self) -> None:
        self.gone = True
