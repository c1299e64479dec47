"""What every journal promises of migrations that other controllers drive, in SQLite, on PostgreSQL and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from migrator.errors import LeaseLost
from migrator.ports import Lease
from migrator.ports.assignments import Assignment, Assignments, assignment_number
from migrator.ports.controllers import ControllerInfo
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.testing.journal import MemoryJournal
from tests.journals import run_sql

AnyJournal = SqlJournal | MemoryJournal


@dataclass
class Shared:
    """A journal with a driver that lives."""

    journal: AnyJournal
    driver: Lease
    #: Has every lease end so many seconds earlier.
    jump: Callable[[float], Awaitable[None]]

    @property
    def assignments(self) -> Assignments:
        return self.journal.assignments

    def assignment(self, count: int = 1) -> Assignment:
        return Assignment(
            migration="m1",
            driver="d",
            driver_token=self.driver.token,
            number=assignment_number(3, count),
            session={"id": "m1", "state": "queued"},
            stream_speed=1e9,
        )


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shared]:
    info = ControllerInfo(name="d", instance="driver", version="1")
    if request.param == "memory":
        memory = MemoryJournal()

        async def jump(seconds: float) -> None:
            memory.leases.jump(seconds)

        lease = await memory.controllers.join(info, seconds=6)
        assert lease is not None
        yield Shared(journal=memory, driver=lease, jump=jump)
        return
    place: Place = tmp_path / "journal.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgresql_place")

    async def shift(seconds: float) -> None:
        await run_sql(
            place, f"UPDATE leases SET ends_at = ends_at - {round(seconds * 1e6)} WHERE ends_at < {2**61}"
        )

    async with await SqlJournal.open(place) as journal:
        lease = await journal.controllers.join(info, seconds=6)
        assert lease is not None
        yield Shared(journal=journal, driver=lease, jump=shift)


async def test_a_driver_finds_what_it_was_given_and_what_is_wanted_of_it(shared: Shared) -> None:
    given = shared.assignment()
    assert await shared.assignments.give(given)
    await shared.assignments.request("m1", given.number, {"admit": True})
    await shared.assignments.request("m1", given.number + 1, {"cancel": True})
    assert await shared.assignments.of("d") == [replace(given, requests={"admit": True})]
    assert await shared.assignments.requests_of("d") == {given.number: {"admit": True}}
    assert await shared.assignments.of("d", {given.number}) == await shared.assignments.of("d")
    assert await shared.assignments.of("d", {given.number + 1}) == []
    assert await shared.assignments.of("another") == []
    assert await shared.assignments.requests_of("another") == {}


async def test_a_report_is_there_for_whoever_plans(shared: Shared) -> None:
    given = shared.assignment()
    assert await shared.assignments.give(given)
    await shared.assignments.report(given, {"state": "precopy"}, released=False)
    assert await shared.assignments.find(["m1"]) == [replace(given, report={"state": "precopy"})]
    await shared.assignments.report(given, {"state": "completed"}, released=True)
    assert await shared.assignments.of("d") == []
    [last] = await shared.assignments.find()
    assert (last.report, last.released) == ({"state": "completed"}, True)


async def test_what_a_driver_cannot_read_it_releases_without_a_word(shared: Shared) -> None:
    given = shared.assignment()
    assert await shared.assignments.give(given)
    await shared.assignments.report(given, None, released=True)
    assert await shared.assignments.find() == [replace(given, released=True)]
    assert await shared.assignments.of("d") == []


async def test_nothing_is_given_to_a_driver_whose_lease_has_ended(shared: Shared) -> None:
    await shared.jump(7)
    assert not await shared.assignments.give(shared.assignment())
    assert await shared.assignments.find() == []


async def test_nothing_is_given_to_a_driver_that_had_to_take_its_lease_anew(shared: Shared) -> None:
    assert not await shared.assignments.give(
        replace(shared.assignment(), driver_token=shared.driver.token - 1)
    )


async def test_it_is_not_taken_from_a_driver_that_lives_and_has_not_released_it(shared: Shared) -> None:
    given = shared.assignment()
    assert await shared.assignments.give(given)
    assert await shared.assignments.fence("m1", given.number) is None
    await shared.assignments.remove("m1", given.number)
    await shared.assignments.report(given, {"state": "held"}, released=True)
    [last] = await shared.assignments.find()
    assert (last.report, last.released, last.fenced) == ({"state": "held"}, True, False)
    assert await shared.assignments.fence("m1", given.number) == last
    await shared.assignments.remove("m1", given.number)
    assert await shared.assignments.find() == []
    with pytest.raises(LeaseLost):
        await shared.assignments.report(given, {"state": "held"}, released=True)


async def test_what_a_driver_said_last_stays_until_it_is_removed_whoever_asks(shared: Shared) -> None:
    given = shared.assignment()
    assert await shared.assignments.give(given)
    await shared.assignments.report(given, {"state": "switchover"}, released=False)
    await shared.jump(7)
    last = await shared.assignments.fence("m1", given.number)
    assert last == replace(given, report={"state": "switchover"}, fenced=True)
    with pytest.raises(LeaseLost):
        await shared.assignments.report(given, {"state": "precopy"}, released=True)
    assert await shared.assignments.of("d") == []
    # A planner that died here is followed by one that finds the same.
    assert await shared.assignments.find() == [last]
    assert await shared.assignments.fence("m1", given.number) == last
    await shared.assignments.remove("m1", given.number)
    assert await shared.assignments.find() == []
    assert await shared.assignments.fence("m1", given.number) is None
    await shared.assignments.remove("m1", given.number)


async def test_what_is_removed_late_leaves_what_was_given_since(shared: Shared) -> None:
    first, second = shared.assignment(), shared.assignment(2)
    assert await shared.assignments.give(first)
    await shared.assignments.report(first, {"state": "queued"}, released=True)
    await shared.assignments.remove("m1", first.number)
    assert await shared.assignments.give(second)
    await shared.assignments.remove("m1", first.number)
    await shared.assignments.report(second, {"state": "precopy"}, released=False)
    assert await shared.assignments.find() == [replace(second, report={"state": "precopy"})]


async def test_one_whose_lease_has_ended_writes_no_more_once_it_was_taken_from_it(shared: Shared) -> None:
    first, second = shared.assignment(), shared.assignment(2)
    assert await shared.assignments.give(first)
    await shared.jump(7)
    await shared.assignments.report(first, {"state": "precopy"}, released=False)
    back = await shared.assignments.fence("m1", first.number)
    assert back is not None
    assert back.report == {"state": "precopy"}
    await shared.assignments.remove("m1", first.number)
    with pytest.raises(LeaseLost):
        await shared.assignments.report(first, {"state": "switchover"}, released=False)
    lease = await shared.journal.controllers.join(
        ControllerInfo(name="d", instance="driver", version="1"), seconds=6
    )
    assert lease is not None
    again = replace(second, driver_token=lease.token)
    assert await shared.assignments.give(again)
    with pytest.raises(LeaseLost):
        await shared.assignments.report(first, {"state": "switchover"}, released=False)
    await shared.assignments.report(again, {"state": "precopy"}, released=False)
    assert await shared.assignments.fence("m1", first.number) is None


def test_a_number_given_later_is_larger_whoever_gave_it() -> None:
    numbers = [assignment_number(3), assignment_number(3, 1), assignment_number(3, 2), assignment_number(4)]
    assert numbers == sorted(set(numbers))
    assert assignment_number(1) > 10_000, "... and larger than the tokens that planners marked with before"
