"""Maintenance windows: what is understood, whether they will do, when they begin and what becomes of who is left."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from migrator.api.commands import Cancel, Evacuate
from migrator.api.replies import Refusal
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.drain.window import Due, MaintenanceWindow, WindowFit, due, judge, understand
from migrator.core.inventory import HostState
from migrator.core.model import State
from migrator.errors import UsageError
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady

BERLIN = ZoneInfo("Europe/Berlin")
#: The evening before the clock is put forward (2:00 to 3:00), and the one before it is put back (3:00 to 2:00).
SPRING = datetime(2027, 3, 27, 20, 0, tzinfo=UTC)
AUTUMN = datetime(2027, 10, 30, 20, 0, tzinfo=UTC)


# what is understood


def test_local_times_are_the_next_ones_and_the_end_is_the_next_after_the_begin() -> None:
    now = datetime(2026, 11, 30, 20, 0, tzinfo=UTC)
    window = understand("22:30", "5:00", now=now, zone=BERLIN)
    assert window.starts_at == datetime(2026, 11, 30, 21, 30, tzinfo=UTC)
    assert window.ends_at == datetime(2026, 12, 1, 4, 0, tzinfo=UTC)
    assert window.note == ""


def test_window_over_the_hour_that_is_skipped_is_as_long_as_it_really_is() -> None:
    window = understand("1:30", "4:00", now=SPRING, zone=BERLIN)
    assert window.starts_at is not None
    assert window.ends_at is not None
    assert window.ends_at - window.starts_at == timedelta(hours=1, minutes=30)
    assert window.note == "the clock is put forward in it: it lasts 90 min 0 s"


def test_window_over_the_hour_that_comes_twice_is_as_long_as_it_really_is() -> None:
    window = understand("1:30", "4:00", now=AUTUMN, zone=BERLIN, zone_name="Europe/Berlin")
    assert window.starts_at is not None
    assert window.ends_at is not None
    assert window.ends_at - window.starts_at == timedelta(hours=3, minutes=30)
    assert window.note == "Europe/Berlin: the clock is put back in it: it lasts 3 h 30 min"


def test_time_of_day_that_is_skipped_is_that_of_the_next_day_and_is_said() -> None:
    window = understand("2:30", None, now=SPRING, zone=BERLIN)
    assert window.starts_at == datetime(2027, 3, 29, 0, 30, tzinfo=UTC)
    assert "on Sun 2027-03-28 the clock does not show 02:30: it is put forward then" in window.note


def test_time_of_day_that_comes_twice_is_the_first_and_is_said() -> None:
    window = understand("2:30", None, now=AUTUMN, zone=BERLIN)
    assert window.starts_at == datetime(2027, 10, 31, 0, 30, tzinfo=UTC)
    assert "its begin is Sun 2027-10-31 02:30:00 CEST (+02:00, the first of two)" in window.note


@pytest.mark.parametrize(
    ("at", "until", "why"),
    [
        (
            "2027-03-28T02:30",
            None,
            "at: '2027-03-28T02:30' never comes: on Sun 2027-03-28 the clock is put forward",
        ),
        ("2027-10-31T02:30", None, "comes twice.*write 2027-10-31T02:30\\+02:00 or 2027-10-31T02:30\\+01:00"),
        ("2026-01-01T02:30", None, "at: .* has passed"),
        ("2027-06-01T02:30", "2027-06-01T02:00", "until: .* has passed"),
        ("2029-06-01T02:30", None, "more than 400 days ahead"),
        ("soon", None, "at: 'soon' is no time"),
        ("+1h", "+0s", "until: .* leaves no time"),
    ],
)
def test_what_cannot_be_meant_is_refused(at: str, until: str | None, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        understand(at, until, now=SPRING, zone=BERLIN)


def test_local_time_without_a_zone_is_refused() -> None:
    with pytest.raises(UsageError, match="give time_zone with it, or an offset"):
        understand("2:30", None, now=SPRING, zone=None)


# when, and whether it will do

NOW = datetime(2026, 11, 30, 2, 30, tzinfo=UTC)


def window(starts_in: float, seconds: float) -> MaintenanceWindow:
    starts = NOW + timedelta(seconds=starts_in)
    return MaintenanceWindow(starts_at=starts, ends_at=starts + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("one", "noticed", "what"),
    [
        (window(601, 60), False, Due.WAIT),
        (window(600, 60), False, Due.NOTICE),
        (window(600, 60), True, Due.WAIT),
        (window(0, 60), True, Due.BEGIN),
        (window(-59, 60), False, Due.BEGIN),
        (window(-60, 60), False, Due.MISSED),
        (MaintenanceWindow(starts_at=NOW - timedelta(hours=5)), False, Due.BEGIN),
        (MaintenanceWindow(starts_at=NOW - timedelta(hours=6)), False, Due.MISSED),
    ],
)
def test_what_is_due(one: MaintenanceWindow, noticed: bool, what: Due) -> None:
    assert due(one, NOW, noticed=noticed) is what


@pytest.mark.parametrize(
    ("stay", "p50", "p90", "fit", "text"),
    [
        (0, 60.0, 90.0, WindowFit.FITS, "the window leaves 40.0 s to spare"),
        (0, 60.0, 101.0, WindowFit.MAY_NOT_FIT, "the window may be too short"),
        (0, 130.0, 150.0, WindowFit.DOES_NOT_FIT, "the window is 30.0 s too short"),
        (1, 60.0, 90.0, WindowFit.DOES_NOT_FIT, "1 of 3 guests cannot move"),
        (3, None, None, WindowFit.DOES_NOT_FIT, "3 of 3 guests cannot move"),
        (0, None, None, WindowFit.UNKNOWN, "nobody can say"),
    ],
)
def test_whether_it_will_do(
    stay: int, p50: float | None, p90: float | None, fit: WindowFit, text: str
) -> None:
    found = judge(window(600, 100), guests=3, cannot_move=stay, p50_seconds=p50, p90_seconds=p90)
    assert found.fit is fit
    assert text in found.text


# the engine


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name, link=1000 * MIB)
    service.site.add_guest("vm-1", host="a")
    return service


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def _state(running: RunningEngine, name: str) -> HostState:
    host = running.engine.inventory.host(name)
    assert host is not None
    return host.state


@pytest.mark.looptime
class TestScheduled:
    async def test_begins_by_itself_and_once(self, service: SimulatedService) -> None:
        async with service.running() as running:
            asked = await running.ask(Evacuate(host="a", at=soon(0.5), until=soon(3600)))
            assert asked.state is EvacuationState.SCHEDULED
            assert _state(running, "a") is HostState.ACTIVE
            assert service.site.running("vm-1") == ["a"]
            end = await running.end_of(asked)
            assert end.state is EvacuationState.COMPLETED
            assert len(await running.queries.migrations(limit=9)) == 1
        assert service.site.running("vm-1") == ["b"]

    async def test_is_kept_over_a_restart_and_shown(self, service: SimulatedService) -> None:
        async with service.running(killed=True) as running:
            asked = await running.ask(Evacuate(host="a", at=soon(3600)), key="mine")
            assert (await running.ask(Evacuate(host="a", at=soon(3600)), key="mine")).id == asked.id
        async with service.running() as running:
            shown = running.queries.active_evacuations()
            assert [(each.id, each.state, each.starts_at) for each in shown] == [
                (asked.id, EvacuationState.SCHEDULED, asked.starts_at)
            ]
            host = running.queries.host("a")
            assert (host.scheduled, host.scheduled_at) == (asked.id, asked.starts_at)

    async def test_is_forecast(self, service: SimulatedService) -> None:
        async with service.running() as running:
            asked = await running.ask(Evacuate(host="a", at=soon(3600), until=soon(7200)))
            await running.until(lambda: running.run(asked.id).window_forecast.fit is WindowFit.FITS)
            assert "to spare" in running.run(asked.id).window_forecast.text
            service.site.hosts["b"].refuses = "no space left on device"

    async def test_too_short_a_window_is_at_risk(self, service: SimulatedService) -> None:
        service.site.add_guest("large", host="a", memory_bytes=65536 * MIB, workload=steady(65536 * MIB, 0))
        async with service.running() as running:
            asked = await running.ask(Evacuate(host="a", at=soon(3600), until=soon(3610)))
            await running.until(lambda: running.run(asked.id).at_risk)
            assert "too short" in running.run(asked.id).window_forecast.text

    async def test_can_be_cancelled_and_leaves_the_host_alone(self, service: SimulatedService) -> None:
        async with service.running() as running:
            asked = await running.ask(Evacuate(host="a", at=soon(3600)))
            ended = await running.ask(Cancel(target=asked.id))
            assert ended.state is EvacuationState.CANCELLED
            assert _state(running, "a") is HostState.ACTIVE
            assert running.queries.host("a").scheduled is None
            await running.ask(Evacuate(host="a", at=soon(3600)))

    async def test_does_not_keep_the_host_from_being_emptied_before(self, service: SimulatedService) -> None:
        async with service.running() as running:
            await running.ask(Evacuate(host="a", at=soon(3600)))
            end = await running.end_of(await running.ask(Evacuate(host="a")))
            assert end.state is EvacuationState.COMPLETED

    async def test_two_at_the_same_time_are_refused(self, service: SimulatedService) -> None:
        async with service.running() as running:
            await running.ask(Evacuate(host="a", at=soon(3600), until=soon(7200)))
            with pytest.raises(Refusal, match="a has a window at that time already"):
                await running.ask(Evacuate(host="a", at=soon(7100)))
            await running.ask(Evacuate(host="a", at=soon(7300)))

    async def test_one_that_passed_while_nobody_ran_ends_as_stopped(self, service: SimulatedService) -> None:
        async with service.running() as running:
            asked = await running.ask(Evacuate(host="a", at=soon(0.3), until=soon(0.5)))
            running.engine.registry.suspended = True
            await running.until(lambda: datetime.now(UTC) > asked.window_ends_at)
            running.engine.registry.suspended = False
            end = await running.end_of(asked)
            assert (end.state, end.error) == (
                EvacuationState.STOPPED,
                "its time has passed and nothing was begun",
            )
            assert _state(running, "a") is HostState.ACTIVE

    async def test_at_its_end_who_copies_goes_on_and_who_waits_stays_and_is_named(
        self, service: SimulatedService
    ) -> None:
        for number in range(2, 12):
            workload = steady(4096 * MIB, 0)
            service.site.add_guest(f"vm-{number}", host="a", memory_bytes=4096 * MIB, workload=workload)
        async with service.running() as running:
            asked = await running.ask(Evacuate(host="a", until=soon(3600)))
            assert asked.state is EvacuationState.RUNNING
            await running.until(lambda: any(each.state is State.PRECOPY for each in running.sessions()))
            copying = {each.guest.key for each in running.sessions() if each.state is State.PRECOPY}
            now = datetime.now(UTC)
            running.engine.registry.change(
                asked.id, lambda run: replace(run, deadline=now, window=MaintenanceWindow(ends_at=now))
            )
            end = await running.end_of(asked)
            assert (end.state, end.late) == (EvacuationState.STOPPED, True)
            moved = {guest.guest for guest in end.guests if guest.standing is GuestStanding.MOVED}
            assert moved == copying
            left = [guest for guest in end.guests if guest.standing is not GuestStanding.MOVED]
            assert left
            assert all("the window ended" in guest.reason for guest in left)
            assert _state(running, "a") is HostState.DRAINING

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"at": "2:30"}, "give time_zone"),
            ({"at": "2:30", "time_zone": "Europe/Nowhere"}, "there is no Europe/Nowhere"),
            ({"at": "2:30", "time_zone": "../etc"}, "there is no"),
            ({"at": "yesterday"}, "is a local time|is no time"),
        ],
    )
    async def test_wrong_words_are_refused(
        self, service: SimulatedService, fields: dict[str, str], why: str
    ) -> None:
        async with service.running() as running:
            with pytest.raises(Refusal, match=why):
                await running.ask(Evacuate.model_validate({"host": "a", **fields}))
