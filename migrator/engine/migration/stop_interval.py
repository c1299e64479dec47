"""Measures how long the guest stood still because of the migration: between bounds where nobody watched."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.engine import clock
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.ports import Qemu, QemuEvent

#: QEMU stamps events in microseconds.
_STAMP_SECONDS = 1e-6


@dataclass(frozen=True)
class TimeBounds:
    """The time when something happened, in seconds since the epoch: not before the one and not after the other."""

    earliest: float
    latest: float

    @classmethod
    def of(cls, event: QemuEvent, end: Qemu) -> TimeBounds:
        """Return when an event happened: by its stamp where that end shares our clock, else by its arrival."""
        if end.shares_clock:
            return cls(event.stamped - _STAMP_SECONDS, event.stamped + _STAMP_SECONDS)
        arrived = clock.wall() - (clock.now() - event.arrived)
        return cls(arrived - end.round_trip_seconds, arrived + end.round_trip_seconds)


class StopInterval:
    """Writes what it knows to the outcome; see its ``standstill_seconds`` and ``downtime_seconds``."""

    def __init__(self, result: MigrationOutcome) -> None:
        self._result = result
        self._stop: tuple[QemuEvent, Qemu] | None = None
        self._stopped: TimeBounds | None = None
        #: Of what is over.
        self._before, self._give_or_take = 0.0, 0.0

    @property
    def stands(self) -> bool:
        """Return whether it was stopped, and nobody has seen it go on."""
        return self._stopped is not None

    @property
    def stopped(self) -> TimeBounds | None:
        """Return when it was stopped; ``None`` while it is not known to stand still."""
        return self._stopped

    def stop(self, event: QemuEvent, end: Qemu) -> None:
        """Note that QEMU announced the stop."""
        self._stop, self._stopped = (event, end), TimeBounds.of(event, end)

    def stopped_at(self, moment: TimeBounds) -> None:
        """Note when it was stopped though nobody heard it, or another did."""
        if self._stopped is None:
            self._stopped = moment

    def forget(self) -> None:
        """Forget the stop: somebody stopped the guest and let it go on, not the migration."""
        self._stop = self._stopped = None

    def resume(self, event: QemuEvent, end: Qemu) -> None:
        """Note that QEMU announced at either end that the guest goes on."""
        if self._stop is None:
            self.resumed_at(TimeBounds.of(event, end))
            return
        stop, source = self._stop
        if end is source or (source.shares_clock and end.shares_clock):
            seconds, give_or_take = event.stamped - stop.stamped, 2 * _STAMP_SECONDS
        else:
            seconds = event.arrived - stop.arrived
            give_or_take = source.round_trip_seconds + end.round_trip_seconds
        self._over(max(0.0, seconds), give_or_take)

    def resumed_at(self, moment: TimeBounds) -> None:
        """Note when it went on though nobody heard it."""
        if self._stopped is None:
            return
        shortest = max(0.0, moment.earliest - self._stopped.latest)
        longest = max(shortest, moment.latest - self._stopped.earliest)
        self._over((shortest + longest) / 2, (longest - shortest) / 2)

    def took(self, seconds: float, give_or_take: float) -> None:
        """Note what another has measured."""
        self._over(seconds, give_or_take)

    def over(self) -> None:
        """Note that it goes on, since some time between the stop and now."""
        if self._stopped is not None:
            self.resumed_at(TimeBounds(self._stopped.earliest, clock.wall()))

    def so_far(self) -> None:
        """Show what it has come to until now, as it is held."""
        if self._stopped is not None:
            now = clock.wall()
            shortest = max(0.0, now - self._stopped.latest)
            longest = max(shortest, now - self._stopped.earliest)
            self._show((shortest + longest) / 2, (longest - shortest) / 2)

    def _over(self, seconds: float, give_or_take: float) -> None:
        self._stop = self._stopped = None
        self._result.downtime_seconds = seconds
        self._result.downtime_uncertainty_seconds = give_or_take
        self._show(seconds, give_or_take)
        self._before += seconds
        self._give_or_take += give_or_take

    def _show(self, seconds: float, give_or_take: float) -> None:
        self._result.standstill_seconds = self._before + seconds
        self._result.standstill_uncertainty_seconds = self._give_or_take + give_or_take
