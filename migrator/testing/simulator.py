"""One live migration as QEMU does it, without QEMU, without a clock: a minute of it takes a few milliseconds.

::

    simulator = Simulator(steady(400 * MIB, 90 * MIB), memory_bytes=1 << 30, link=Link(100 * MIB))
    simulator.start()
    while not simulator.ended:
        simulator.advance(0.1)
        sample = simulator.sample()                         # as query-migrate would show it now
        if sample.round > 5:
            simulator.start_postcopy()
    simulator.downtime_seconds, simulator.duration_seconds, simulator.work_bytes, simulator.events

Nothing happens but in :meth:`Simulator.advance`. Between two calls, change :attr:`Simulator.parameters` (with
:func:`dataclasses.replace`) and :attr:`Link.bytes_per_second` (0 is a black hole), or call ``start_postcopy``,
``stop``, ``cont``, ``proceed`` (migrate-continue), ``hand_over``, ``cancel``, ``fail``; before the migration ``jump``.
``simulator.memory.probe()`` is a dirty-rate probe. Workloads are in :mod:`migrator.testing.workload`, a :class:`Link`
may be shared, :class:`Costs` has what was measured. What it knows of QEMU 7.2 and 10.0:

- The first round sends everything, zero pages at the speed of the processor. When less is left than the threshold,
  bandwidth (of the last tenth of a second) × downtime limit, a look at the dirty bitmap starts a new round. Still less
  after it: the guest is stopped and the rest is sent. In the first tenth of a second there is no threshold, nor with a
  limit of 0: QEMU then does not look again, and switches after the first pass (docs/switch.md).
- One turn of sending lasts 50 ms at most. max-bandwidth is a budget for each tenth of a second, spent at the
  speed of the link; it does not hold for what is sent while the guest stands still.
- The dirty rate and auto-converge look only at a sync that comes more than a second after the one before they
  looked at.
- The socket's buffer swallows the first megabytes: they count as sent, and still have to travel at the switch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from migrator.core.model import MigrationStatus, RunState, Sample
from migrator.testing.gauges import SendGauges
from migrator.testing.link import Link, StreamSocket
from migrator.testing.memory import Memory
from migrator.testing.settings import Costs, Parameters
from migrator.testing.workload import MIB, PAGE_BYTES, Workload

__all__ = ["MIB", "Costs", "Link", "Parameters", "SimulatedEvent", "Simulator"]

#: One turn of sending takes no longer than this before the threshold is looked at again.
TURN_SECONDS = 0.05

_M, _R = MigrationStatus, RunState
_ENDED = frozenset({_M.COMPLETED, _M.FAILED, _M.CANCELLED})
_TINY = 1e-9


@dataclass(frozen=True)
class SimulatedEvent:
    """An event as QEMU announces it: at the source, but for the ``RESUME`` of a guest that arrived."""

    at_seconds: float
    name: str
    data: dict[str, str | int] = field(default_factory=dict)
    at_destination: bool = False


class Simulator:
    """One guest and its way to another QEMU.

    :param memory_bytes: the guest's memory; what the workload does not use is zero.
    :param link: shared with others, if they are advanced in turn by small steps.
    :param auto_hand_over: the guest goes on at the destination as soon as it can; else :meth:`hand_over` says when.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        memory_bytes: int,
        link: Link | None = None,
        parameters: Parameters | None = None,
        costs: Costs | None = None,
        auto_hand_over: bool = True,
    ) -> None:
        self.memory = Memory(workload, memory_bytes)
        self.link = link or Link()
        self.parameters = parameters or Parameters()
        self.costs = costs or Costs()
        self.auto_hand_over = auto_hand_over
        #: Nothing arrives at the other end for now, whatever the link could carry.
        self.blocked = False
        #: Seconds since it was made.
        self.now = 0.0
        self.status = _M.NONE
        #: The source's.
        self.run = _R.RUNNING
        self.events: list[SimulatedEvent] = []
        self._begin()

    def _begin(self) -> None:
        #: Sent so far, as query-migrate counts it.
        self.transferred_bytes = 0.0
        self.started_seconds = self.now
        #: When the guest was stopped last; when it went on last, wherever; when the migration ended.
        self.stopped_seconds: float | None = None
        self.resumed_seconds: float | None = None
        self.ended_seconds: float | None = None
        #: The destination has all it needs to run the guest; and it does.
        self.ready = self.at_destination = False
        self._gauges = SendGauges(self.parameters, self.now)
        self._outlet = StreamSocket(self.link, self.costs)
        self._turn_left = self._busy_until = 0.0
        self._looked = False  # at the bitmap, for the present decision
        self._due = math.inf  # when the present wait is over
        self._postcopy_wanted = False
        self._may_proceed = False
        #: The guest ran when it was stopped for its switch.
        self._was_running = False
        self._source_downtime = 0.0
        self._requests = 0.0

    # --- what it shows -----------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """True once the migration is over, and the guest runs (or rests) where it shall."""
        return self.status in _ENDED and (self.status is not _M.COMPLETED or self.at_destination)

    @property
    def downtime_seconds(self) -> float | None:
        """Seconds from the guest standing still to the guest running, wherever."""
        stopped, resumed = self.stopped_seconds, self.resumed_seconds
        return None if stopped is None or resumed is None else resumed - stopped

    @property
    def next_seconds(self) -> float:
        """Time before which nothing happens by itself; while memory is on its way a guess."""
        moving = self.status is _M.ACTIVE or (self.status is _M.POSTCOPY_ACTIVE and self.ready)
        return min(self._due, self.now + TURN_SECONDS / 5) if moving else self._due

    @property
    def seconds_left(self) -> float:
        """Return the least that is left of precopy before it may switch, at the link's speed; 0 at any other time."""
        if self.status is not _M.ACTIVE or self._postcopy_wanted:
            return 0.0
        ahead = self.memory.queued_bytes - self._gauges.threshold_bytes
        return ahead / self.link.bytes_per_second if self.link.bytes_per_second > 0 else 0.0

    @property
    def duration_seconds(self) -> float:
        """Seconds since the migration began, until its end."""
        return (self.now if self.ended_seconds is None else self.ended_seconds) - self.started_seconds

    @property
    def work_bytes(self) -> float:
        """Bytes of pages that the guest has written to so far, on either side."""
        return self.memory.work_bytes

    def sample(self) -> Sample:
        """Return the figures that query-migrate at the source shows now."""
        return self._gauges.sample(
            at_seconds=self.duration_seconds,
            total_bytes=self.memory.total_bytes,
            remaining_bytes=int(self.memory.queued_bytes),
            transferred_bytes=int(self.transferred_bytes),
            downtime_seconds=self._source_downtime,
            postcopy_requests=int(self._requests),
        )

    # --- what may be done to it --------------------------------------------------------------------------------------

    def jump(self, seconds: float) -> None:
        """Let the guest run for some time before the migration."""
        self._pass(seconds)

    def start(self) -> None:
        """Begin the migration, as ``migrate`` does."""
        self._begin()
        self.memory.queue_all()
        self._set(_M.SETUP)
        self._due = self.now + self.costs.setup_seconds

    def start_postcopy(self) -> None:
        """Switch to postcopy at the next turn, as ``migrate-start-postcopy`` does."""
        self._postcopy_wanted = True

    def proceed(self) -> None:
        """Go on with the switch, as ``migrate-continue`` does."""
        self._may_proceed = True

    def hand_over(self) -> None:
        """Run the guest at the destination, as ``cont`` there does, once :attr:`ready`."""
        if self.ready and not self.at_destination:
            self.at_destination = True
            self.resumed_seconds = self.now
            self._announce("RESUME", at_destination=True)

    def stop(self) -> None:
        """Stop the guest at the source, as somebody's ``stop`` does."""
        if self.run is _R.RUNNING:
            self.run = _R.PAUSED
            self._stopped()

    def cont(self) -> None:
        """Run the guest at the source, as somebody's ``cont`` does."""
        if self.run in (_R.PAUSED, _R.POSTMIGRATE):
            self._resume_source()

    def cancel(self) -> None:
        """Cancel, as ``migrate_cancel`` does: the guest goes on at the source.

        Not in postcopy, where QEMU refuses or loses the guest.
        """
        if self.status not in _ENDED | {_M.NONE, _M.POSTCOPY_ACTIVE}:
            self._set(_M.CANCELLING)
            self._break_off(_M.CANCELLED)

    def fail(self) -> None:
        """Break the stream, as when the destination dies; after a switch to postcopy the guest is lost."""
        if self.status not in _ENDED | {_M.NONE}:
            self._break_off(_M.FAILED)

    def _break_off(self, status: MigrationStatus) -> None:
        lost = self.status is _M.POSTCOPY_ACTIVE
        self._end(status)
        if self.run is _R.FINISH_MIGRATE and not lost:
            if self._was_running:
                self._resume_source()
            else:
                self.run = _R.PAUSED

    # --- time --------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.advance_to(self.now + seconds)

    def advance_to(self, until: float) -> None:
        """Let time pass until that moment."""
        while self.now < until - _TINY:
            if self.status is _M.ACTIVE:
                self._turn(until)
            elif self.status is _M.POSTCOPY_ACTIVE:
                self._pull(until)
            else:
                self._wait(until)

    def run_to_end(self, limit_seconds: float = 3600.0) -> None:
        """Let time pass until the end, with nobody steering, to within a second."""
        limit = self.now + limit_seconds
        while not self.ended and self.now < limit - _TINY:
            self.advance_to(min(limit, self.now + 1.0))

    def _pass(self, seconds: float) -> None:
        """Let time pass while the guest at the source runs."""
        self.now += seconds
        if self.run is _R.RUNNING:
            self.memory.forward(seconds, self.memory.workload.speed_ratio(self._gauges.throttle_ratio))

    def _idle(self, seconds: float) -> None:
        """Let time pass while nothing is written to the stream."""
        self._outlet.pass_time(seconds, self._speed() if self._outlet.buffered_bytes else 0.0)
        self._pass(seconds)

    def _speed(self) -> float:
        """Return the link's speed for this stream; at the switch max-bandwidth does not hold."""
        active = self.status is _M.ACTIVE
        return (
            0.0
            if self.blocked
            else self._outlet.speed(self.parameters.max_bandwidth_bytes_per_second if active else 0.0)
        )

    def _wait(self, until: float) -> None:
        """Wait for what is due, or for someone to act."""
        if self.status is _M.PRE_SWITCHOVER and self._may_proceed:
            self._leave()
            return
        step = max(0.0, min(until, self._due) - self.now)
        self._due += step if self.blocked else 0.0
        self._idle(step)
        if self.now >= self._due - _TINY:
            self._due = math.inf
            self._arrive()

    def _arrive(self) -> None:
        """Take the step that was waited for."""
        if self.status is _M.SETUP:
            self._set(_M.ACTIVE)
            self._begin_round()
            return
        if self.status is _M.DEVICE:
            self._end(_M.COMPLETED)
            self.run = _R.POSTMIGRATE
        if self.ready:
            self.hand_over()
            return
        self.ready = True
        self._outlet.buffered_bytes = 0.0
        self._source_downtime = self.now - (self.stopped_seconds or self.now)
        if self.auto_hand_over:
            self._due = self.now + self.costs.resume_seconds

    # --- precopy -----------------------------------------------------------------------------------------------------

    def _turn(self, until: float) -> None:
        """Send for one turn, or wait for a look at the bitmap to end or for the next window."""
        gauges = self._gauges
        if self.now < self._busy_until - _TINY:
            self._idle(min(until, self._busy_until) - self.now)
            return
        if self._outlet.full and self._speed() <= 0:
            self._idle(until - self.now)  # QEMU's thread hangs in its write: it measures nothing either
            return
        if self.now >= gauges.window_ends - _TINY:
            gauges.end_window(self.parameters, self.now, self.transferred_bytes)
        budget = gauges.budget(self.parameters, self.transferred_bytes)
        if budget < 1:
            self._turn_left = 0.0
            self._idle(min(until, gauges.window_ends) - self.now)
        elif self._turn_left > _TINY or not self._look():
            turn = self._turn_left if self._turn_left > _TINY else TURN_SECONDS
            turn -= self._send(min(turn, until - self.now), budget)
            self._turn_left = turn if self.memory.queued_bytes > 0 else 0.0

    def _look(self) -> bool:
        """Begin another round, postcopy or the switch if it is time for that; return whether it was."""
        threshold = self._gauges.threshold_bytes
        if self.memory.queued_bytes < threshold and not self._looked:
            self._looked = True
            self._begin_round()
            return True
        self._looked = False
        left = self.memory.queued_bytes
        switches = self._postcopy_wanted or left <= 0 or left < threshold
        if switches:
            self._switch()
        return switches

    def _begin_round(self) -> None:
        """Queue what the guest has dirtied since the last look."""
        found = self.memory.sync()
        self._busy_until = (
            self.now + self.costs.look_seconds(self.memory.total_bytes) + self._gauges.vcpu_wait_seconds
        )
        self._gauges.begin_round(
            self.parameters, self._busy_until, self.transferred_bytes, found, self.memory.queued_bytes
        )
        self._announce("MIGRATION_PASS", {"pass": self._gauges.round})

    def _send(self, seconds: float, budget: float) -> float:
        """Send for so long at most, and no more than the budget; return how long it took."""
        wire, spent = self._outlet.send(self.memory, seconds, budget, self._speed())
        self.transferred_bytes += wire
        self._pass(spent)
        return spent

    # --- the switch --------------------------------------------------------------------------------------------------

    def _switch(self) -> None:
        """Stop the guest; what follows depends on who asked."""
        self._was_running, self.run = self.run is _R.RUNNING, _R.FINISH_MIGRATE
        if self._was_running:
            self._stopped()
        if self.parameters.pause_before_switchover:
            self._set(_M.PRE_SWITCHOVER)
        else:
            self._leave()

    def _leave(self) -> None:
        """Take the last look, then send all the rest, or begin postcopy."""
        self.memory.sync()
        self._gauges.round += 1
        if self._postcopy_wanted:
            self._set(_M.POSTCOPY_ACTIVE)
            wire, cost = 0.0, self.costs.postcopy_seconds
        else:
            self._set(_M.DEVICE)
            wire, cost = self.memory.take_all(), self.costs.device_seconds
        self.transferred_bytes += wire
        flush = self._outlet.flush_seconds(wire, self._outlet.speed(0.0))
        self._due = self.now + self.costs.look_seconds(self.memory.total_bytes) + flush + cost

    def _pull(self, until: float) -> None:
        """Let the destination get ready for postcopy, then let the guest there fetch what it misses."""
        step = min(until, self.now + TURN_SECONDS, self._due) - self.now
        self._due += step if self.blocked else 0.0
        if self.ready:
            most = self.parameters.max_postcopy_bandwidth_bytes_per_second
            speed = min(self._outlet.speed(most), most or math.inf, self.costs.memory_bytes_per_second)
            wire, spent = self.memory.take_zero(step, self.costs.zero_bytes_per_second)
            if self.at_destination:
                page_seconds = PAGE_BYTES / speed if speed > 0 else math.inf
                self._requests += self.memory.forward_missing(step, page_seconds, self.costs.fault_seconds)
            sent = self.memory.take(speed * (step - spent))
            if self.memory.queued_bytes <= 0 and speed > 0:
                step = min(step, spent + sent / speed)
            self.transferred_bytes += wire + sent
        self.now += step
        if self.now >= self._due - _TINY:
            self._due = math.inf
            self._arrive()
        if self.ready and self.memory.queued_bytes <= 0:
            self._end(_M.COMPLETED)
            self.run = _R.POSTMIGRATE

    # --- what it says ------------------------------------------------------------------------------------------------

    def _stopped(self) -> None:
        self.stopped_seconds, self.resumed_seconds = self.now, None
        self._announce("STOP")

    def _resume_source(self) -> None:
        self.run = _R.RUNNING
        self.resumed_seconds = self.now
        self._announce("RESUME")

    def _set(self, status: MigrationStatus) -> None:
        self.status = status
        self._announce("MIGRATION", {"status": str(status)})

    def _end(self, status: MigrationStatus) -> None:
        self.ended_seconds = self.now
        if not (status is _M.COMPLETED and self.ready and not self.at_destination and self.auto_hand_over):
            self._due = math.inf
        self._gauges.throttle_ratio = 0.0
        self._outlet.close()
        self._set(status)

    def _announce(
        self, name: str, data: dict[str, str | int] | None = None, *, at_destination: bool = False
    ) -> None:
        self.events.append(SimulatedEvent(self.now, name, data or {}, at_destination))
