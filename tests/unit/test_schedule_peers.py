"""The schedule beside a fixed number at a time, in a world of rounds of precopy that it knows nothing of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from migrator.core.inventory import Host
from migrator.core.schedule import LinkRules, Transfer, TransferPhase
from migrator.core.schedule.timetable import predict
from tests.schedule_decisions import decided

MIB = 2**20
LINK = 117 * MIB
RULES = LinkRules(reserve_ratio=0.0)
HOSTS = {name: Host(name=name, link_bytes_per_second=LINK) for name in ("source", "t0", "t1", "t2")}
PREPARE, CLEAR, TICK = 1.0, 0.3, 0.02
#: Downtime that is allowed, and rounds after which postcopy takes the rest.
DOWNTIME, ROUNDS = 0.3, 6


@dataclass(eq=False)
class Guest:
    """Memory that is dirtied while it is sent: a working set, so and so fast."""

    name: str
    target: str
    left: float
    dirty_rate: float
    working_set: float
    phase: TransferPhase = TransferPhase.WAITING
    #: Of the phase, where it ends by itself; the last part of a transfer takes no bandwidth.
    seconds_left: float = PREPARE
    round: int = 0
    round_seconds: float = 0.0
    switching: bool = False

    def transfer(self) -> Transfer:
        return Transfer(
            guest=self.name,
            source="source",
            target=self.target,
            phase=self.phase,
            bytes_left=self.left,
            dirty_rate_bytes_per_second=self.dirty_rate,
            prepare_seconds=PREPARE,
            finish_seconds=CLEAR,
        )

    def tick(self, bandwidth: float) -> bool:
        """Whether it is at the end of a phase."""
        if self.phase is not TransferPhase.TRANSFERRING or (self.switching and self.left <= 0):
            self.seconds_left -= TICK
            return self.seconds_left <= 0
        self.left = max(0.0, self.left - bandwidth * TICK)
        self.round_seconds += TICK
        if self.left <= 0 and not self.switching:
            self.left = min(self.dirty_rate * self.round_seconds, self.working_set)
            self.round, self.round_seconds = self.round + 1, 0.0
            self.switching = self.left <= bandwidth * DOWNTIME or self.round >= ROUNDS
        return False

    def next_phase(self) -> None:
        phases = list(TransferPhase)
        self.phase = phases[phases.index(self.phase) + 1]
        self.seconds_left = {
            TransferPhase.PREPARING: PREPARE,
            TransferPhase.TRANSFERRING: 0.1,
            TransferPhase.FINISHING: CLEAR,
        }.get(self.phase, 0.0)


def guests(count: int, heavy: float, sizes: Sequence[int]) -> list[Guest]:
    generator, found = random.Random(1), []
    for n in range(count):
        memory, writes = generator.choice(sizes) * MIB, heavy and n % round(1 / heavy) == 0
        rate = generator.uniform(40, 90) if writes else generator.uniform(0.1, 3)
        found.append(Guest(f"g{n}", f"t{n % 3}", memory, rate * MIB, memory / 2 if writes else 16 * MIB))
    return found


def carried_out(going: list[Guest], turn: Callable[[list[Guest], float], dict[Guest, float]]) -> float:
    """How long it takes until all are there; `turn` begins what it likes and says who gets how much."""
    now = 0.0
    while going:
        bandwidth = turn(going, now)
        for one in list(going):
            if one.phase in (TransferPhase.WAITING, TransferPhase.READY) or not one.tick(
                bandwidth.get(one, 0.0)
            ):
                continue
            if one.phase is TransferPhase.FINISHING:
                going.remove(one)
            else:
                one.next_phase()
        now += TICK
    return now


def at_a_time(count: int) -> Callable[[list[Guest], float], dict[Guest, float]]:
    """As many as that have a slot, from the beginning of the preparation to the end of all; the link shares itself."""

    def turn(going: list[Guest], _now: float) -> dict[Guest, float]:
        for one in going[:count]:
            if one.phase in (TransferPhase.WAITING, TransferPhase.READY):
                one.next_phase()
        sending = [one for one in going[:count] if one.phase is TransferPhase.TRANSFERRING]
        return {one: LINK / len(sending) for one in sending}

    return turn


def by_schedule() -> Callable[[list[Guest], float], dict[Guest, float]]:
    """Asks at every event and twice a second."""
    asked: tuple[float, list[tuple[Guest, TransferPhase]]] = (-1.0, [])
    given: dict[Guest, float] = {}

    def turn(going: list[Guest], now: float) -> dict[Guest, float]:
        nonlocal asked, given
        if now < asked[0] and asked[1] == [(one, one.phase) for one in going]:
            return given
        orders = decided([one.transfer() for one in going], HOSTS, RULES)
        for one in going:
            if one.name in (*orders.prepare, *orders.begin):
                one.next_phase()
        given = {one: orders.bandwidth[one.name] for one in going if one.name in orders.bandwidth}
        asked = (now + min(0.5, orders.recheck_seconds or 0.5), [(one, one.phase) for one in going])
        return given

    return turn


SMALL, LARGE = (64, 128, 256, 512), (256, 512, 1024, 2048)


@pytest.mark.parametrize(("count", "sizes"), [(12, LARGE), (50, SMALL), (50, LARGE)], ids=str)
def test_idle_guests_take_at_most_a_tenth_more_than_their_bytes(count: int, sizes: Sequence[int]) -> None:
    bound = sum(one.left for one in guests(count, 0, sizes)) / LINK
    assert carried_out(guests(count, 0, sizes), by_schedule()) <= 1.10 * bound


@pytest.mark.parametrize(("count", "sizes"), [(12, SMALL), (12, LARGE), (50, SMALL)], ids=str)
def test_a_mix_with_a_third_that_writes_much_takes_a_quarter_less_than_2_or_5_at_a_time(
    count: int, sizes: Sequence[int]
) -> None:
    took = carried_out(guests(count, 1 / 3, sizes), by_schedule())
    for fixed in (2, 5):
        assert took <= 0.75 * carried_out(guests(count, 1 / 3, sizes), at_a_time(fixed))


@pytest.mark.parametrize("heavy", [0, 1 / 3], ids=["idle", "mixed"])
@pytest.mark.parametrize(("count", "sizes"), [(12, SMALL), (12, LARGE), (50, SMALL)], ids=str)
def test_what_was_predicted_is_within_15_percent(count: int, sizes: Sequence[int], heavy: float) -> None:
    told = predict([one.transfer() for one in guests(count, heavy, sizes)], HOSTS, RULES).makespan
    took = carried_out(guests(count, heavy, sizes), by_schedule())
    assert took == pytest.approx(told.p50, rel=0.15)
