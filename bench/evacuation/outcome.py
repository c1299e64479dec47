"""Outcome of one evacuation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One guest of it."""

    name: str
    #: State of its migration at the end.
    state: str
    downtime_seconds: float | None
    max_downtime_seconds: float
    max_throttle_ratio: float = 0.0
    #: How often it was tried; all but the last time it stayed where it was.
    attempts: int = 1
    postcopy: bool = False
    #: From the start of its preparation to its end without the wait for its turn, and what of it was QEMU's own: its
    #: start, and its migration.
    total_seconds: float = 0.0
    qemu_seconds: float = 0.0

    @property
    def outside(self) -> bool:
        """True where the guest was not moved, or stood still for longer than its policy allows."""
        return (
            self.state != "completed"
            or self.downtime_seconds is None
            or self.downtime_seconds > self.max_downtime_seconds
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One host, emptied once."""

    #: ``idle`` or ``mixed``, and the policy's name.
    mix: str
    policy: str
    count: int
    seed: int
    strategy: str
    #: From the command to the empty host.
    makespan_seconds: float
    #: No order of migrations could be faster.
    bound_seconds: float
    #: The link is busy for at least so long with what the policy makes the guests send; 0: not known.
    needed_seconds: float = 0.0
    #: As the plan said before.
    predicted_seconds: float
    guests: tuple[Moved, ...]
    #: That the controller computed, without what it simulated.
    cpu_seconds: float = 0.0
    #: That the whole run took to simulate.
    wall_seconds: float = 0.0

    @property
    def outside(self) -> list[Moved]:
        """Guests to which more was done than their policy allows, or that were not moved."""
        return [guest for guest in self.guests if guest.outside]

    @property
    def error_ratio(self) -> float:
        """Error of the plan as a share; less than 0: it took longer than was said."""
        return self.predicted_seconds / self.makespan_seconds - 1

    @property
    def overhead_seconds(self) -> float:
        """A guest that was moved, on average: all but the wait for its turn, and QEMU."""
        moved = [one.total_seconds - one.qemu_seconds for one in self.guests if one.state == "completed"]
        return sum(moved) / len(moved) if moved else 0.0
