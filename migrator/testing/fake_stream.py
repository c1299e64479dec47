"""A migration between two fake QEMUs: the simulator decides when, this decides what either end shows and says."""

from __future__ import annotations

import asyncio
import math

from migrator.core.model import MigrationStatus
from migrator.core.model import RunState as R
from migrator.testing import fake_network
from migrator.testing.fake_node import FakeNode
from migrator.testing.simulator import SimulatedEvent, Simulator

#: A reaction of QEMU's main loop or threads to something, in seconds.
_REACTION_SECONDS = 0.001
_CANCEL_SECONDS = 0.003
#: A source that dies so soon after the switch to postcopy takes the destination with it.
_GONE_WITH_THE_SOURCE_SECONDS = 0.5


class FakeStream:
    """From ``migrate`` to the end of it, whatever that is.

    :ivar broken: the ends cannot reach each other any more; the source may not have noticed.
    """

    def __init__(self, source: FakeNode, uri: str) -> None:
        assert source.guest is not None
        self.source = source
        self.guest: Simulator = source.guest
        self.destination: FakeNode | None = None
        self.broken = False
        self._wants_postcopy = False
        self._ran = source.run == "running"  # when the guest was stopped for the switch
        self._held_stop = False
        self._ready = False
        self._paused = False
        self._done = False
        self._switched_seconds = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._uri = uri
        source.catch_up()
        source.stream = self
        source.error = ""
        source.last_sample = None
        source.set_status("setup")
        source.later(_REACTION_SECONDS, self._connect)

    @property
    def moving(self) -> bool:
        """True until it has ended."""
        return not self._done

    @property
    def in_postcopy(self) -> bool:
        """The point of no return of a postcopy is passed."""
        return math.isfinite(self._switched_seconds)

    # --- time --------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        _, port = fake_network.address(self._uri)
        destination = fake_network.listener(port)
        if self._done or not self.source.alive:
            return
        if destination is None or not destination.alive or destination.stream is not None:
            where = self._uri.removeprefix("tcp:")
            self._end("failed", f"Failed to connect to '{where}': Connection refused")
            return
        fake_network.stop_listening(destination)
        self.destination = destination
        destination.stream = self
        destination.set_status("active")
        self.source.tune()
        self.guest.auto_hand_over = False
        self.guest.events.clear()
        self.guest.start()
        if self._wants_postcopy:
            self.guest.start_postcopy()
        self.tick()

    def tick(self) -> None:
        """Let time pass up to now, and show what has happened."""
        seconds = self.source.elapse()
        if self._done or self.destination is None:
            if not self._done:
                self.guest.advance(seconds)
            return
        if not self._paused:
            cut_off = self.source.cut_off or self.destination.cut_off
            self.guest.blocked = self.broken or cut_off or self.destination.manners.frozen
            self.guest.advance(seconds)
            self._translate()
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ahead = self.guest.next_seconds - self.guest.now
        if self.guest.seconds_left > 4 * self.source.rest_seconds:
            ahead = max(ahead, self.source.rest_seconds)
        if not (self._done or self._paused or math.isinf(ahead)):
            self._timer = self.source.later(max(_REACTION_SECONDS, ahead), self.tick)

    # --- what the simulator says, as QEMU would ----------------------------------------------------------------------

    def _translate(self) -> None:
        events, self.guest.events = self.guest.events, []
        for event in events:
            self._show(event)
        if self.guest.ready and not self._ready and self.in_postcopy and not self._done:
            self._arrive()

    def _show(self, event: SimulatedEvent) -> None:
        source, destination = self.source, self.destination
        assert destination is not None
        if event.name == "MIGRATION_PASS":
            if source.capabilities["events"]:
                source.emit("MIGRATION_PASS", **event.data)
        elif event.name == "STOP":
            # QEMU 7.2 without the pause announces the switch to postcopy first.
            paused = source.capabilities["pause-before-switchover"]
            self._held_stop = self._wants_postcopy and source.old and not paused
            if not self._held_stop:
                source.emit("STOP")
        elif event.name == "RESUME":
            if event.at_destination:
                destination.emit("RESUME")
        else:
            self._show_status(MigrationStatus(str(event.data["status"])))

    def _show_status(self, status: MigrationStatus) -> None:
        source = self.source
        match status:
            case MigrationStatus.ACTIVE:
                source.set_status("active")
            case MigrationStatus.PRE_SWITCHOVER:
                source.run = "finish-migrate"
                source.set_status("pre-switchover")
            case MigrationStatus.DEVICE:
                source.run = "finish-migrate"
                if not source.old or source.capabilities["pause-before-switchover"]:
                    source.set_status("device")
                else:
                    source.status = "active"
                self._meet_the_destination()
            case MigrationStatus.POSTCOPY_ACTIVE:
                self._to_postcopy()
            case MigrationStatus.COMPLETED:
                self._complete()

    def _meet_the_destination(self) -> None:
        """Find out at the source, with the devices' state, whether a destination is there and takes it."""
        assert self.destination is not None
        if self.destination.faults.reject and self.destination.alive:
            self._destination_fails()
        elif self.broken:
            self._end("failed")

    def _to_postcopy(self) -> None:
        source, destination = self.source, self.destination
        assert destination is not None
        source.run = "finish-migrate"
        if source.old and self.broken:
            source.set_status("postcopy-active")
            self._end("failed")
            return
        self._switched_seconds = self.guest.now
        if not source.old:
            source.set_status("device")
            if self.broken:
                self._paused = True  # it waits for a word from the destination, for ever
                return
        source.set_status("postcopy-active")
        if self._held_stop:
            source.emit("STOP")
        if destination.faults.reject and destination.alive:
            self._destination_fails()
        else:
            destination.set_status("postcopy-active")

    def _arrive(self) -> None:
        """The destination has all it needs to run the guest."""
        assert self.destination is not None
        self._ready = True
        self.destination.run = "paused"
        if self.destination.autostart and self._ran:
            self.hand_over()

    def _complete(self) -> None:
        source, destination = self.source, self.destination
        assert destination is not None
        if not self._ready:
            self._arrive()
        destination.set_status("completed")
        if destination.faults.lose_return_path:
            return
        source.run = "postmigrate"
        source.last_sample = self.guest.sample()
        source.set_status("completed")
        self._finish()

    # --- what others do to it ----------------------------------------------------------------------------------------

    def start_postcopy(self) -> None:
        """Switch to postcopy as soon as may be."""
        self._wants_postcopy = True
        self.guest.start_postcopy()

    def proceed(self) -> None:
        """From pre-switchover on."""
        self.guest.proceed()
        self.tick()

    def stop_guest(self) -> None:
        """Somebody's ``stop`` at the source."""
        if self.guest.run is R.RUNNING and self.source.run == "running":
            self.guest.stop()
            self.guest.events.clear()
            self._ran = False
            self.source.run = "paused"
            self.source.emit("STOP")

    def cont_guest(self) -> None:
        """Somebody's ``cont`` at the source."""
        if self.source.run == "paused":
            self._ran = True
            self.source.resume()

    def hand_over(self) -> None:
        """The destination runs the guest."""
        destination = self.destination
        assert destination is not None
        destination.run = "running"
        self.guest.hand_over()
        self._translate()
        if self._done:
            self._give_guest_to(destination)

    def cancel(self) -> None:
        """``migrate_cancel``, where it is not refused."""
        source = self.source
        hangs = source.status == "postcopy-paused" or (source.status == "device" and self.in_postcopy)
        source.set_status("cancelling")
        if not hangs:
            source.later(_CANCEL_SECONDS, self._cancelled)

    def _cancelled(self) -> None:
        source, destination = self.source, self.destination
        if self._done or not source.alive:
            return
        if self.in_postcopy:
            source.run = "postmigrate"
            source.set_status("cancelled")
            self._finish()
            if destination is not None:
                destination.set_status("postcopy-paused")
            return
        self._end("cancelled")

    def break_off(self) -> None:
        """The connection is gone, and those who are at work on it notice."""
        self.broken = True
        if self.in_postcopy:
            self.pause()
        elif self.destination is not None and self.destination.alive and self.destination.status == "active":
            self.destination.later(_REACTION_SECONDS, self._destination_gives_up)
        if self.source.status in ("setup", "active", "device") and not self.in_postcopy:
            self._end("failed", "Unable to write to socket: Broken pipe")

    def pause(self, error: str = "") -> None:
        """Postcopy without a connection."""
        self._paused = True
        for node in (self.source, self.destination):
            if node is not None and node.alive and node.status in ("postcopy-active", "postcopy-recover"):
                node.set_status("postcopy-paused", error if node is self.source else "")
        self._schedule()

    def recover(self, uri: str) -> None:
        """``migrate`` with resume."""
        source = self.source
        _, port = fake_network.address(uri)
        destination = fake_network.listener(port)
        if not source.old:
            source.set_status("postcopy-recover-setup")
        if destination is None or destination is not self.destination:
            if not source.old:
                text = f"Failed to connect to '{uri.removeprefix('tcp:')}': Connection refused"
                source.set_status("postcopy-paused", text)
            return
        fake_network.stop_listening(destination)
        source.set_status("postcopy-recover")
        destination.set_status("postcopy-recover")
        source.later(_CANCEL_SECONDS, self._recovered)

    def _recovered(self) -> None:
        assert self.destination is not None
        if self.source.alive and self.destination.alive and self.source.status == "postcopy-recover":
            self.source.elapse()
            self.broken = self._paused = False
            self.source.set_status("postcopy-active")
            self.destination.set_status("postcopy-active")
            self.tick()

    def end_died(self, node: FakeNode) -> None:
        """A process ended."""
        self.broken = True
        destination = self.destination
        if node is self.source:
            soon = self.guest.now < self._switched_seconds + _GONE_WITH_THE_SOURCE_SECONDS
            if destination is not None and destination.alive and not self._done:
                if self.in_postcopy and not soon:
                    self.pause()
                else:
                    destination.later(_REACTION_SECONDS, self._destination_gives_up)
            self._finish(keep=self.in_postcopy and not soon)
        elif self.source.alive and not self._done:
            if self.in_postcopy:
                self.source.later(_REACTION_SECONDS, self.pause)
            elif self.source.status in ("setup", "active", "device"):
                self.source.later(_REACTION_SECONDS, lambda: self._end("failed"))

    # --- ends --------------------------------------------------------------------------------------------------------

    def _destination_fails(self) -> None:
        """Let the destination reject the devices' state."""
        self.broken = True
        self._destination_gives_up()
        if self.in_postcopy:
            self.source.later(_REACTION_SECONDS, self.pause)
        else:
            self.source.later(_REACTION_SECONDS, lambda: self._end("failed"))

    def _destination_gives_up(self) -> None:
        destination = self.destination
        if destination is None or not destination.alive or destination.status in ("completed", "failed"):
            return
        destination.set_status("failed", "load of migration failed: Input/output error")
        destination.stream = None
        if destination.exit_on_error:
            destination.exit(1)

    def _end(self, status: str, error: str = "") -> None:
        """Failed or cancelled, the guest stays: its run state is not the same in all versions."""
        source = self.source
        if self._done or not source.alive:
            return
        stopped = source.run == "finish-migrate"
        self.guest.fail()
        self.guest.events.clear()
        if self.guest.run is R.FINISH_MIGRATE:
            self.guest.run = R.POSTMIGRATE
        left = source.old and stopped and (not self._ran or (status == "cancelled" and self._wants_postcopy))
        if status == "failed":
            source.set_status("failed", error)
        if left:
            source.run = "postmigrate"
        elif stopped and self._ran:
            source.resume()
        elif stopped:
            source.run = "paused"
        if source.run != "running":
            self.guest.run = R.PAUSED
        if status == "cancelled":
            source.set_status("cancelled")
        self._finish()
        self.broken = True
        if self.destination is not None:
            self.destination.later(_REACTION_SECONDS, self._destination_gives_up)

    def _finish(self, *, keep: bool = False) -> None:
        """Nothing more happens in it."""
        self._done = True
        self._schedule()
        if self.source.stream is self:
            self.source.stream = None
        destination = self.destination
        arrived = destination is not None and destination.status == "completed" and self.guest.at_destination
        if destination is not None and arrived and not keep:
            self._give_guest_to(destination)

    def _give_guest_to(self, destination: FakeNode) -> None:
        destination.stream = None
        destination.guest, self.source.guest = self.guest, None
        destination.elapse()
        self.guest.run = R.RUNNING if destination.run == "running" else R.PAUSED
        self.guest.events.clear()
