"""How others decide, from the constants that they publish; see docs/policies.md for how we do."""

from __future__ import annotations

from typing import ClassVar

from bench.policies.strategy import Action, Do, Strategy
from migrator.core.model import Sample
from migrator.core.policy import Policy


class QemuDefault(Strategy):
    """Nobody steers: 300 ms, and whatever comes of it."""

    name = "QEMU default"
    by_timers = False
    for_throttle = False

    def on_sample(self, sample: Sample) -> list[Action]:
        del sample
        return []


class QemuAutoConverge(QemuDefault):
    """Nobody steers, auto-converge is on: from 20 % in steps of 10 %."""

    name = "QEMU auto-converge"
    for_throttle = True


class VdsmMinimalDowntime(Strategy):
    """oVirt: looks every 10 s; each time that more is left than before counts, and the count takes the next step."""

    name = "VDSM minimal downtime"
    interval_seconds = 10.0
    for_postcopy = False
    steps: ClassVar[dict[int, float]] = {1: 0.15, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.5}

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        super().__init__(policy, memory_bytes)
        self._last: int | None = None
        self._count = 0

    def first_limit(self) -> float:
        return 0.1

    def on_sample(self, sample: Sample) -> list[Action]:
        last, self._last = self._last, sample.remaining_bytes
        if last is None or sample.remaining_bytes <= last:
            return []
        self._count += 1
        if self._count in self.steps:
            limit = min(self.steps[self._count], self.policy.max_downtime_seconds)
            return [Action(Do.DOWNTIME_LIMIT, limit)]
        return [self.last_step()]

    def last_step(self) -> Action:
        """When the table is at its end."""
        return Action(Do.ABORT)


class VdsmPostcopy(VdsmMinimalDowntime):
    """oVirt's other policy: two steps, then postcopy."""

    name = "VDSM post-copy"
    steps: ClassVar[dict[int, float]] = {1: 0.15, 2: 0.2}
    for_postcopy = True

    def last_step(self) -> Action:
        return Action(Do.POSTCOPY)


class Nova(Strategy):
    """OpenStack: ten steps up to the ceiling, one each 75 s a GiB; after 800 s a GiB it aborts or forces."""

    name = "Nova"
    interval_seconds = 0.5
    steps = 10

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        super().__init__(policy, memory_bytes)
        self._step = 0

    def _limit(self, step: int) -> float:
        most = self.policy.max_downtime_seconds
        first = most / self.steps
        return first + (most - first) * step / self.steps

    def first_limit(self) -> float:
        return self._limit(0)

    def on_sample(self, sample: Sample) -> list[Action]:
        if sample.at_seconds >= 800.0 * self.gib:
            return [Action(Do.POSTCOPY if self.may_postcopy else Do.ABORT)]
        step = min(self.steps, int(sample.at_seconds / (75.0 * self.gib)))
        if step == self._step:
            return []
        self._step = step
        return [Action(Do.DOWNTIME_LIMIT, self._limit(step))]


class KubeVirt(Strategy):
    """The legacy one: nothing for 150 s a GiB, then postcopy or abort. Its stall time-out never comes to an end."""

    name = "KubeVirt"
    timeout_seconds_per_gib = 150.0

    def on_sample(self, sample: Sample) -> list[Action]:
        if sample.at_seconds >= self.timeout_seconds_per_gib * self.gib:
            return [Action(Do.POSTCOPY if self.may_postcopy else Do.ABORT)]
        return []


class KubeVirtNew(KubeVirt):
    """The newer design: at the ends of rounds, when 40 s brought no progress, if what is left fits the budget."""

    name = "KubeVirt (new)"
    at_rounds = True
    smoothing = 0.4
    stall_ratio = 0.96
    stall_seconds = 40.0

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        super().__init__(policy, memory_bytes)
        self._bandwidth = 0.0
        self._round = 0
        #: What was left at the ends of rounds, and when.
        self._left: list[tuple[float, int]] = []

    def on_sample(self, sample: Sample) -> list[Action]:
        if sample.bandwidth_bytes_per_second > 0:
            old = self._bandwidth or sample.bandwidth_bytes_per_second
            self._bandwidth = old + self.smoothing * (sample.bandwidth_bytes_per_second - old)
        if sample.round == self._round or self._bandwidth <= 0:
            return super().on_sample(sample)
        self._round = sample.round
        before = [left for at, left in self._left if at <= sample.at_seconds - self.stall_seconds]
        best = min((left for _, left in self._left), default=0)
        self._left.append((sample.at_seconds, sample.remaining_bytes))
        stalled = bool(before) and sample.remaining_bytes >= self.stall_ratio * min(before)
        near_the_best = sample.remaining_bytes * self.stall_ratio <= best
        if stalled and near_the_best:
            if self.may_postcopy:
                return [Action(Do.POSTCOPY)]
            needed = sample.remaining_bytes / self._bandwidth
            if needed <= self.policy.max_downtime_seconds:
                return [Action(Do.PAUSE)]
        return super().on_sample(sample)


class Proxmox(Strategy):
    """Every second; more than five times that more was left than before double the limit, without end."""

    name = "Proxmox VE"

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        super().__init__(policy, memory_bytes)
        self._limit = 0.1
        self._last: int | None = None
        self._rises = 0

    def first_limit(self) -> float:
        return self._limit

    def on_sample(self, sample: Sample) -> list[Action]:
        last, self._last = self._last, sample.remaining_bytes
        self._rises += last is not None and sample.remaining_bytes > last
        if self._rises <= 5:
            return []
        self._rises = 0
        self._limit = min(2000.0, self._limit * 2)
        return [Action(Do.DOWNTIME_LIMIT, self._limit)]


PEERS: tuple[type[Strategy], ...] = (
    QemuDefault,
    QemuAutoConverge,
    VdsmMinimalDowntime,
    VdsmPostcopy,
    Nova,
    KubeVirt,
    KubeVirtNew,
    Proxmox,
)
