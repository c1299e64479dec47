"""The simulated migration: what must hold for any guest, any link and any steering."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.core.model import MigrationStatus, RunState
from migrator.testing.memory import Memory
from migrator.testing.simulator import MIB, Costs, Link, Parameters, Simulator
from migrator.testing.workload import Region, Workload, WorkloadPhase, change, idle, on_off, ramp, steady

UNLIMITED = Parameters(max_bandwidth_bytes_per_second=0)
NO_COSTS = Costs(
    setup_seconds=0,
    sync_seconds=0,
    sync_seconds_per_gib=0,
    device_seconds=0,
    resume_seconds=0,
    postcopy_seconds=0,
    zero_bytes_per_second=1e15,
    memory_bytes_per_second=1e15,
    buffer_bytes=0,
)


def simulator(workload: Workload, *, link: float = 100 * MIB, memory: int = 512 * MIB, **how) -> Simulator:
    parameters = how.pop("parameters", UNLIMITED)
    return Simulator(
        workload,
        memory_bytes=memory,
        link=how.pop("shared", None) or Link(link),
        parameters=parameters,
        **how,
    )


def moved(workload: Workload, within: float = 600.0, **how) -> Simulator:
    """A migration that nobody steers, at its end or after so many seconds."""
    found = simulator(workload, **how)
    found.start()
    found.run_to_end(within)
    return found


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    sizes = draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=3))
    rates = st.lists(st.floats(0, 1e9), min_size=len(sizes), max_size=len(sizes)).map(tuple)
    phases = draw(st.lists(st.builds(WorkloadPhase, st.floats(0.05, 20), rates), min_size=1, max_size=4))
    return Workload(
        regions=tuple(Region(size_bytes=4096 * size, random=draw(st.booleans())) for size in sizes),
        phases=tuple(phases),
        repeat=draw(st.booleans()),
    )


# --- any run -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(),
    link=st.floats(1 * MIB, 2000 * MIB),
    limit=st.floats(0, 2),
    bandwidth=st.sampled_from([0.0, 20.0 * MIB, 128.0 * MIB]),
    step=st.floats(0.001, 0.5),
    acts=st.lists(
        st.sampled_from(["postcopy", "stop", "cont", "cancel", "fail", "black hole", "proceed"]), max_size=4
    ),
    pause=st.booleans(),
    converge=st.booleans(),
)
def test_any_migration_keeps_its_books(workload, link, limit, bandwidth, step, acts, pause, converge) -> None:
    parameters = Parameters(
        max_bandwidth_bytes_per_second=bandwidth,
        downtime_limit_seconds=limit,
        auto_converge=converge,
        pause_before_switchover=pause,
    )
    found = simulator(workload, link=link, parameters=parameters)
    found.start()
    last_round, sent = 0, 0.0
    for number in range(80):
        if number % 20 == 19 and acts:
            match acts.pop():
                case "postcopy":
                    found.start_postcopy()
                case "black hole":
                    found.link.bytes_per_second = 0
                case "cont" if found.run is RunState.POSTMIGRATE:
                    pass  # QEMU would do it
                case other:
                    getattr(found, other)()
        before = found.now
        found.advance(step)
        assert found.now == pytest.approx(before + step)
        sample = found.sample()
        assert 0 <= sample.remaining_bytes <= sample.total_bytes
        assert sample.round >= last_round
        assert sample.transferred_bytes >= sent
        assert not (found.at_destination and found.run is RunState.RUNNING), "the guest was doubled"
        last_round, sent = sample.round, sample.transferred_bytes
        # What the link could carry, and what waits in the sockets.
        assert (
            sent
            <= link * found.now
            + found.costs.buffer_bytes
            + sample.total_bytes / 400
            + 2 * link * step
            + (sample.remaining_bytes if found.status is MigrationStatus.ACTIVE else link * 5)
        )
    moments = [event.at_seconds for event in found.events]
    assert moments == sorted(moments)


def test_everything_is_sent_once_when_nothing_is_written() -> None:
    still = Workload(regions=(Region(size_bytes=300 * MIB),), phases=(WorkloadPhase(math.inf, (0.0,)),))
    found = moved(still)
    pages = 300 * MIB + still.constant_bytes
    zero = 512 * MIB - pages
    assert found.transferred_bytes == pytest.approx(pages * 4104 / 4096 + zero * 9 / 4096, rel=1e-6)


def test_what_is_dirtied_again_is_sent_again_to_the_byte() -> None:
    found = simulator(steady(100 * MIB, 30 * MIB), costs=NO_COSTS)
    found.start()
    queued, dirtied = float(found.memory.total_bytes), 0.0
    sync = found.memory.sync

    def counted() -> float:
        nonlocal dirtied
        new = sync()
        dirtied += new
        return new

    found.memory.sync = counted  # type: ignore[method-assign]
    found.run_to_end(100)
    zero = 512 * MIB - found.memory.workload.working_bytes - found.memory.workload.constant_bytes
    assert found.transferred_bytes == pytest.approx((queued - zero + dirtied) * 4104 / 4096 + zero * 9 / 4096)


# --- saturation ----------------------------------------------------------------------------------------------------


def dirty_after(region: Region, rate: float, seconds: float) -> float:
    memory = Memory(Workload(regions=(region,), phases=(WorkloadPhase(math.inf, (rate,)),)), 1024 * MIB)
    memory.forward(seconds, 1.0)
    return memory.sync()


def test_sweep_dirties_every_byte_once_until_it_begins_anew() -> None:
    region = Region(size_bytes=100 * MIB)
    assert dirty_after(region, 50 * MIB, 1) == pytest.approx(50 * MIB)
    assert dirty_after(region, 50 * MIB, 2) == pytest.approx(100 * MIB)
    assert dirty_after(region, 50 * MIB, 9) == pytest.approx(100 * MIB)


def test_random_writes_hit_ever_fewer_clean_pages() -> None:
    region = Region(size_bytes=100 * MIB, random=True)
    assert dirty_after(region, 50 * MIB, 2) == pytest.approx(100 * MIB * (1 - math.exp(-1)))
    assert 99.9 * MIB < dirty_after(region, 50 * MIB, 20) < 100 * MIB


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 300)), max_size=20))
def test_sweep_agrees_with_a_real_bitmap(turns: list[tuple[int, int]]) -> None:
    size = 500
    memory = Memory(
        Workload(
            regions=(Region(size_bytes=size * 4096),),
            phases=(WorkloadPhase(math.inf, (4096.0,)),),
            constant_bytes=0,
        ),
        size * 4096,
    )
    bitmap, written, guest, sender = set[int](), set[int](), 0, 0
    for pages, most in turns:
        memory.forward(pages, 1.0)
        written |= (
            {(guest + page) % size for page in range(min(pages, size))} if pages < size else set(range(size))
        )
        guest = (guest + pages) % size
        new = memory.sync()
        assert new / 4096 == pytest.approx(len(written - bitmap), abs=1e-6)
        bitmap |= written
        written = set()
        memory.take(most * 4104)
        order = sorted(bitmap, key=lambda page: (page < sender, page))[:most]
        bitmap -= set(order)
        sender = order[-1] + 1 if order else sender
        assert memory.queued_bytes / 4096 == pytest.approx(len(bitmap), abs=1e-6)


# --- downtime and convergence --------------------------------------------------------------------------------------


def test_downtime_is_what_is_left_over_the_bandwidth_and_the_overhead() -> None:
    costs = replace(NO_COSTS, device_seconds=0.02, resume_seconds=0.003, buffer_bytes=5 * MIB)
    found = simulator(steady(400 * MIB, 50 * MIB), costs=costs)
    sent = 0.0
    take_all = found.memory.take_all

    def noted() -> float:
        nonlocal sent
        sent = found.transferred_bytes
        return take_all()

    found.memory.take_all = noted  # type: ignore[method-assign]
    found.start()
    found.run_to_end()
    left = found.transferred_bytes - sent
    assert found.downtime_seconds == pytest.approx((left + 5 * MIB) / (100 * MIB) + 0.023, abs=0.005)
    assert left <= 0.3 * 100 * MIB + 0.05 * 50 * MIB


@pytest.mark.parametrize("limit", [0.03, 0.1, 0.3])
def test_lower_limit_means_less_downtime(limit: float) -> None:
    found = moved(steady(200 * MIB, 30 * MIB), parameters=replace(UNLIMITED, downtime_limit_seconds=limit))
    assert found.downtime_seconds is not None
    assert found.downtime_seconds < limit + 0.045


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(5, 300), region=st.integers(20, 200))
def test_sweep_converges_if_and_only_if_it_is_slower_than_the_link_or_fits_the_limit(rate, region) -> None:
    found = moved(steady(region * MIB, rate * MIB), within=60)
    threshold = 30  # MiB: 100 MiB/s for 300 ms
    if rate < 85 or region < threshold - 1:
        assert found.status is MigrationStatus.COMPLETED
    elif rate > 150 and region > 3 * threshold:  # between, a lucky overlap may end it
        assert found.status is MigrationStatus.ACTIVE


def test_hot_set_that_fits_the_limit_moves_however_hot_it_is() -> None:
    assert moved(steady(16 * MIB, 9000 * MIB)).status is MigrationStatus.COMPLETED
    assert moved(steady(64 * MIB, 9000 * MIB), within=30).status is MigrationStatus.ACTIVE


def test_idle_guest_moves_at_once() -> None:
    found = moved(idle())
    assert found.duration_seconds < 0.1
    assert found.downtime_seconds is not None
    assert found.downtime_seconds < 0.03


def test_burst_is_over_when_it_is_quiet() -> None:
    found = moved(on_off(400 * MIB, 300 * MIB, on_seconds=5, off_seconds=5))
    assert found.status is MigrationStatus.COMPLETED
    assert found.stopped_seconds is not None
    assert found.stopped_seconds % 10 >= 5


def test_change_of_habit_lets_it_end() -> None:
    found = moved(change(400 * MIB, 200 * MIB, 10 * MIB, at_seconds=20))
    assert 20 < found.duration_seconds < 30


def test_sawtooth_and_growth_follow_their_ramp() -> None:
    saw = ramp(100 * MIB, 0, 100 * MIB, seconds=10, repeat=True)
    assert saw.rates_at(5.05)[0][1] == pytest.approx(51 * MIB)
    assert saw.rates_at(15.05)[0][1] == pytest.approx(51 * MIB)
    growing = ramp(100 * MIB, 0, 100 * MIB, seconds=10)
    assert growing.rates_at(1e6) == (growing.phases[-1].rates, math.inf)


# --- what QEMU does ------------------------------------------------------------------------------------------------


def test_expected_downtime_is_the_limit_until_a_dirty_rate_is_known() -> None:
    found = simulator(steady(400 * MIB, 80 * MIB))
    found.start()
    found.advance(2)
    assert found.sample().expected_downtime_seconds == 0.3
    assert found.sample().dirty_rate_bytes_per_second == 0
    found.advance(4)
    assert found.sample().expected_downtime_seconds > 1
    assert found.sample().dirty_rate_bytes_per_second == pytest.approx(80 * MIB, rel=0.02)


def test_max_bandwidth_limits_the_copy_but_not_the_switch() -> None:
    limited = Parameters(max_bandwidth_bytes_per_second=50 * MIB)
    found = moved(steady(200 * MIB, 20 * MIB), link=1000 * MIB, parameters=limited)
    assert found.sample().bandwidth_bytes_per_second == pytest.approx(50 * MIB, rel=0.05)
    assert found.downtime_seconds is not None
    assert found.downtime_seconds < 0.05


def test_auto_converge_steps_every_second_bad_period_up_to_its_ceiling() -> None:
    parameters = replace(UNLIMITED, auto_converge=True, max_throttle_ratio=0.45)
    found = simulator(steady(50 * MIB, 300 * MIB), parameters=parameters)
    found.start()
    seen = set()
    for _ in range(400):
        found.advance(0.1)
        seen.add(round(found.sample().throttle_ratio, 2))
    assert sorted(seen) == [0.0, 0.2, 0.3, 0.4, 0.45]


def test_guest_paced_by_a_timer_loses_nothing_to_half_a_throttle() -> None:
    paced, greedy = steady(MIB, 1), replace(steady(MIB, 1), cpu_ratio=1.0)
    assert [paced.speed_ratio(ratio) for ratio in (0, 0.5, 0.8)] == [1, 1, pytest.approx(0.4)]
    assert greedy.speed_ratio(0.8) == pytest.approx(0.2)


def test_guest_that_is_stopped_writes_nothing_and_arrives() -> None:
    found = simulator(steady(400 * MIB, 500 * MIB))
    found.start()
    found.advance(3)
    found.stop()
    work = found.work_bytes
    found.run_to_end(60)
    assert found.status is MigrationStatus.COMPLETED
    assert found.work_bytes == work
    assert found.downtime_seconds == pytest.approx(found.duration_seconds - 3, abs=0.05)
    assert [event.name for event in found.events if event.name in ("STOP", "RESUME")] == ["STOP", "RESUME"]


def test_postcopy_ends_whatever_the_guest_does() -> None:
    found = simulator(steady(400 * MIB, 500 * MIB))
    found.start()
    found.advance(1)
    found.start_postcopy()
    found.advance(0.2)
    assert found.at_destination
    assert found.downtime_seconds is not None
    assert found.downtime_seconds < 0.06
    found.run_to_end(60)
    assert found.status is MigrationStatus.COMPLETED
    assert found.sample().postcopy_requests > 0
    assert found.work_bytes < 500 * MIB * found.duration_seconds


def test_cancel_leaves_the_guest_running_at_the_source() -> None:
    parameters = replace(UNLIMITED, pause_before_switchover=True)
    found = simulator(idle(), parameters=parameters)
    found.start()
    found.advance(1)
    assert found.status is MigrationStatus.PRE_SWITCHOVER
    found.cancel()
    assert (found.status, found.run) == (MigrationStatus.CANCELLED, RunState.RUNNING)
    assert [event.name for event in found.events][-3:] == ["MIGRATION", "MIGRATION", "RESUME"]


def test_statuses_come_in_qemus_order() -> None:
    found = simulator(
        idle(), parameters=replace(UNLIMITED, pause_before_switchover=True), auto_hand_over=False
    )
    found.start()
    found.advance(1)
    found.proceed()
    found.advance(1)
    assert found.ready
    assert not found.ended
    found.hand_over()
    assert found.ended
    statuses = [event.data["status"] for event in found.events if event.name == "MIGRATION"]
    assert statuses == ["setup", "active", "pre-switchover", "device", "completed"]


def test_black_hole_shows_no_progress_and_stale_figures() -> None:
    found = simulator(steady(400 * MIB, 50 * MIB))
    found.start()
    found.advance(2)
    found.link.bytes_per_second = 0
    found.advance(0.3)
    before = found.sample()
    found.advance(30)
    assert replace(found.sample(), at_seconds=before.at_seconds) == before


def test_streams_share_their_link_and_use_what_others_leave() -> None:
    link = Link(100 * MIB)
    greedy = [simulator(steady(300 * MIB, 500 * MIB), shared=link) for _ in range(2)]
    modest = Parameters(max_bandwidth_bytes_per_second=20 * MIB)
    everyone = [*greedy, simulator(steady(300 * MIB, 500 * MIB), shared=link, parameters=modest)]
    for one in everyone:
        one.start()
    for _ in range(500):
        for one in everyone:
            one.advance(0.01)
    rates = [one.transferred_bytes / 5 / MIB for one in everyone]
    assert rates == pytest.approx([40, 40, 20], rel=0.05)
