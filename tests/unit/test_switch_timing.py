"""The moment of the switch: the limit is parked, then given as long ahead as QEMU may take to notice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from migrator.core.migration.forecast import Model, Round
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS, LimitChange, SwitchPlan, plan_switch
from migrator.core.model import Sample
from migrator.core.policy import Policy, Preference

MIB = 1 << 20
POLICY = Policy(name="mine", max_downtime_seconds=0.3)


def copying(
    rate: float,
    *,
    pending: float,
    at: float = 5.0,
    queued: float | None = None,
    backlog: float = 0.0,
    first: bool = False,
) -> Model:
    """A guest that writes `rate` MiB/s to 200 MiB while `pending` MiB are left of a stream of 100 MiB/s."""
    rounds = [
        Round(
            at_seconds=at - 1,
            duration_seconds=2.0,
            dirtied_bytes=int(2 * rate * MIB),
            pending_bytes=200 * MIB,
        ),
        Round(
            at_seconds=at,
            duration_seconds=1.0,
            dirtied_bytes=int(rate * MIB),
            pending_bytes=int(pending * MIB),
        ),
    ]
    last = Sample(
        at_seconds=at,
        round=3,
        remaining_bytes=int(pending * MIB),
        queued_bytes=None if queued is None else int(queued * MIB),
        disk_backlog_bytes=int(backlog * MIB),
    )
    return Model(
        rounds=tuple(rounds[1:] if first else rounds),
        bandwidth_bytes_per_second=100.0 * MIB,
        limit_seconds=PARKED_LIMIT_SECONDS,
        last=last,
        round_began=last,
    )


def planned(
    model: Model, plan: SwitchPlan | None = None, *, policy: Policy = POLICY, left: float = math.inf
) -> tuple[SwitchPlan, LimitChange | None]:
    assert model.last is not None
    return plan_switch(
        plan or SwitchPlan(),
        model,
        model.last,
        policy,
        limit_ceiling_seconds=0.23,
        downtime_ceiling_seconds=policy.max_downtime_seconds,
        throttle_ratio=0.0,
        left_seconds=left,
    )


def test_the_limit_stays_parked_while_the_switch_is_far() -> None:
    plan, change = planned(copying(30, pending=100))
    assert change is None
    assert not plan.given
    assert plan.look_in_seconds is None


def test_it_is_given_ahead_of_the_least_that_will_be_left() -> None:
    plan, change = planned(copying(30, pending=4))
    assert change is not None
    assert plan.given
    assert plan.ending is not None
    assert plan.ending.downtime_seconds < 0.05
    assert PARKED_LIMIT_SECONDS < change.limit_seconds <= 0.23
    assert "moment" in change.reason


def test_the_source_is_looked_at_sooner_before_it_and_not_for_ever() -> None:
    plan, _ = planned(copying(30, pending=15))
    assert plan.look_in_seconds is not None
    assert plan.look_in_seconds < 0.1
    model = copying(30, pending=15)
    for step in range(2000):
        sample = replace(model.last or Sample(), at_seconds=5 + step * 0.01)
        plan, _ = planned(replace(model, last=sample, round_began=sample), plan)
    assert plan.look_in_seconds is None


def on_time(model: Model, plan: SwitchPlan, seconds: float) -> tuple[Model, SwitchPlan, LimitChange | None]:
    """The same round `seconds` later, at a stream that carries what it did."""
    last = model.last or Sample()
    sent = int(seconds * model.bandwidth_bytes_per_second)
    last = replace(
        last, at_seconds=last.at_seconds + seconds, remaining_bytes=max(0, last.remaining_bytes - sent)
    )
    model = replace(model, last=last)
    return model, *planned(model, plan)


def test_looks_within_a_round_find_the_moment_where_a_new_plan_at_each_would() -> None:
    model = copying(30, pending=15)
    plan, change = planned(model)
    made = set()
    for _ in range(30):
        if change is not None:
            break
        assert planned(model)[1] is None
        model, plan, change = on_time(model, plan, 0.004)
        made.add(plan.planned_at_seconds)
    _, anew = planned(model)
    assert change is not None
    assert anew is not None
    assert change.limit_seconds == pytest.approx(anew.limit_seconds)
    assert len(made) < 4


def test_a_guest_that_stops_writing_within_a_round_is_planned_anew_at_once() -> None:
    model = copying(30, pending=25)
    plan, _ = planned(model)
    last = replace(model.last or Sample(), at_seconds=5.02, remaining_bytes=4 * MIB)
    plan, change = planned(replace(model, last=last), plan)
    assert change is not None
    assert plan.planned_at_seconds == 5.02


def test_what_the_socket_holds_counts() -> None:
    empty, _ = planned(copying(30, pending=4, queued=0))
    full, _ = planned(copying(30, pending=4, queued=5))
    assert empty.ending is not None
    assert full.ending is not None
    assert full.ending.downtime_seconds == pytest.approx(empty.ending.downtime_seconds + 0.05, abs=0.002)


def test_it_is_not_given_while_the_socket_holds_more_than_the_ceiling_allows() -> None:
    plan, change = planned(copying(30, pending=4, queued=40))
    assert plan.ending is None
    assert change is None


def test_a_socket_that_does_not_drain_is_not_waited_for_for_ever() -> None:
    model = copying(30, pending=4, queued=40)
    plan, change, at = SwitchPlan(), None, 5.0
    while change is None and at < 20:
        at += 0.1
        last = replace(model.last or Sample(), at_seconds=at)
        plan, change = planned(replace(model, last=last, round_began=last), plan)
    assert change is not None
    assert 8.0 < at < 9.0


def test_what_mirrors_of_disks_lag_behind_counts() -> None:
    level, _ = planned(copying(30, pending=4))
    behind, change = planned(copying(30, pending=4, backlog=5))
    assert level.ending is not None
    assert behind.ending is not None
    assert behind.ending.downtime_seconds == pytest.approx(level.ending.downtime_seconds + 0.05, abs=0.002)
    assert change is not None
    assert change.limit_seconds + 0.05 <= 0.3


def test_disks_that_lag_behind_by_more_than_the_ceiling_allows_are_waited_for_however_long() -> None:
    model = copying(30, pending=4, queued=40, backlog=40)
    plan = SwitchPlan()
    for at in range(6, 60):
        last = replace(model.last or Sample(), at_seconds=float(at))
        plan, change = planned(replace(model, last=last, round_began=last), plan)
        assert change is None
    last = replace(model.last or Sample(), at_seconds=60.0, queued_bytes=0, disk_backlog_bytes=0)
    _, change = planned(replace(model, last=last, round_began=last), plan)
    assert change is not None


def test_a_limit_that_was_given_is_parked_again_while_disks_lag_behind() -> None:
    model = replace(copying(30, pending=4, backlog=40), limit_seconds=0.1)
    _, change = planned(model, SwitchPlan(given=True, given_at=4.9))
    assert change is not None
    assert change.limit_seconds == PARKED_LIMIT_SECONDS


def test_a_working_set_that_never_shrinks_is_not_waited_for() -> None:
    hot = Round(at_seconds=5.0, duration_seconds=0.16, dirtied_bytes=16 * MIB, pending_bytes=16 * MIB)
    model = copying(100, pending=16)
    _, change = planned(replace(model, rounds=(*model.rounds[:1], hot)))
    assert change is not None
    assert 0.16 < change.limit_seconds <= 0.23


def test_who_prefers_time_switches_as_soon_as_the_ceiling_allows() -> None:
    model = copying(60, pending=20)
    _, patient = planned(model)
    _, hasty = planned(model, policy=POLICY.but(prefer=Preference.TIME))
    assert patient is None
    assert hasty is not None


def test_a_limit_whose_moment_has_passed_is_parked_again() -> None:
    plan = SwitchPlan(given=True, given_at=4.0)
    plan, change = planned(replace(copying(90, pending=180), limit_seconds=0.05), plan)
    assert change is not None
    assert change.limit_seconds == PARKED_LIMIT_SECONDS
    assert not plan.given


def test_a_limit_that_does_not_do_is_raised_to_what_the_rounds_really_leave() -> None:
    plan = SwitchPlan(given=True, given_at=4.0)
    slow = Round(at_seconds=5.0, duration_seconds=0.1, dirtied_bytes=3 * MIB, pending_bytes=3 * MIB)
    model = copying(30, pending=3)
    _, change = planned(replace(model, rounds=(*model.rounds, slow), limit_seconds=0.005), plan)
    assert change is not None
    assert change.limit_seconds >= 0.03


def before_the_first_round(at: float, *, total: int) -> Model:
    last = Sample(at_seconds=at, round=1, total_bytes=total, remaining_bytes=90 * MIB)
    return Model(bandwidth_bytes_per_second=100.0 * MIB, limit_seconds=PARKED_LIMIT_SECONDS, last=last)


def test_a_small_guest_has_its_limit_while_its_first_pass_may_be_over_at_once_and_no_longer() -> None:
    plan, change = planned(before_the_first_round(0.02, total=512 * MIB))
    assert change is not None
    assert change.limit_seconds == pytest.approx(0.8 * 0.23)
    assert planned(before_the_first_round(0.2, total=512 * MIB), plan)[1] is None
    plan, change = planned(before_the_first_round(0.4, total=512 * MIB), plan)
    assert change is not None
    assert change.limit_seconds == PARKED_LIMIT_SECONDS
    assert not plan.given


def test_the_limit_of_a_small_guest_is_parked_as_soon_as_a_round_tells_what_it_does() -> None:
    plan, _ = planned(before_the_first_round(0.02, total=512 * MIB))
    plan, change = planned(replace(copying(30, pending=60), limit_seconds=0.18), plan)
    assert change is not None
    assert change.limit_seconds == PARKED_LIMIT_SECONDS
    assert not plan.given


def test_a_large_guest_begins_with_a_parked_limit() -> None:
    assert planned(before_the_first_round(0.02, total=4096 * MIB))[1] is None


def test_a_first_pass_that_ends_before_anything_is_known_gets_a_low_limit_ahead() -> None:
    last = Sample(at_seconds=0.3, round=1, remaining_bytes=5 * MIB)
    model = Model(bandwidth_bytes_per_second=100.0 * MIB, limit_seconds=PARKED_LIMIT_SECONDS, last=last)
    plan, change = planned(model)
    assert plan.given
    assert change is not None
    assert change.limit_seconds == pytest.approx(0.023)
    assert planned(model, plan)[1] is None
