"""Interface of an algorithm to the harness: samples in, actions out; no clock, no QEMU."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from migrator.core.model import Sample
from migrator.core.policy import Policy, PostcopyMode


class Do(StrEnum):
    """Actions that an algorithm may take while memory is copied."""

    #: Value: seconds.
    DOWNTIME_LIMIT = "downtime-limit"
    #: Value: the share of the guest's CPU that auto-converge shall take from now on; 0: none.
    THROTTLE = "throttle"
    #: Value: bytes per second.
    BANDWIDTH = "bandwidth"
    POSTCOPY = "postcopy"
    #: Stop the guest until its memory has arrived.
    PAUSE = "pause"
    ABORT = "abort"


@dataclass(frozen=True)
class Action:
    """One thing to do."""

    do: Do
    value: float = 0.0


#: What a throttle is set to so that it sleeps: QEMU knows no 0.
ASLEEP_RATIO = 0.01


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings of QEMU before the migration."""

    downtime_limit_seconds: float = 0.3
    auto_converge: bool = False
    throttle_initial_ratio: float = 0.2
    throttle_increment_ratio: float = 0.1
    max_throttle_ratio: float = 0.99
    throttle_trigger_ratio: float = 0.5


class Strategy:
    """One algorithm, for one migration.

    What a peer lets its operator set is set to what the policy says; what it does not let him set is as shipped.

    :param memory_bytes: the guest's; some time-outs grow with it.
    """

    name: ClassVar[str]
    #: How often it looks.
    interval_seconds: ClassVar[float] = 1.0
    #: It looks at the beginning of each round too (event MIGRATION_PASS).
    at_rounds: ClassVar[bool] = False
    #: It wants the dirty rate measured beside the first round, over so long; 0: no.
    probe_seconds: ClassVar[float] = 0.0
    #: Bytes that it lets wait unsent in the stream's socket; ``None``: as many as the kernel does.
    unsent_bytes: ClassVar[int | None] = None
    #: It goes by time-outs and fixed steps.
    by_timers: ClassVar[bool] = True
    #: It is for policies that allow throttling, or postcopy; or for those that do not; ``None``: for both.
    for_throttle: ClassVar[bool | None] = None
    for_postcopy: ClassVar[bool | None] = None

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        self.policy = policy
        self.gib = memory_bytes / 2**30

    @classmethod
    def fits(cls, policy: Policy) -> bool:
        """Tell whether this algorithm, and not another of its family, is for this policy."""
        return cls.for_throttle in (None, policy.max_throttle_ratio > 0) and cls.for_postcopy in (
            None,
            policy.postcopy is not PostcopyMode.NEVER,
        )

    def setup(self) -> Setup:
        """Before the migration; by default auto-converge is on where the policy allows it."""
        most = self.policy.max_throttle_ratio
        limit = self.first_limit()
        return Setup(downtime_limit_seconds=limit, auto_converge=most > 0, max_throttle_ratio=most or 0.99)

    def first_limit(self) -> float:
        """The downtime limit to begin with, in seconds."""
        return self.policy.max_downtime_seconds

    @property
    def look_again_seconds(self) -> float:
        """When it wants to look again."""
        return self.interval_seconds

    @property
    def may_postcopy(self) -> bool:
        """The policy lets it switch to postcopy."""
        return self.policy.postcopy is not PostcopyMode.NEVER

    def on_probe(self, elapsed: float, rate: float) -> None:
        """The probe is over, `elapsed` seconds after the migration began: the guest's distinct bytes a second."""
        raise NotImplementedError

    def on_sample(self, sample: Sample) -> list[Action]:
        """One more look; what to do."""
        raise NotImplementedError
