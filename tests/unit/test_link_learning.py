"""The speed of a link is learned from streams that it held back, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from migrator.core.inventory import Host
from migrator.core.link_learning import LinkLearning, Window, window
from migrator.core.link_speeds import LearnedSpeeds, LinkSpeed, StreamCounters
from migrator.core.schedule import LinkRules, Transfer, TransferPhase
from migrator.core.schedule.timetable import predict
from migrator.core.schedule.transfers import LinkTable
from tests.schedule_decisions import decided

#: Some 60 Mbit/s, and what a card says.
PATH, CARD = 7.2e6, 1.19e9
BEGAN = StreamCounters(at=100.0, acknowledged_bytes=0, busy_seconds=0.0, reader_seconds=0.0)


def after(seconds: float, rate: float, *, busy: float = 1.0, reader: float = 0.0) -> StreamCounters:
    return StreamCounters(
        at=100.0 + seconds,
        acknowledged_bytes=int(seconds * rate),
        busy_seconds=busy * seconds,
        reader_seconds=reader * seconds,
    )


class TestWindow:
    @pytest.mark.parametrize(
        ("now", "most"),
        [
            (after(1, PATH, busy=0.75), 0.0),
            (after(1, PATH, reader=0.5), 0.0),
            (after(1, PATH), PATH),
        ],
        ids=["writer", "reader", "pace"],
    )
    def test_of_a_stream_that_something_else_held_back_is_a_lower_bound(
        self, now: StreamCounters, most: float
    ) -> None:
        found = window(BEGAN, now, most=most)
        assert found is not None
        assert not found.limited

    def test_of_a_stream_that_only_the_path_held_back_is_what_it_carries(self) -> None:
        assert window(BEGAN, after(1, PATH), most=10 * PATH) == Window(bytes_per_second=PATH, limited=True)

    def test_is_none_where_it_is_too_short_or_the_stream_is_another(self) -> None:
        assert window(BEGAN, after(0.1, PATH), most=0) is None
        assert window(after(1, PATH), replace(BEGAN, at=105.0), most=0) is None


def learned(*rates: float, since: float = 0.0, limited: bool = True) -> LinkLearning:
    found = LinkLearning()
    for number, rate in enumerate(rates):
        found = found.after(Window(bytes_per_second=rate, limited=limited), at=since + number)
    return found


class TestLearning:
    def test_what_we_pace_ourselves_to_never_lowers_the_estimate(self) -> None:
        found = learned(PATH)
        for number in range(1000):
            now = found.now(float(number))
            assert now is not None
            paced = Window(bytes_per_second=0.95 * now, limited=False)
            found = found.after(paced, at=float(number))
        assert found.now(1000.0) == pytest.approx(PATH)

    def test_a_moment_of_cross_traffic_does_not_lower_it_and_a_slower_path_does(self) -> None:
        found = learned(*[PATH] * 5, *[PATH / 3] * 5)
        assert found.now(10.0) == PATH
        found = learned(*[PATH] * 5, *[PATH / 3] * 30)
        assert found.now(35.0) == pytest.approx(PATH / 3)

    def test_a_path_that_turns_out_to_be_faster_is_believed_at_once(self) -> None:
        found = learned(PATH).after(Window(bytes_per_second=3 * PATH, limited=False), at=5.0)
        assert found.now(5.0) is None
        assert found.speed(5.0).at_least == 3 * PATH
        assert found.after(Window(bytes_per_second=4 * PATH, limited=True), at=6.0).now(6.0) == 4 * PATH

    def test_what_is_kept_says_the_same_later_with_a_wider_interval(self) -> None:
        found = learned(*[PATH * (1 + 0.01 * (number % 3)) for number in range(60)])
        kept = LinkLearning.from_fields(found.fields())
        soon, late = kept.speed(100.0), kept.speed(100.0 + 10 * 86400)
        assert soon.bytes_per_second == pytest.approx(PATH, rel=0.03)
        assert soon.spread_ratio < late.spread_ratio
        assert len(found.fields()["kept"]) <= 12

    def test_nothing_is_known_of_a_link_that_held_nobody_back(self) -> None:
        found = learned(400e6, limited=False)
        assert found.now(1.0) is None
        assert found.speed(1.0).measured


# ---------------------------------------------------------------------------------------------------------
# What the schedule makes of it

MIB = 1 << 20


def hosts(
    path: LinkSpeed | None = None, *, out: LinkSpeed | None = None, read: bool = True
) -> dict[str, Host]:
    to = {"b": path} if path is not None else {}
    source = Host(
        name="a",
        link_bytes_per_second=CARD,
        link_is_read=read,
        learned=LearnedSpeeds(to=to, out=out or LinkSpeed()),
    )
    return {
        "a": source,
        "b": Host(name="b", link_bytes_per_second=CARD, link_is_read=True),
        "c": Host(name="c", link_bytes_per_second=CARD, link_is_read=True),
    }


def transfers(count: int, phase: TransferPhase = TransferPhase.READY, target: str = "b") -> list[Transfer]:
    return [
        Transfer(guest=f"g{number}", source="a", target=target, phase=phase, bytes_left=100 * MIB)
        for number in range(count)
    ]


NARROW = LinkSpeed(bytes_per_second=PATH, spread_ratio=0.03, at_least=PATH, measured_at=0.0)


def test_network_that_swallows_everything_has_no_speed() -> None:
    black_hole = LinkLearning(
        recent=((100.0, 0.0),), kept=((90.0, 0.0), (100.0, 0.0)), at_least=5.0, measured_at=100.0
    )
    assert black_hole.speed(101.0) == LinkSpeed(at_least=5.0, measured_at=100.0)


def test_path_that_nobody_measured_carries_one_at_a_time_and_is_planned_with_a_wide_interval() -> None:
    orders = decided(transfers(3), hosts())
    assert len(orders.begin) == 1
    assert "nobody has measured" in orders.reasons["g2"]
    told = predict(transfers(3), hosts()).makespan
    assert told.p90 > 2 * told.p50
    configured = predict(transfers(3), hosts(read=False)).makespan
    assert configured.p90 < 2 * configured.p50
    assert len(decided(transfers(3), hosts(read=False)).begin) == 3


def test_measured_path_is_planned_with_and_few_at_a_time_share_it() -> None:
    orders = decided(transfers(3), hosts(NARROW))
    assert len(orders.begin) == 1
    assert orders.bandwidth["g0"] == pytest.approx(0.95 * PATH, rel=1e-6)
    told = predict(transfers(3), hosts(NARROW)).makespan
    assert told.p50 == pytest.approx(300 * MIB / (0.95 * PATH), rel=0.1)
    assert told.p90 < 1.4 * told.p50


def test_link_that_paths_share_bounds_all_of_them() -> None:
    both = [*transfers(1), replace(transfers(1, target="c")[0], guest="other")]
    orders = decided(both, hosts(out=NARROW))
    assert len(orders.begin) == 1
    assert "a's link out" in orders.reasons["other"]
    network = LinkTable(hosts(out=NARROW), LinkRules())
    assert network.path("a", "c").speed == pytest.approx(0.95 * PATH)


def test_those_that_were_begun_before_the_path_was_known_are_held_back_and_the_nearest_to_its_end_goes_on() -> (
    None
):
    going = transfers(3, TransferPhase.TRANSFERRING)
    going[1] = replace(going[1], bytes_left=50 * MIB)
    orders = decided(going, hosts(NARROW))
    assert orders.bandwidth["g1"] > 0.8 * 0.95 * PATH
    assert 0 < orders.bandwidth["g0"] < 0.1 * PATH
    assert "held back" in orders.reasons["g0"]
    assert sum(orders.bandwidth.values()) <= 0.95 * PATH


def test_guest_that_needs_the_path_for_itself_has_it() -> None:
    going = transfers(3, TransferPhase.TRANSFERRING)
    going[2] = replace(going[2], barely_converges=True)
    orders = decided(going, hosts(NARROW))
    assert orders.bandwidth["g2"] > 0.8 * 0.95 * PATH


def test_slowest_paths_come_first_and_those_that_hold_nobody_back_not_at_all() -> None:
    speeds = {"a": 3.0, "b": None, "c": 1.0, "d": 2.0}
    learned = LearnedSpeeds(to={name: LinkSpeed(bytes_per_second=speed) for name, speed in speeds.items()})
    assert learned.slowest(2) == {"c": 1.0, "d": 2.0}
