"""Schedule and timetable: what they promise, on what hypothesis thinks up and with durations nobody expected."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.core.inventory import Host
from migrator.core.schedule import LinkRules, Transfer, TransferPhase
from migrator.core.schedule.timetable import lower_bound_seconds, predict
from tests.schedule_decisions import Decided, decided

MIB = 2**20
LINK = 100 * MIB
RULES = LinkRules(reserve_ratio=0.0)
WHOLE = pytest.approx(LINK, rel=1e-5)


def links(*names: str, **fields: object) -> dict[str, Host]:
    return {name: replace(Host(name=name, link_bytes_per_second=LINK), **fields) for name in names}  # type: ignore[arg-type]


def transfer(
    guest: str, seconds: float = 10, source: str = "a", target: str = "b", **fields: object
) -> Transfer:
    """Takes so many seconds of a link for itself, and half a second that needs no link."""
    made = Transfer(
        guest=guest, source=source, target=target, bytes_left=seconds * LINK, phase=TransferPhase.READY
    )
    return replace(made, **{"alone_seconds": seconds + 0.5, **fields})  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------
# Any moment


names = st.sampled_from(["a", "b", "c", "d"])
limits = st.sampled_from([None, None, None, 1, 2, 0])


@st.composite
def sites(draw: st.DrawFn) -> dict[str, Host]:
    speeds = st.sampled_from([None, 10 * MIB, 100 * MIB, 100 * MIB, 1000 * MIB])
    return {
        name: Host(
            name=name,
            link_bytes_per_second=draw(speeds),
            max_incoming=draw(limits),
            max_outgoing=draw(limits),
        )
        for name in "abcd"
    }


@st.composite
def transfers(draw: st.DrawFn, phases: Sequence[TransferPhase] = tuple(TransferPhase)) -> list[Transfer]:
    return [
        Transfer(
            guest=f"g{n}",
            source=draw(names),
            target=draw(names),
            phase=draw(st.sampled_from(phases)),
            bytes_left=draw(st.sampled_from([0, MIB, 50 * MIB, 500 * MIB, 5000 * MIB])),
            dirty_rate_bytes_per_second=draw(st.sampled_from([0, 0, MIB, 9 * MIB, 60 * MIB, 900 * MIB])),
            alone_seconds=draw(st.sampled_from([None, None, 0.0, 0.3, 5.0, 60.0, math.inf])),
            barely_converges=draw(st.sampled_from([None, None, None, True, False])),
            max_bytes_per_second=draw(st.sampled_from([None, None, 20 * MIB])),
            priority=draw(st.sampled_from([0, 0, 0, 1, 5])),
            deadline_seconds=draw(st.sampled_from([None, None, 0.0, 8.0, 100.0])),
            stop_at_deadline=draw(st.booleans()),
            prepare_seconds=draw(st.sampled_from([0.0, 0.5, 2.0])),
            finish_seconds=draw(st.sampled_from([0.0, 0.5])),
        )
        for n in range(draw(st.integers(0, 12)))
    ]


def capacity(hosts: Mapping[str, Host], name: str, rules: LinkRules) -> float:
    host = hosts.get(name)
    speed = host.link_bytes_per_second if host else None
    return (speed or rules.assumed_link_bytes_per_second) * (1 - rules.reserve_ratio)


def check_moment(
    given: Sequence[Transfer], hosts: Mapping[str, Host], rules: LinkRules, orders: Decided
) -> None:
    """What must hold of any orders, whatever went before."""
    by_guest = {one.guest: one for one in given}
    assert set(orders.reasons) == set(by_guest)
    assert all(orders.reasons.values())
    assert {by_guest[guest].phase for guest in orders.begin} <= {TransferPhase.READY}
    assert {by_guest[guest].phase for guest in orders.prepare} <= {TransferPhase.WAITING}
    running = {one.guest for one in given if one.phase is TransferPhase.TRANSFERRING}
    assert set(orders.bandwidth) == running | set(orders.begin)
    assert orders.recheck_seconds is None or orders.recheck_seconds > 0
    for name in "abcd":
        for out in (True, False):
            on = [guest for guest in orders.bandwidth if name == _end(by_guest[guest], out=out)]
            total = sum(orders.bandwidth[guest] for guest in on)
            assert total <= capacity(hosts, name, rules) * (1 + 1e-6) + len(on)
            begun = [guest for guest in on if guest in orders.begin]
            limit = hosts[name].max_outgoing if out else hosts[name].max_incoming
            if begun and limit is not None:
                assert len(on) <= limit
            ahead = [one for one in given if name == _end(one, out=out) and _is_ahead(one, orders)]
            new = [one for one in ahead if one.guest in orders.prepare]
            for priority in {one.priority for one in new}:
                assert sum(one.priority >= priority for one in ahead) <= rules.prepared_at_most
    for guest, speed in orders.bandwidth.items():
        assert speed >= 1
        ceiling = by_guest[guest].max_bytes_per_second
        assert ceiling is None or speed <= ceiling


def _end(one: Transfer, *, out: bool) -> str:
    return one.source if out else one.target


def _is_ahead(one: Transfer, orders: Decided) -> bool:
    ready = one.phase in (TransferPhase.PREPARING, TransferPhase.READY) and one.guest not in orders.begin
    return (ready or one.guest in orders.prepare) and "cannot run" not in orders.reasons[one.guest]


@settings(max_examples=200)
@given(given_=transfers(), hosts=sites())
def test_no_link_and_no_limit_is_exceeded_whatever_went_before(
    given_: list[Transfer], hosts: dict[str, Host]
) -> None:
    rules = LinkRules()
    orders = decided(given_, hosts, rules)
    check_moment(given_, hosts, rules, orders)
    assert decided(list(reversed(given_)), hosts, rules) == orders


# ---------------------------------------------------------------------------------------------------------
# From beginning to end, with durations that were not expected


class LinkSimulation:
    """Carries out orders; how long things take is up to it."""

    def __init__(
        self, given: Sequence[Transfer], hosts: Mapping[str, Host], rules: LinkRules, seed: int
    ) -> None:
        self.hosts, self.rules = hosts, rules
        self.transfers = {one.guest: one for one in given}
        self.random = random.Random(seed)
        self.now = 0.0
        self.ended: dict[str, float] = {}
        self.never: set[str] = set()

    def run(self) -> None:
        steps = 0
        while self.transfers:
            given = list(self.transfers.values())
            orders = decided(given, self.hosts, self.rules)
            check_moment(given, self.hosts, self.rules, orders)
            self._check_alone(orders)
            self._obey(orders)
            busy = [
                one
                for one in self.transfers.values()
                if one.phase not in (TransferPhase.WAITING, TransferPhase.READY)
            ]
            if not busy:
                self.never = set(self.transfers)
                return
            # One thing happens, any of those that can.
            self._happen(self.random.choice(busy))
            steps += 1
            assert steps < 1000, "it does not end"

    def _check_alone(self, orders: Decided) -> None:
        """What barely converges has all it can use, as long as nothing else was on its links when it began."""
        for guest in orders.begin:
            one = self.transfers[guest]
            if one.barely_converges:
                most = min(
                    capacity(self.hosts, one.source, self.rules),
                    capacity(self.hosts, one.target, self.rules),
                    one.max_bytes_per_second or float("inf"),
                )
                assert orders.bandwidth[guest] == pytest.approx(most, rel=1e-5)

    def _obey(self, orders: Decided) -> None:
        for guest in orders.prepare:
            self.transfers[guest] = replace(self.transfers[guest], phase=TransferPhase.PREPARING)
        for guest in orders.begin:
            self.transfers[guest] = replace(self.transfers[guest], phase=TransferPhase.TRANSFERRING)

    def _happen(self, one: Transfer) -> None:
        following = {
            TransferPhase.PREPARING: TransferPhase.READY,
            TransferPhase.TRANSFERRING: TransferPhase.FINISHING,
        }
        if one.phase is TransferPhase.TRANSFERRING and self.random.random() < 0.5:
            left = one.bytes_left * self.random.uniform(0, 1.2)
            self.transfers[one.guest] = replace(one, bytes_left=left)
        elif one.phase in following:
            self.transfers[one.guest] = replace(one, phase=following[one.phase])
        else:
            del self.transfers[one.guest]


@settings(max_examples=100)
@given(given_=transfers(), hosts=sites(), seed=st.integers(0, 2**16))
def test_everything_that_can_run_has_its_turn(
    given_: list[Transfer], hosts: dict[str, Host], seed: int
) -> None:
    given_ = [replace(one, stop_at_deadline=False) for one in given_]
    simulation = LinkSimulation(given_, hosts, LinkRules(), seed)
    simulation.run()
    for one in given_:
        closed = hosts[one.source].max_outgoing == 0 or hosts[one.target].max_incoming == 0
        begun = one.phase in (TransferPhase.TRANSFERRING, TransferPhase.FINISHING)
        assert (one.guest in simulation.never) == (closed and not begun)


@settings(max_examples=100)
@given(given_=transfers(), hosts=sites())
def test_the_prediction_ends_and_never_beats_the_bound(
    given_: list[Transfer], hosts: dict[str, Host]
) -> None:
    told = predict(given_, hosts)
    assert set(told.guests) | set(told.never) == {one.guest for one in given_}
    assert not set(told.guests) & set(told.never)
    assert told.makespan.p10 <= told.makespan.p50 <= told.makespan.p90
    for one in told.guests.values():
        assert 0 <= one.begins.p50 <= one.ends.p50 <= told.makespan.p50
        assert one.ends.p10 <= one.ends.p50 <= one.ends.p90
    # A forecast of so many seconds is believed, even if the bytes could not be sent in them.
    going = [
        replace(one, alone_seconds=None, stop_at_deadline=False) for one in given_ if one.guest in told.guests
    ]
    assert predict(going, hosts).makespan.p50 >= lower_bound_seconds(going, hosts) * 0.999


# ---------------------------------------------------------------------------------------------------------
# How long it takes


@pytest.mark.parametrize("count", [8, 50, 500])
@pytest.mark.parametrize("size", [64, 512, 4096])
def test_idle_guests_take_little_more_than_their_bytes_take_the_link(count: int, size: int) -> None:
    made = [
        Transfer(
            guest=f"g{n}",
            source="a",
            target="bcd"[n % 3],
            bytes_left=(1 + n % 3) / 2 * size * MIB,
            prepare_seconds=0.5,
            finish_seconds=0.1,
        )
        for n in range(count)
    ]
    told = predict(made, links(*"abcd"), RULES)
    # Before the first and after the last nothing can be sent; of eight small ones that is a good part.
    assert told.makespan.p50 - 1.0 <= 1.06 * told.bound_seconds


def test_a_third_that_barely_converge_cost_their_own_time_alone_and_no_more() -> None:
    made = [
        transfer(f"quiet{n}", 10, target="bcd"[n % 3])
        if n % 3
        else transfer(
            f"g{n}", 10, target="bcd"[n % 2], dirty_rate_bytes_per_second=LINK / 2, alone_seconds=20.5
        )
        for n in range(12)
    ]
    told = predict(made, links(*"abcd"), RULES)
    assert told.makespan.p50 <= sum(one.alone_seconds or 0 for one in made) + 1


def test_two_sources_to_two_targets_run_side_by_side() -> None:
    made = [transfer(f"{source}{n}", 10, source, "cd"[n % 2]) for source in "ab" for n in range(6)]
    told = predict(made, links(*"abcd"), RULES)
    assert told.bound_seconds == pytest.approx(60)
    assert told.makespan.p50 <= 66


def test_a_slow_target_does_not_hold_up_the_others() -> None:
    hosts = links("a", "b", "c") | {"slow": Host(name="slow", link_bytes_per_second=LINK / 10)}
    made = [transfer(f"s{n}", 1, target="slow", alone_seconds=10.5) for n in range(3)]
    made += [transfer(f"g{n}", 5, target="bc"[n % 2], phase=TransferPhase.WAITING) for n in range(6)]
    told = predict(made, hosts, RULES)
    assert told.bound_seconds == pytest.approx(33, rel=0.1)
    assert told.makespan.p50 <= 40


def test_the_interval_holds_what_happens_when_guests_take_longer_or_shorter() -> None:
    made = [transfer(f"g{n}", 4 + n % 5, phase=TransferPhase.WAITING) for n in range(30)]
    hosts, generator, inside = links(*"ab"), random.Random(1), 0
    told = predict(made, hosts, RULES).makespan
    for _ in range(40):
        common = generator.lognormvariate(0, RULES.link_spread_ratio)
        factors = [generator.lognormvariate(0, one.spread_ratio) * common for one in made]
        happened = [
            replace(one, bytes_left=one.bytes_left * factor, alone_seconds=(one.alone_seconds or 0) * factor)
            for one, factor in zip(made, factors, strict=True)
        ]
        inside += told.p10 <= predict(happened, hosts, RULES).makespan.p50 <= told.p90
    assert 26 <= inside <= 38  # 32 of 40 are 80 %


def test_what_was_predicted_is_what_the_schedule_does() -> None:
    made = [
        transfer(f"g{n}", 3 + n % 4, target="bc"[n % 2], phase=TransferPhase.WAITING, prepare_seconds=0.5)
        for n in range(9)
    ]
    hosts = links(*"abc")
    told = predict(made, hosts, RULES)
    begun = [one.guest for one in made if told.guests[one.guest].begins.p50 < 1.0]
    orders = decided(made, hosts, RULES)
    assert set(begun) <= set(orders.prepare)
    ready = [replace(one, phase=TransferPhase.READY) if one.guest in orders.prepare else one for one in made]
    assert list(decided(ready, hosts, RULES).begin) == list(told.guests)[:1] == begun


# ---------------------------------------------------------------------------------------------------------
# One rule each


class TestLink:
    def test_goes_to_the_longest_first_and_whole(self) -> None:
        orders = decided(
            [transfer("short", 5), transfer("long", 20), transfer("middle", 10)], links(*"ab"), RULES
        )
        assert orders.begin == ("long",)
        assert orders.bandwidth == {"long": WHOLE}
        assert "filled by long" in orders.reasons["middle"]

    def test_keeps_its_reserve_for_the_guests(self) -> None:
        orders = decided([transfer("g")], links(*"ab"), LinkRules(reserve_ratio=0.25))
        assert orders.bandwidth == {"g": pytest.approx(LINK * 0.75, rel=1e-5)}

    def test_is_that_of_the_target_too(self) -> None:
        hosts = links(*"ab") | {"t": Host(name="t", link_bytes_per_second=LINK / 4)}
        orders = decided(
            [transfer("x", source="a", target="t"), transfer("y", source="b", target="t")], hosts, RULES
        )
        assert orders.begin == ("x",)
        assert orders.bandwidth["x"] == pytest.approx(LINK / 4, rel=1e-5)

    def test_is_shared_by_guests_that_cannot_fill_it(self) -> None:
        small = [transfer(f"g{n}", 0.1, alone_seconds=0.4) for n in range(5)]
        orders = decided(small, links(*"ab"), RULES)
        assert orders.begin == ("g0", "g1", "g2")
        assert sum(orders.bandwidth.values()) == pytest.approx(LINK, rel=1e-5)

    def test_is_given_to_the_next_when_one_has_little_left(self) -> None:
        first = transfer("first", 10, phase=TransferPhase.TRANSFERRING)
        orders = decided([first, transfer("next", 9)], links(*"ab"), RULES)
        assert orders.begin == ()
        assert orders.recheck_seconds == pytest.approx(9.5)
        ending = replace(first, bytes_left=0.05 * LINK, alone_seconds=0.5)
        orders = decided([ending, transfer("next", 9)], links(*"ab"), RULES)
        assert orders.begin == ("next",)
        assert orders.bandwidth["next"] > 0.75 * LINK

    def test_is_given_again_as_others_end(self) -> None:
        pair = [transfer(name, 5, phase=TransferPhase.TRANSFERRING) for name in ("x", "y")]
        assert decided(pair, links(*"ab"), RULES).bandwidth == dict.fromkeys(
            "xy", pytest.approx(LINK / 2, rel=1e-5)
        )
        assert decided(pair[:1], links(*"ab"), RULES).bandwidth == {"x": WHOLE}

    def test_is_not_held_by_preparing_and_clearing_away(self) -> None:
        others = [transfer("p", phase=TransferPhase.PREPARING), transfer("f", phase=TransferPhase.FINISHING)]
        orders = decided([*others, transfer("g")], links(*"ab", max_outgoing=1, max_incoming=1), RULES)
        assert orders.begin == ("g",)
        assert orders.bandwidth == {"g": WHOLE}

    def test_is_not_filled_beyond_a_policys_ceiling(self) -> None:
        slow = [transfer(f"g{n}", 10, max_bytes_per_second=LINK / 5) for n in range(8)]
        orders = decided(slow, links(*"ab"), RULES)
        assert len(orders.begin) == 5
        assert set(orders.bandwidth.values()) == {LINK // 5}


class TestBarelyConverging:
    def test_waits_until_its_link_is_free_and_has_it_for_itself(self) -> None:
        busy = transfer("busy", 5, phase=TransferPhase.TRANSFERRING)
        heavy = transfer("heavy", 20, dirty_rate_bytes_per_second=LINK / 2)
        small = transfer("small", 0.1)
        orders = decided([busy, heavy, small], links(*"ab"), RULES)
        assert orders.begin == ()
        assert orders.reasons["heavy"] == "is ready; needs a's link out for itself and waits for busy"
        orders = decided([heavy, small], links(*"ab"), RULES)
        assert orders.begin == ("heavy",)
        assert orders.bandwidth == {"heavy": WHOLE}
        running = replace(heavy, phase=TransferPhase.TRANSFERRING, bytes_left=0)
        assert decided([running, small], links(*"ab"), RULES).begin == ()

    def test_does_not_keep_others_from_what_it_cannot_use(self) -> None:
        hosts = links("a", "b") | {"slow": Host(name="slow", link_bytes_per_second=LINK / 4)}
        heavy = transfer("heavy", 20, target="slow", barely_converges=True)
        capped = transfer("capped", 5, max_bytes_per_second=LINK / 2)
        orders = decided([heavy, capped, transfer("greedy", 4)], hosts, RULES)
        assert orders.begin == ("heavy", "capped")
        assert orders.bandwidth == {"heavy": LINK // 4, "capped": LINK // 2}

    def test_lets_others_have_its_second_link_only_until_the_first_is_free(self) -> None:
        busy = transfer("busy", 4, source="c", target="b", phase=TransferPhase.TRANSFERRING)
        heavy = transfer("heavy", 20, barely_converges=True)
        quick, slow = transfer("quick", 2, target="d"), transfer("slow", 6, target="d")
        orders = decided([busy, heavy, quick, slow], links(*"abcd"), RULES)
        assert orders.begin == ("quick",)
        assert orders.reasons["slow"] == "is ready; heavy is before it and waits for the same link"


class TestOrder:
    def test_is_by_priority_before_length(self) -> None:
        orders = decided([transfer("long", 50), transfer("urgent", 1, priority=1)], links(*"ab"), RULES)
        assert orders.begin == ("urgent",)

    def test_is_by_what_must_begin_first_for_its_deadline(self) -> None:
        made = [
            transfer("long", 50),
            transfer("soon", 5, deadline_seconds=20),
            transfer("later", 10, deadline_seconds=60),
        ]
        assert list(predict(made, links(*"ab"), RULES).guests) == ["soon", "later", "long"]

    def test_begins_nothing_that_would_be_cancelled_before_its_end(self) -> None:
        late = transfer("late", 30, deadline_seconds=20, stop_at_deadline=True)
        orders = decided(
            [late, transfer("g", 10, deadline_seconds=20, stop_at_deadline=True)], links(*"ab"), RULES
        )
        assert orders.begin == ("g",)
        assert orders.reasons["late"] == "is not begun: it takes 30.5 s, and the deadline is in 20.0 s"
        assert predict([late], links(*"ab"), RULES).never == {"late": "it would not end before the deadline"}

    def test_tells_who_will_be_late(self) -> None:
        made = [transfer(f"g{n}", 10, deadline_seconds=25) for n in range(3)]
        told = predict(made, links(*"ab"), RULES)
        assert told.late == ("g2",)
        assert told.at_risk == ("g1",)


class TestPreparing:
    def test_is_ahead_by_two_on_one_source(self) -> None:
        made = [transfer(f"g{n}", 10 - n, target="bcd"[n % 3], phase=TransferPhase.WAITING) for n in range(9)]
        orders = decided(made, links(*"abcd"), RULES)
        assert orders.prepare == ("g0", "g1")

    def test_is_ahead_by_four_on_one_target(self) -> None:
        made = [transfer(f"g{n}", source=f"s{n}", target="t", phase=TransferPhase.WAITING) for n in range(9)]
        assert len(decided(made, links("t", *(f"s{n}" for n in range(9))), RULES).prepare) == 4

    def test_is_further_ahead_where_guests_are_sent_faster_than_prepared(self) -> None:
        made = [transfer(f"g{n}", 0.1, phase=TransferPhase.WAITING, prepare_seconds=2) for n in range(9)]
        assert len(decided(made, links(*"ab"), RULES).prepare) == RULES.prepared_at_most

    def test_goes_on_for_free_targets_while_those_prepared_wait_for_a_full_one(self) -> None:
        full = transfer("full", 50, source="x", target="b", phase=TransferPhase.TRANSFERRING)
        ready = [transfer(f"r{n}", 9) for n in range(2)]
        orders = decided(
            [full, *ready, transfer("g", 5, target="c", phase=TransferPhase.WAITING)], links(*"abcx"), RULES
        )
        assert orders.begin == ()
        assert orders.prepare == ("g",)

    def test_does_not_wait_for_those_of_lower_priority(self) -> None:
        ready = [transfer(f"r{n}", 9, phase=TransferPhase.PREPARING) for n in range(2)]
        urgent = transfer("urgent", 5, phase=TransferPhase.WAITING, priority=1)
        assert decided([*ready, urgent], links(*"ab"), RULES).prepare == ("urgent",)


class TestLimits:
    def test_of_streams_in_and_out_hold(self) -> None:
        small = [transfer(f"g{n}", 0.1, alone_seconds=0.4) for n in range(3)]
        assert decided(small, links(*"ab", max_outgoing=2), RULES).begin == ("g0", "g1")
        orders = decided(small, links(*"ab", max_incoming=1), RULES)
        assert orders.begin == ("g0",)
        assert orders.reasons["g1"] == "is ready; waits for g0: b takes 1 at a time (max_incoming)"

    def test_of_none_at_all_are_said(self) -> None:
        orders = decided([transfer("g", phase=TransferPhase.WAITING)], links(*"ab", max_incoming=0), RULES)
        assert orders.prepare == ()
        assert orders.reasons["g"] == "cannot run: b takes no incoming migrations (max_incoming is 0)"

    def test_that_shrank_do_not_stop_what_runs(self) -> None:
        pair = [transfer(name, 5, phase=TransferPhase.TRANSFERRING) for name in ("x", "y")]
        orders = decided([*pair, transfer("z")], links(*"ab", max_outgoing=1), RULES)
        assert set(orders.bandwidth) == {"x", "y"}


def test_the_bound_is_the_fullest_link_or_the_largest_guest() -> None:
    hosts = links(*"abc")
    assert lower_bound_seconds([transfer("x", 10), transfer("y", 5)], hosts, RULES) == pytest.approx(15)
    apart = [transfer("x", 10, "a", "b"), transfer("y", 5, "c", "d")]
    assert lower_bound_seconds(apart, hosts, RULES) == pytest.approx(10)
    slow = [transfer("x", 1, max_bytes_per_second=LINK / 30)]
    assert lower_bound_seconds(slow, hosts, RULES) == pytest.approx(30)
    assert lower_bound_seconds([], hosts, RULES) == 0


def test_nothing_to_do_is_no_orders() -> None:
    assert decided([], {}) == Decided(prepare=(), begin=(), bandwidth={}, reasons={}, recheck_seconds=None)
    assert predict([], {}).makespan.p50 == 0


def test_a_host_that_is_not_known_and_a_link_of_unknown_speed_hold_nobody_up() -> None:
    orders = decided([transfer("g", source="x", target="y")], {"x": Host(name="x")})
    assert orders.begin == ("g",)
    assert orders.bandwidth["g"] == pytest.approx(1.25e9 * 0.95 * 0.9)
