"""The controller: whatever it is shown, it stays inside the policy, acts at most so often, and comes to an end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.core.migration.convergence import after_probe, decide
from migrator.core.migration.convergence_state import (
    Abilities,
    Action,
    ActionKind,
    ConvergenceState,
    begin,
    usable_limit,
)
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS
from migrator.core.model import Sample
from migrator.core.policy import LastResort, Policy, PostcopyMode, builtin

MIB = 1 << 20
BOTH = Abilities(postcopy=True, throttle=True)
PRECOPY = Policy(name="precopy", max_downtime_seconds=0.3)


class Copy:
    """A guest that saturates: `rate` bytes a second on `working_set` bytes, over a stream of 100 MiB/s."""

    def __init__(
        self, rate: float, working_set: float, *, total: int = 512 * MIB, policy: Policy = PRECOPY
    ) -> None:
        self.rate, self.working_set, self.total = rate, working_set, total
        self.policy = policy
        self.bandwidth = 100.0 * MIB
        self.state: ConvergenceState = begin(policy)
        self.seconds, self.round, self.left, self.sent, self.since_look = 0.0, 1, float(total), 0.0, 0.0
        self.throttle = 0.0
        #: What the path could give it if those that share it were held back.
        self.attainable = 0.0
        #: What it may send, as it is held back itself; 0: what it can.
        self.allowed = 0.0
        self.actions: list[tuple[float, Action]] = []
        self.forecasts: list[tuple[int, Forecast]] = []
        self.switched = False

    def copy(self, seconds: float) -> None:
        """Send for a turn, and look at what is dirty where little enough is left."""
        self.seconds += seconds
        self.since_look += seconds
        moved = min(self.left, self.bandwidth * seconds)
        self.left, self.sent = self.left - moved, self.sent + moved
        threshold = self.bandwidth * self.state.model.limit_seconds
        if self.left <= threshold:
            dirtied = min(self.rate * (1 - self.throttle) * self.since_look, self.working_set)
            self.left = max(self.left, min(self.left + dirtied, max(self.left, self.working_set)))
            self.round, self.since_look = self.round + 1, 0.0
            self.switched = self.left <= threshold

    def step(self, seconds: float = 0.1) -> None:
        turns = max(1, round(seconds / 0.005))
        for _ in range(turns):
            if not self.switched:
                self.copy(seconds / turns)
        sample = Sample(
            at_seconds=self.seconds,
            round=self.round,
            total_bytes=self.total,
            remaining_bytes=int(self.left),
            transferred_bytes=int(self.sent),
            bandwidth_bytes_per_second=self.bandwidth,
            throttle_ratio=self.throttle,
            attainable_bytes_per_second=self.attainable,
            allowed_bytes_per_second=self.allowed,
        )
        self.state, seen, actions = decide(self.state, sample, self.policy, BOTH)
        self.forecasts.append((self.round, seen))
        for action in actions:
            self.actions.append((self.seconds, action))
            if action.act is ActionKind.THROTTLE:
                self.throttle = action.value

    def run(self, limit_seconds: float = 400.0) -> Copy:
        while not self.switched and not self.state.settled and self.seconds < limit_seconds:
            self.step()
        return self

    @property
    def acts(self) -> list[ActionKind]:
        return [action.act for _, action in self.actions if action.act is not ActionKind.LIMIT]


def test_a_guest_that_converges_is_left_alone() -> None:
    copy = Copy(30 * MIB, 200 * MIB).run()
    assert copy.switched
    assert copy.acts == []


def test_the_time_left_is_known_at_the_end_of_the_first_round() -> None:
    copy = Copy(30 * MIB, 200 * MIB).run()
    forecast = copy.state.first_forecast_seconds
    assert forecast is not None
    assert forecast == pytest.approx(copy.seconds + copy.left / copy.bandwidth, rel=0.1)


def test_between_two_rounds_the_time_left_counts_down() -> None:
    copy = Copy(30 * MIB, 200 * MIB)
    while copy.round == 1:
        copy.step()
    copy.step()
    began, (_, first) = copy.seconds, copy.forecasts[-1]
    copy.step(0.02)
    _, then = copy.forecasts[-1]
    assert then == replace(
        first,
        **{
            key: getattr(first, key) - (copy.seconds - began)
            for key in ("seconds_p10", "seconds_p50", "seconds_p90")
        },
    )


def test_the_limit_is_parked_until_the_switch_is_near() -> None:
    copy = Copy(90 * MIB, 200 * MIB)
    assert copy.state.model.limit_seconds == PARKED_LIMIT_SECONDS
    copy.run()
    given = [at for at, action in copy.actions if action.act is ActionKind.LIMIT][-1]
    assert copy.seconds - given < 1.0
    limits = [action.value for _, action in copy.actions if action.act is ActionKind.LIMIT]
    assert limits
    assert max(limits) <= usable_limit(PRECOPY, copy.state.model.overhead_seconds)


def test_it_says_early_that_it_waits_for_a_quiet_moment_and_gives_up_when_none_comes() -> None:
    copy = Copy(400 * MIB, 300 * MIB).run()
    assert copy.acts == [ActionKind.AT_RISK, ActionKind.GIVE_UP]
    warned, action = (each for _, each in copy.actions if each.act is not ActionKind.LIMIT)
    assert "waiting for a quiet moment" in warned.reason
    assert copy.seconds < 0.3 * 75  # 150 s a GiB is when the soonest of the others gives up
    assert "MiB/s" in action.reason
    assert "giving up" in action.reason


def test_the_warning_comes_within_two_rounds_after_the_first_and_the_verdict_cannot_with_the_end() -> None:
    copy = Copy(400 * MIB, 300 * MIB).run()
    rounds = {number for number, seen in copy.forecasts if seen.verdict is Verdict.CANNOT}
    assert rounds == {copy.round}
    at = next(at for at, action in copy.actions if action.act is ActionKind.AT_RISK)
    assert copy.forecasts[round(at / 0.1) - 1][0] <= 4


def test_a_hopeless_guest_goes_to_postcopy_within_two_rounds_after_the_first() -> None:
    copy = Copy(400 * MIB, 300 * MIB, policy=PRECOPY.but(postcopy=PostcopyMode.ALLOW)).run()
    assert copy.acts == [ActionKind.START_POSTCOPY]
    assert copy.round <= 4


def test_a_guest_just_over_the_stream_is_throttled_and_then_ends() -> None:
    copy = Copy(130 * MIB, 250 * MIB, policy=PRECOPY.but(max_throttle_ratio=0.8)).run()
    assert copy.switched
    assert copy.acts[0] is ActionKind.THROTTLE
    assert copy.throttle <= 0.8


@pytest.mark.parametrize("writes", [0.7, 0.02], ids=["writing", "idle"])
def test_bandwidth_that_is_low_because_others_share_the_path_condemns_nobody(writes: float) -> None:
    policy = builtin("default")
    copy = Copy(writes * 100 * MIB, 24 * MIB, total=48 * MIB, policy=policy)
    copy.bandwidth, copy.attainable = writes * 50 * MIB, 100.0 * MIB
    copy.run(100.0)
    assert copy.acts == [ActionKind.CROWDED]
    assert all(seen.verdict is not Verdict.CANNOT for _, seen in copy.forecasts)
    copy.bandwidth, copy.attainable = 100.0 * MIB, 0.0
    copy.run()
    assert copy.switched
    assert copy.acts == [ActionKind.CROWDED]


def test_a_stream_that_is_faster_now_and_then_is_not_waited_for_for_ever() -> None:
    """As where five streams share a link that nobody schedules: each has more of it whenever another has ended."""
    copy = Copy(400 * MIB, 200 * MIB, policy=PRECOPY.but(postcopy=PostcopyMode.ALLOW))
    while not copy.state.settled and copy.seconds < 60:
        copy.bandwidth = (140 if copy.seconds % 5 < 0.3 else 100) * MIB
        copy.step()
    assert copy.acts == [ActionKind.START_POSTCOPY]
    assert copy.seconds < 15


def test_throttling_is_skipped_when_it_would_not_do() -> None:
    policy = PRECOPY.but(max_throttle_ratio=0.2, postcopy=PostcopyMode.ALLOW)
    copy = Copy(400 * MIB, 300 * MIB, policy=policy).run()
    assert copy.acts == [ActionKind.START_POSTCOPY]


def test_a_guest_that_becomes_quiet_in_time_is_waited_for() -> None:
    copy = Copy(400 * MIB, 300 * MIB)
    while not copy.switched and not copy.state.settled and copy.seconds < 60:
        copy.rate = 0.0 if copy.seconds > 10 else 400.0 * MIB
        copy.step()
    assert copy.switched
    assert copy.acts == []


def test_cpu_time_is_given_back_when_the_load_goes_down() -> None:
    copy = Copy(130 * MIB, 250 * MIB, policy=PRECOPY.but(max_throttle_ratio=0.8))
    while ActionKind.THROTTLE not in copy.acts:
        copy.step()
        assert copy.seconds < 60
    copy.rate = 60.0 * MIB
    copy.left = 200.0 * MIB
    copy.run(60)
    taken = [action.value for _, action in copy.actions if action.act is ActionKind.THROTTLE]
    assert taken[-1] == 0.0 or copy.switched


def test_must_finish_stops_the_guest_when_nothing_else_is_left() -> None:
    policy = PRECOPY.but(last_resort=LastResort.PAUSE)
    copy = Copy(400 * MIB, 300 * MIB, policy=policy).run()
    assert copy.acts == [ActionKind.PAUSE]


@pytest.mark.parametrize(
    ("policy", "last"),
    [
        (PRECOPY, ActionKind.GIVE_UP),
        (PRECOPY.but(last_resort=LastResort.PAUSE), ActionKind.PAUSE),
        (PRECOPY.but(postcopy=PostcopyMode.ALLOW), ActionKind.START_POSTCOPY),
    ],
    ids=["abort", "pause", "postcopy"],
)
def test_the_last_rung_comes_no_later_than_the_policys_time(policy: Policy, last: ActionKind) -> None:
    copy = Copy(97 * MIB, 300 * MIB, policy=policy.but(max_duration_seconds=8)).run()
    assert copy.acts[-1] is last
    assert copy.seconds <= 8.2


def test_a_first_pass_of_many_minutes_is_waited_for() -> None:
    copy = Copy(30 * MIB, 200 * MIB, total=40_000 * MIB)
    copy.step()
    copy.state = after_probe(copy.state, at_seconds=1.0, period_seconds=1.0, dirty_rate=30.0 * MIB)
    while not copy.switched and not copy.state.settled and copy.seconds < 600:
        copy.step(0.5)
    assert copy.switched
    assert copy.acts == []


@pytest.mark.parametrize(
    "halts_at", [0.0, 0.5, 20.0, 500.0], ids=["at once", "early", "in the first pass", "late"]
)
@pytest.mark.parametrize(
    "policy",
    [
        PRECOPY,
        PRECOPY.but(postcopy=PostcopyMode.ALLOW),
        PRECOPY.but(last_resort=LastResort.PAUSE),
        PRECOPY.but(max_duration_seconds=5000),
    ],
    ids=["abort", "postcopy", "pause", "in time"],
)
def test_a_guest_whose_stream_halts_is_given_up_after_two_minutes(policy: Policy, halts_at: float) -> None:
    copy = Copy(90 * MIB, 4000 * MIB, total=40_000 * MIB, policy=policy)
    while copy.seconds < halts_at and copy.state.settled is False:
        copy.step(0.5)
    copy.bandwidth = 1.0
    while not copy.switched and not copy.state.settled and copy.seconds < halts_at + 300:
        copy.step(2.0)
    assert copy.acts[-1] is ActionKind.GIVE_UP
    assert halts_at + 120 <= copy.seconds <= halts_at + 125


def test_a_stream_that_is_held_back_for_others_has_not_halted() -> None:
    copy = Copy(10 * MIB, 200 * MIB, total=4_000 * MIB)
    while copy.seconds < 20:
        copy.step(0.5)
    copy.bandwidth = copy.allowed = 0.3 * MIB
    while copy.seconds < 6000 and not copy.state.settled:
        copy.step(2.0)
    assert copy.acts == []
    copy.bandwidth, copy.allowed = 100.0 * MIB, 0.0
    copy.run(6100)
    assert copy.switched
    assert copy.acts == []


def test_at_risk_is_said_as_soon_as_it_is_forecast() -> None:
    copy = Copy(85 * MIB, 300 * MIB, policy=PRECOPY.but(max_duration_seconds=27)).run()
    assert ActionKind.AT_RISK in copy.acts
    at = next(at for at, action in copy.actions if action.act is ActionKind.AT_RISK)
    assert at < 11


_ABSURD = st.builds(
    Sample,
    at_seconds=st.floats(-10, 1e5),
    round=st.integers(-1, 500),
    total_bytes=st.integers(0, 2**45),
    remaining_bytes=st.integers(-(2**40), 2**45),
    transferred_bytes=st.integers(0, 2**45),
    bandwidth_bytes_per_second=st.one_of(st.floats(0, 1e12), st.sampled_from([math.inf, math.nan])),
    dirty_rate_bytes_per_second=st.floats(0, 1e13),
    throttle_ratio=st.floats(0, 0.99),
)
_POLICIES = st.builds(
    lambda base, downtime, throttle, postcopy, duration, last: replace(
        base,
        max_downtime_seconds=downtime,
        max_throttle_ratio=0.0 if postcopy is PostcopyMode.IMMEDIATE else throttle,
        postcopy=postcopy,
        max_duration_seconds=duration,
        last_resort=last,
    ),
    st.just(builtin("gentle")),
    st.floats(0.001, 100),
    st.floats(0, 0.99),
    st.sampled_from(PostcopyMode),
    st.one_of(st.none(), st.floats(0.1, 1e4)),
    st.sampled_from(LastResort),
)


@settings(max_examples=150, deadline=None)
@given(
    samples=st.lists(_ABSURD, max_size=40),
    policy=_POLICIES,
    abilities=st.builds(Abilities, postcopy=st.booleans(), throttle=st.booleans()),
)
def test_no_sequence_of_samples_makes_it_leave_the_policy(
    samples: list[Sample], policy: Policy, abilities: Abilities
) -> None:
    state = begin(policy)
    settled = False
    for sample in samples:
        state, _, actions = decide(state, sample, policy, abilities)
        for action in actions:
            assert not settled, "nothing follows on postcopy, pause or giving up"
            settled = action.act in (ActionKind.START_POSTCOPY, ActionKind.PAUSE, ActionKind.GIVE_UP)
            match action.act:
                case ActionKind.LIMIT:
                    assert 0 < action.value <= policy.max_downtime_seconds
                case ActionKind.THROTTLE:
                    assert abilities.throttle
                    assert 0 <= action.value <= policy.max_throttle_ratio
                case ActionKind.START_POSTCOPY:
                    assert abilities.postcopy
                    assert policy.postcopy is not PostcopyMode.NEVER
                case ActionKind.PAUSE:
                    assert policy.last_resort is LastResort.PAUSE
            assert action.reason


@settings(max_examples=40, deadline=None)
@given(
    rates=st.lists(st.floats(0, 2000), min_size=1, max_size=8),
    working_set=st.integers(0, 500),
    policy=_POLICIES,
)
def test_it_always_ends_in_bounded_time_and_does_not_dither(
    rates: list[float], working_set: int, policy: Policy
) -> None:
    copy = Copy(rates[0] * MIB, working_set * MIB, policy=policy)
    bound = policy.max_duration_seconds or 30 * copy.total / copy.bandwidth + 120
    while not copy.switched and not copy.state.settled:
        copy.rate = rates[int(copy.seconds / 5) % len(rates)] * MIB
        copy.step(0.2)
        assert copy.seconds <= bound + 1
    taken = [action.value for _, action in copy.actions if action.act is ActionKind.THROTTLE]
    assert sum(1 for value in taken if value == 0) <= 2
    assert len(taken) <= 40


def test_postcopy_first_waits_for_no_round() -> None:
    state, _, actions = decide(
        begin(builtin("postcopy-first")), Sample(at_seconds=0.1), builtin("postcopy-first"), BOTH
    )
    assert [action.act for action in actions] == [ActionKind.START_POSTCOPY]
    assert state.settled


def test_the_usable_limit_leaves_room_for_what_was_learned() -> None:
    assert usable_limit(PRECOPY, 0.1) == pytest.approx(0.17)
    assert usable_limit(PRECOPY, 5.0) == pytest.approx(0.03)
    assert begin(PRECOPY, overhead_seconds=5.0).model.limit_seconds <= 0.03 + 1e-9
