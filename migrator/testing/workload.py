"""Workloads of a simulated guest: regions of memory, how fast they are written to, and how that changes.

A page is dirty once, however often it is written to: of what a guest writes between two looks at QEMU's dirty
bitmap only the distinct pages count. That number saturates at the region's size, at once where the guest sweeps it
in order (as the test guest does), slowly where it writes at random.

::

    workload = steady(400 * MIB, 90 * MIB)              # a sweep of 90 MiB/s over 400 MiB
    workload = on_off(400 * MIB, 300 * MIB, on_seconds=5, off_seconds=5)
    workload = from_habit(Habit(region_bytes=64 << 20, bytes_per_second=10 << 20))
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from migrator.testing.guest import TICK_SECONDS, Habit

PAGE_BYTES = 4096
MIB = 1 << 20
#: What a guest that only sleeps still dirties: its stack, its counters, its firmware's tables.
IDLE_REGION_BYTES = 10 * PAGE_BYTES
#: A guest paced by a timer catches up after a short sleep: of the ticks it slept through one is kept, so that it
#: loses no work until it gets less than half of its CPU.
PACED_CPU_RATIO = 0.5
#: How fast one vCPU of the test guest writes pages (one byte in each) where nothing holds it back, under TCG.
UNPACED_BYTES_PER_SECOND = 30000.0 * MIB
#: A pace that grows is a staircase of so many steps a burst; without bursts it grows for so long.
_GROWTH_STEPS = 50
_GROWTH_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Region:
    """Memory that is written to in one manner."""

    size_bytes: int
    #: In random order instead of one page after the other, round and round.
    random: bool = False
    #: What is written here is not the guest's work.
    background: bool = False

    def distinct_bytes(self, written_bytes: float) -> float:
        """Return how much of it is dirty after so much was written to."""
        if self.random:
            return -self.size_bytes * math.expm1(-written_bytes / self.size_bytes)
        return min(float(self.size_bytes), written_bytes)


@dataclass(frozen=True)
class WorkloadPhase:
    """A phase of a workload: some time of the same habit."""

    #: On the guest's own clock, which stands still while the guest does.
    seconds: float
    #: For each region: bytes of pages written to per second.
    rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A guest's memory and its habits.

    :param regions: apart from each other.
    :param phases: in order; the last one lasts for ever unless they are repeated.
    :param constant_bytes: memory that is not zero and never written to.
    :param cpu_ratio: the share of its CPU that it needs for its pace: throttled to more than that it loses nothing.
    """

    regions: tuple[Region, ...]
    phases: tuple[WorkloadPhase, ...]
    repeat: bool = False
    constant_bytes: int = MIB // 2
    cpu_ratio: float = PACED_CPU_RATIO
    name: str = ""
    _ends: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.phases or any(len(phase.rates) != len(self.regions) for phase in self.phases):
            raise ValueError("a workload needs at least one phase, and each phase a rate for every region")
        if any(phase.seconds <= 0 for phase in self.phases):
            raise ValueError("a phase has to last for some time")
        object.__setattr__(self, "_ends", tuple(accumulate(phase.seconds for phase in self.phases)))

    @property
    def working_bytes(self) -> int:
        """All bytes that it ever writes to."""
        return sum(region.size_bytes for region in self.regions)

    def rates_at(self, seconds: float) -> tuple[tuple[float, ...], float]:
        """Return the rates at that time on the guest's clock, and when they next change."""
        since = math.floor(seconds / self._ends[-1]) * self._ends[-1] if self.repeat else 0.0
        index = bisect_right(self._ends, seconds - since)
        if index >= len(self.phases) - 1 and not self.repeat:
            return self.phases[-1].rates, math.inf
        index = min(index, len(self.phases) - 1)
        # Rounding may put the end of a phase on this very moment.
        return self.phases[index].rates, max(since + self._ends[index], seconds + 1e-6)

    def speed_ratio(self, throttle_ratio: float) -> float:
        """Return the share of its pace that is left when so much of its CPU is taken away."""
        return min(1.0, (1.0 - throttle_ratio) / self.cpu_ratio) if self.cpu_ratio > 0 else 1.0


def _workload(
    name: str,
    regions: Sequence[Region],
    phases: Sequence[tuple[float, Sequence[float]]],
    *,
    repeat: bool = False,
) -> Workload:
    """Make a workload with the little that any guest dirties."""
    return Workload(
        name=name,
        regions=(Region(size_bytes=IDLE_REGION_BYTES, background=True), *regions),
        phases=tuple(WorkloadPhase(seconds, (IDLE_REGION_BYTES / 0.02, *rates)) for seconds, rates in phases),
        repeat=repeat,
    )


def idle() -> Workload:
    """Return the workload of a guest that sleeps."""
    return _workload("idle", [], [(math.inf, [])])


def steady(region_bytes: int, bytes_per_second: float, *, random: bool = False) -> Workload:
    """Return a workload of one pace over one region; a small region and a high pace make a hot set."""
    return _workload(
        "steady", [Region(size_bytes=region_bytes, random=random)], [(math.inf, [bytes_per_second])]
    )


def on_off(region_bytes: int, bytes_per_second: float, *, on_seconds: float, off_seconds: float) -> Workload:
    """Return a workload of bursts: `on_seconds` at that pace, `off_seconds` of quiet, and so on."""
    phases = [(on_seconds, [bytes_per_second]), (off_seconds, [0.0])]
    return _workload("on-off", [Region(size_bytes=region_bytes)], phases, repeat=True)


def ramp(
    region_bytes: int,
    low_bytes_per_second: float,
    high_bytes_per_second: float,
    *,
    seconds: float,
    repeat: bool = False,
    steps: int = 50,
) -> Workload:
    """Return a workload whose pace grows from low to high and stays; with `repeat` it is a sawtooth."""
    slope = (high_bytes_per_second - low_bytes_per_second) / steps
    phases = [(seconds / steps, [low_bytes_per_second + slope * (step + 0.5)]) for step in range(steps)]
    if not repeat:
        phases.append((math.inf, [high_bytes_per_second]))
    name = "sawtooth" if repeat else "growing"
    return _workload(name, [Region(size_bytes=region_bytes)], phases, repeat=repeat)


def change(region_bytes: int, before: float, after: float, *, at_seconds: float) -> Workload:
    """Return a workload with another pace from some time on."""
    phases = [(at_seconds, [before]), (math.inf, [after])]
    return _workload("change", [Region(size_bytes=region_bytes)], phases)


def from_habit(habit: Habit) -> Workload:
    """Return the workload that the test guest has with this habit."""
    size, greedy = habit.region_bytes, habit.bytes_per_second is None
    rate = UNPACED_BYTES_PER_SECOND if habit.bytes_per_second is None else habit.bytes_per_second
    growth = habit.bytes_per_second_per_second
    if not size:
        return idle()
    if habit.passes is not None:
        found = change(size, rate, 0.0, at_seconds=max(TICK_SECONDS, habit.passes * size / rate))
    elif habit.on_seconds:
        steps = _GROWTH_STEPS if growth else 1
        each = habit.on_seconds / steps
        phases = [(each, [rate + growth * each * (step + 0.5)]) for step in range(steps)]
        phases.append((habit.off_seconds, [0.0]))
        found = _workload("on-off", [Region(size_bytes=size)], phases, repeat=True)
    elif growth:
        found = ramp(size, rate, rate + growth * _GROWTH_SECONDS, seconds=_GROWTH_SECONDS, steps=300)
    else:
        found = steady(size, rate)
    return replace(found, cpu_ratio=1.0) if greedy else found
