"""State of a precopy that is decided on, and the actions that may be taken. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from migrator.core.migration.forecast import DEFAULT_OVERHEAD_SECONDS, Forecast, Model, Verdict
from migrator.core.migration.halted_stream import StreamHistory
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS, SwitchPlan
from migrator.core.migration.throttling import Throttling
from migrator.core.policy import Policy

if TYPE_CHECKING:
    from migrator.core.guest_experience import GuestPrior

#: Left of the ceiling for what the bandwidth may fall by during the switch.
_CEILING_MARGIN_RATIO = 0.1
#: What a forecast waits for before there is one.
WATCHING = "a second of watching how fast the guest writes"


class ActionKind(StrEnum):
    """Kinds of action that the controller may take while memory is copied."""

    LIMIT = "downtime-limit"
    THROTTLE = "throttle"
    START_POSTCOPY = "start-postcopy"
    #: Stop the guest until its memory has arrived.
    PAUSE = "pause"
    GIVE_UP = "give-up"
    #: Nothing is done to the guest: it would end if others did not share its path, so those are to be held back.
    CROWDED = "crowded"
    #: Nothing is done; somebody should know.
    AT_RISK = "at-risk"


@dataclass(frozen=True, kw_only=True)
class Action:
    """One action and the reason for it."""

    act: ActionKind
    reason: str
    #: With ``downtime-limit``: seconds. With ``throttle``: the share of CPU time to take.
    value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """Abilities that both ends turned out to have."""

    postcopy: bool
    throttle: bool


@dataclass(frozen=True, kw_only=True)
class ConvergenceState:
    """State that :func:`decide` carries from one sample to the next."""

    model: Model = field(default_factory=Model)
    stream: StreamHistory = field(default_factory=StreamHistory)
    throttling: Throttling = field(default_factory=Throttling)
    #: Rounds after which the verdict was bad, in a row.
    bad_rounds: int = 0
    #: When the first of them ended, seconds since the migration began.
    bad_since: float = math.inf
    #: Since when the bandwidth alone was what the copy lacked, and was taken to be low for a moment; seconds since the
    #: migration began.
    moment_since: float = math.inf
    #: Rounds and probes that a verdict was given on.
    judged_entries: int = 0
    #: The last verdict, and when it was given, seconds since the migration began.
    judged: Forecast = field(default_factory=lambda: Forecast(verdict=Verdict.UNKNOWN, waiting_for=WATCHING))
    judged_at_seconds: float = -math.inf
    switch: SwitchPlan = field(default_factory=SwitchPlan)
    #: Something was done that nothing follows on: postcopy, pause or giving up.
    settled: bool = False
    at_risk: bool = False
    #: It was said that others of its path are to be held back.
    crowded: bool = False
    #: Total time forecast at the end of the first round, seconds; what the forecast's error is measured by.
    first_forecast_seconds: float | None = None
    #: How often the guest was seen to change its habit.
    habit_changes: int = 0

    @property
    def look_in_seconds(self) -> float | None:
        """Return in how many seconds the source is to be looked at, as the switch is near; ``None`` where it is not."""
        return None if self.settled else self.switch.look_in_seconds


def begin(
    policy: Policy,
    *,
    overhead_seconds: float = DEFAULT_OVERHEAD_SECONDS,
    prior: GuestPrior | None = None,
) -> ConvergenceState:
    """Return the state to begin with; :attr:`Model.limit_seconds` in it is the limit to give to QEMU.

    :param overhead_seconds: learned: the part of downtime that is not memory over the network.
    :param prior: likewise: what the guest did before.
    """
    # Of an offline one nothing is dirtied, so no limit is too high.
    first = policy.max_downtime_seconds if policy.offline else PARKED_LIMIT_SECONDS
    return ConvergenceState(model=Model(overhead_seconds=overhead_seconds, limit_seconds=first, prior=prior))


def usable_limit(policy: Policy, overhead_seconds: float) -> float:
    """Return the highest downtime limit that keeps the downtime under the policy's ceiling, in seconds.

    Never less than a tenth of the ceiling: where the overhead alone exceeds it, no limit would help.

    :param overhead_seconds: part of the downtime that the limit says nothing of: the switch itself, and what is queued.
    """
    ceiling = policy.max_downtime_seconds
    return max(ceiling * (1 - _CEILING_MARGIN_RATIO) - overhead_seconds, ceiling * 0.1, 0.001)
