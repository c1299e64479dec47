"""The guests, the link and the policies that every algorithm meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from migrator.core.policy import Policy, PostcopyMode, Preference
from migrator.testing.guest import Habit
from migrator.testing.workload import MIB, Workload, change, from_habit

#: What the link carries of payload.
LINK_BYTES_PER_SECOND = 100.0 * MIB
MEMORY_BYTES = 512 * MIB
_REGION = 300 * MIB


@dataclass(frozen=True)
class Guest:
    """A guest for the simulator, and the same for real; ``None`` where the test guest cannot be made to do it."""

    name: str
    simulated: Callable[[], Workload]
    real: Habit | None
    #: It has run for so long when its migration begins.
    runs_before_seconds: float = 1.0


@dataclass(frozen=True)
class Setting:
    """A policy under the name it has in the tables."""

    name: str
    policy: Policy


def _real(name: str, habit: Habit) -> Guest:
    return Guest(name, lambda: from_habit(habit), habit)


def _pace(mib: float, *, growth: float = 0, on_seconds: float = 0, off_seconds: float = 0) -> Habit:
    return Habit(
        region_bytes=_REGION,
        bytes_per_second=mib * MIB,
        bytes_per_second_per_second=growth * MIB,
        on_seconds=on_seconds,
        off_seconds=off_seconds,
    )


GUESTS: tuple[Guest, ...] = (
    _real("idle", Habit()),
    _real("well under the link", _pace(30)),
    _real("just under the link", _pace(85)),
    _real("well over the link", _pace(200)),
    _real("small hot set", Habit(region_bytes=16 * MIB, bytes_per_second=400 * MIB)),
    _real("on 5 s, off 5 s", _pace(200, on_seconds=5, off_seconds=5)),
    _real("sawtooth", _pace(1, growth=7.5, on_seconds=20, off_seconds=0.01)),
    _real("slowly growing", _pace(20, growth=2)),
    _real("calms down", _pace(200, on_seconds=12, off_seconds=3600)),
    Guest("wakes up", lambda: change(_REGION, 5 * MIB, 200 * MIB, at_seconds=3), None),
)

SETTINGS: tuple[Setting, ...] = (
    Setting("precopy only", Policy(name="precopy only", max_downtime_seconds=0.3)),
    Setting("throttle to 80 %", Policy(name="throttle", max_downtime_seconds=0.3, max_throttle_ratio=0.8)),
    Setting("postcopy", Policy(name="postcopy", max_downtime_seconds=0.3, postcopy=PostcopyMode.ALLOW)),
    Setting(
        "30 s, throttle",
        Policy(name="30 s", max_downtime_seconds=0.3, max_throttle_ratio=0.8, max_duration_seconds=30.0),
    ),
)

#: Those that are met only by who asks for them.
ON_DEMAND: tuple[Setting, ...] = (
    Setting("in haste", Policy(name="in haste", max_downtime_seconds=0.3, prefer=Preference.TIME)),
)
