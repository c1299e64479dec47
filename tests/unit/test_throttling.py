"""CPU time is taken only from a guest whose writing keeps it from ending, and not to and fro."""

from __future__ import annotations

import math
from dataclasses import replace

from migrator.core.migration import convergence
from migrator.core.migration.convergence import decide
from migrator.core.migration.convergence_state import Abilities, ActionKind, begin
from migrator.core.migration.forecast import Model, Round
from migrator.core.migration.throttling import Throttling, relax, share_that_ends, take
from migrator.core.model import Sample
from migrator.core.policy import Policy, PostcopyMode

MIB = 1 << 20
POLICY = Policy(name="mine", max_downtime_seconds=0.3, max_throttle_ratio=0.8, postcopy=PostcopyMode.ALLOW)


def model(rate: float, *, stream: float = 100.0, pending: float = 200.0) -> Model:
    ended = Round(
        at_seconds=5.0, duration_seconds=1.0, dirtied_bytes=int(rate * MIB), pending_bytes=int(pending * MIB)
    )
    last = Sample(at_seconds=5.0, round=2, remaining_bytes=int(pending * MIB))
    return Model(
        rounds=(ended,),
        bandwidth_bytes_per_second=stream * MIB,
        last=last,
        round_began=last,
        limit_seconds=0.001,
    )


def share(throttling: Throttling, seen: Model) -> float | None:
    return share_that_ends(
        throttling, seen, POLICY, ceiling_seconds=0.23, left_seconds=math.inf, other_rung=False
    )


def test_a_guest_that_writes_more_than_the_stream_carries_is_throttled() -> None:
    assert share(Throttling(), model(130)) is not None


def test_an_idle_guest_is_never_throttled() -> None:
    assert share(Throttling(), model(1.0, stream=20.0)) is None


def test_the_direction_changes_a_second_time_only_for_a_guest_that_writes_much_more() -> None:
    taken, evidence = take(Throttling(), model(130), share=0.4, at_seconds=5.0)
    assert evidence == ""
    given_back = relax(taken, model(50), ceiling_seconds=0.23, left_seconds=math.inf)
    assert given_back is not None
    relaxed, evidence = given_back
    assert relaxed.ratio == 0
    assert evidence == ""
    assert share(replace(relaxed, write_rate=120.0 * MIB), model(130)) is None
    assert share(relaxed, model(130)) is not None
    _, evidence = take(relaxed, model(130), share=0.4, at_seconds=9.0)
    assert "new: it writes 130" in evidence


def test_cpu_time_is_given_back_again_only_to_a_guest_that_writes_much_less() -> None:
    again = Throttling(ratio=0.4, relaxed_times=1, write_rate=60.0 * MIB)
    assert relax(again, model(55), ceiling_seconds=0.23, left_seconds=math.inf) is None
    assert relax(again, model(40), ceiling_seconds=0.23, left_seconds=math.inf) is not None


def _samples(stream: list[float], *, rate: float, total: float = 256.0) -> list[Sample]:
    """A guest of `total` MiB over a stream that carries so many MiB/s in each tenth of a second."""
    found, left, sent, number, since = [], total, 0.0, 1, 0.0
    for step, speed in enumerate(stream, start=1):
        moved = min(left, speed / 10)
        left, sent, since = left - moved, sent + moved, since + 0.1
        if left <= 0:
            left, since, number = rate * since, 0.0, number + 1
        found.append(
            Sample(
                at_seconds=step / 10,
                round=number,
                total_bytes=int(total * MIB),
                remaining_bytes=int(left * MIB),
                transferred_bytes=int(sent * MIB),
                bandwidth_bytes_per_second=speed * MIB,
            )
        )
    return found


def _acts(samples: list[Sample], *, probe: float, policy: Policy = POLICY) -> list[ActionKind]:
    state = begin(policy)
    acts: list[ActionKind] = []
    for sample in samples:
        if sample.at_seconds == 1.0:
            state = convergence.after_probe(state, at_seconds=1.0, period_seconds=1.0, dirty_rate=probe * MIB)
        state, _, actions = decide(state, sample, policy, Abilities(postcopy=True, throttle=True))
        acts += [action.act for action in actions if action.act is not ActionKind.LIMIT]
    return acts


def test_an_idle_guest_that_beside_others_is_neither_throttled_nor_sent_to_postcopy() -> None:
    starved = [0.7] * 15 + [2.0] * 600
    assert _acts(_samples(starved, rate=1.0, total=64.0), probe=1.0) == []


def test_a_bandwidth_that_is_low_for_a_moment_condemns_nobody() -> None:
    dip = [100.0] * 40 + [20.0] * 30 + [100.0] * 10
    assert _acts(_samples(dip, rate=50.0), probe=50.0) == []


def test_postcopy_does_not_begin_before_a_full_first_pass() -> None:
    policy = POLICY.but(max_throttle_ratio=0.0)
    samples = _samples([100.0] * 150, rate=400.0, total=512.0)
    first_pass = [sample for sample in samples if sample.round == 1]
    assert _acts(first_pass, probe=400.0, policy=policy) == []
    assert _acts(samples, probe=400.0, policy=policy) == [ActionKind.START_POSTCOPY]
