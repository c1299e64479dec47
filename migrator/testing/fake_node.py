"""State of one fake QEMU process, whoever looks at it: run state, migration status, settings, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from migrator.core.model import Sample
from migrator.testing import fake_monitor, recorded
from migrator.testing.fake_monitor import FakeMonitor, MonitorFaults
from migrator.testing.fake_settings import simulated
from migrator.testing.simulator import Simulator

if TYPE_CHECKING:
    from migrator.testing.fake_stream import FakeStream

#: What the machine has besides the guest's memory (firmware), as query-migrate counts it.
ROM_BYTES = 532480


@dataclass
class MigrationFaults:
    """Faults of a migration; set before or during it."""

    #: Die when one of these migration statuses is reached.
    die_at: set[str] = field(default_factory=set)
    #: Destination: the devices' state does not fit.
    reject: bool = False
    #: Destination: its word that all went well never reaches the source.
    lose_return_path: bool = False


class FakeNode:
    """One fake QEMU.

    :param incoming: it waits for a migration.
    :param autostart: a guest that arrives running goes on by itself (no ``-S``).
    :param on_exit: called when the process has ended.
    """

    def __init__(
        self,
        *,
        version: str,
        guest: Simulator,
        incoming: bool,
        autostart: bool,
        time_factor: float,
        on_exit: Callable[[], None],
    ) -> None:
        self.recorded = recorded.read(version)
        #: QEMU 7.2, with its quirks.
        self.old = version == "7.2"
        #: Guest and memory; it goes to the destination with the hand-over.
        self.guest: Simulator | None = None if incoming else guest
        self.time_factor = time_factor
        #: A stream that has long to go is left alone for so long, unless somebody asks.
        self.rest_seconds = 0.0
        self.run = "inmigrate" if incoming else "running" if autostart else "prelaunch"
        self.incoming = incoming
        self.autostart = autostart
        self.status: str | None = None
        self.error = ""
        self.capabilities: dict[str, bool] = {
            entry["capability"]: entry["state"]
            for entry in self.recorded["answers"]["query-migrate-capabilities"]
        }
        self.parameters: dict[str, Any] = dict(self.recorded["answers"]["query-migrate-parameters"])
        #: Where it listens for a migration: the port, as text.
        self.listens_at: str | None = None
        self.listen_host = ""
        #: migrate-incoming has been accepted.
        self.was_told_to_listen = False
        #: What becomes of it when the incoming migration fails.
        self.exit_on_error = True
        #: What object-add has made, by id.
        self.objects: dict[str, dict[str, Any]] = {}
        self.stream: FakeStream | None = None
        #: The figures of the last outgoing migration.
        self.last_sample: Sample | None = None
        self.ports: list[FakeMonitor] = []
        self.manners = MonitorFaults()
        self.faults = MigrationFaults()
        #: No packet reaches it, none leaves it.
        self.cut_off = False
        self.alive = True
        self.exit_status: int | None = None
        self._on_exit = on_exit
        self.loop = asyncio.get_running_loop()
        self._clock = self.loop.time()
        if self.guest is not None and self.run != "running":
            self.guest.stop()

    # --- time --------------------------------------------------------------------------------------------------------

    def elapse(self) -> float:
        """Return the seconds of the guest's world since the last call; 0 while the process is stopped."""
        now = self.loop.time()
        seconds, self._clock = (now - self._clock) * self.time_factor, now
        return 0.0 if self.manners.frozen else seconds

    def catch_up(self) -> None:
        """Let the guest (or the migration) do what it has done meanwhile."""
        if self.stream is not None:
            self.stream.tick()
        elif self.guest is not None:
            self.guest.advance(self.elapse())

    def later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call after so many seconds of the guest's world."""
        return self.loop.call_later(seconds / self.time_factor, call)

    # --- what it says ------------------------------------------------------------------------------------------------

    def emit(self, name: str, **data: Any) -> None:
        """Emit an event on every monitor."""
        if self.alive:
            message = fake_monitor.event(name, data)
            for port in self.ports:
                port.emit(message)

    def set_status(self, status: str, error: str = "") -> None:
        """Set another migration status, announced where that was asked for."""
        self.status = status
        self.error = error or self.error
        if self.capabilities["events"]:
            self.emit("MIGRATION", status=status)
        if status in self.faults.die_at:
            self.loop.call_soon(self.exit, -9)

    def resume(self) -> None:
        """Let the guest run here."""
        self.run = "running"
        if self.guest is not None:
            self.guest.cont()
            self.guest.events.clear()
        self.emit("RESUME")

    def tune(self) -> None:
        """Take changed settings over."""
        if self.guest is not None:
            self.guest.parameters = simulated(self.parameters, self.capabilities)

    # --- its end -----------------------------------------------------------------------------------------------------

    def exit(self, status: int) -> None:
        """End the process."""
        if not self.alive:
            return
        self.alive = False
        self.exit_status = status
        for port in self.ports:
            port.close()
        stream = self.stream
        if stream is not None:
            stream.end_died(self)
        self._on_exit()

    def shut_down(self, reason: str, *, guest: bool) -> None:
        """End the process in an orderly manner."""
        if not self.alive:
            return
        self.emit("SHUTDOWN", guest=guest, reason=reason)
        if self.stream is not None and self.stream.source is self and self.stream.moving:
            self.set_status("cancelling")
        self.loop.call_soon(self.exit, 0)
