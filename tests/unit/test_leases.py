"""What every journal promises of leases, in SQLite, on PostgreSQL and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from migrator.errors import JournalError, LeaseLost
from migrator.ports import Lease, Leases, lease_margin
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.testing.journal import MemoryJournal
from tests.journals import run_sql

AnyJournal = SqlJournal | MemoryJournal


@dataclass
class Clock:
    """A holder's own; it moves only when told to."""

    time: float = 1000.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Shared:
    """A journal that two controllers use, and the clock that both share with it."""

    #: Each controller's way to it.
    one: AnyJournal
    other: AnyJournal
    #: Sets the clock that all share forward by so many seconds, or back.
    jump: Callable[[float], Awaitable[None]]
    clock: Clock

    @property
    def leases(self) -> Leases:
        return self.one.leases


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shared]:
    clock = Clock()
    if request.param == "memory":
        memory = MemoryJournal()
        memory.leases.clock = clock

        async def jump(seconds: float) -> None:
            memory.leases.jump(seconds)

        yield Shared(one=memory, other=memory, jump=jump, clock=clock)
        return
    place: Place = tmp_path / "journal.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgresql_place")

    async def shift(seconds: float) -> None:
        await run_sql(place, f"UPDATE leases SET ends_at = ends_at - {round(seconds * 1e6)}")

    async with await SqlJournal.open(place) as one, await SqlJournal.open(place, alone=False) as other:
        one.leases.clock = other.leases.clock = clock
        yield Shared(one=one, other=other, jump=shift, clock=clock)


def document(name: str) -> tuple[str, dict[str, Any]]:
    return "migration", {"id": name, "state": "precopy", "ended_at": None}


async def taken(leases: Leases, owner: str, name: str = "site", seconds: float = 60) -> Lease:
    lease = await leases.acquire(name, owner=owner, seconds=seconds)
    assert lease is not None
    return lease


async def test_one_has_it_until_it_is_given_back(shared: Shared) -> None:
    lease = await taken(shared.leases, "a")
    assert await shared.other.leases.acquire("site", owner="b", seconds=60) is None
    assert (await taken(shared.other.leases, "b", "migration/m1")).name == "migration/m1"
    await shared.leases.release(lease)
    assert (await taken(shared.other.leases, "b")).owner == "b"
    # Given back once more, it is the other's all the same.
    await shared.leases.release(lease)
    assert await shared.leases.acquire("site", owner="a", seconds=60) is None


async def test_one_of_the_same_name_that_had_it_under_another_token_is_another(shared: Shared) -> None:
    first = await taken(shared.leases, "a")
    again = await shared.leases.acquire("site", owner="a", seconds=60, known=first.token)
    assert again is not None
    assert await shared.other.leases.acquire("site", owner="a", seconds=60, known=first.token) is None
    assert await shared.leases.renew([again], seconds=60) != [None]
    await shared.jump(61)
    assert await shared.other.leases.acquire("site", owner="a", seconds=60, known=first.token) is not None


async def test_its_token_only_grows(shared: Shared) -> None:
    tokens = []
    for owner, how in (("a", "released"), ("a", "again"), ("a", "ended"), ("b", "ended"), ("c", "released")):
        lease = await taken(shared.leases, owner)
        tokens.append(lease.token)
        if how == "released":
            await shared.leases.release(lease)
        elif how == "ended":
            await shared.jump(61)
    assert tokens == sorted(set(tokens))


async def test_asked_for_by_many_at_once_it_goes_to_one(shared: Shared) -> None:
    asked = [
        each.leases.acquire("site", owner=f"{number}", seconds=60)
        for number in range(10)
        for each in (shared.one, shared.other)
    ]
    owners = {lease.owner for lease in await asyncio.gather(*asked) if lease is not None}
    assert len(owners) == 1


async def test_renewed_it_goes_on_and_what_was_lost_does_not(shared: Shared) -> None:
    lease = await taken(shared.leases, "a")
    lost = await taken(shared.leases, "a", "migration/m1", seconds=2)
    await shared.jump(3)
    shared.clock.time += 3
    renewed, ended = await shared.leases.renew([lease, lost], seconds=60)
    assert ended is None
    assert renewed is not None
    assert (renewed.token, renewed.until) == (lease.token, lease.until + 3)
    await shared.jump(5)
    assert await shared.other.leases.acquire("site", owner="b", seconds=60) is None
    assert await shared.leases.renew([], seconds=60) == []


async def test_one_that_has_ended_is_not_renewed_though_nobody_took_it(shared: Shared) -> None:
    lease = await taken(shared.leases, "a")
    await shared.jump(60.5)
    assert await shared.leases.renew([lease], seconds=60) == [None]
    assert (await taken(shared.other.leases, "b")).token > lease.token
    assert await shared.leases.renew([lease], seconds=60) == [None]


class TestWrites:
    async def test_of_its_holder_are_taken(self, shared: Shared) -> None:
        lease = await taken(shared.leases, "a")
        await shared.one.save(document("m1"), lease=lease)
        assert await shared.other.find("migration", "m1") is not None

    @pytest.mark.parametrize("how", ["ended", "taken", "released"])
    async def test_of_a_holder_that_holds_it_no_more_are_refused(self, shared: Shared, how: str) -> None:
        lease = await taken(shared.leases, "a")
        if how == "released":
            await shared.leases.release(lease)
        else:
            await shared.jump(60.5)
        if how == "taken":
            await taken(shared.other.leases, "b")
        event = {"event_id": 1, "sequence": 1, "time": "2026-03-01T12:00:00Z"}
        event |= {"kind": "state", "subject": "migration", "subject_id": "m1", "body": {}}
        for events in ((), (event,)):
            with pytest.raises(LeaseLost, match="the lease site of a does not hold any more"):
                await shared.one.save(document("m1"), events=events, lease=lease)
        assert await shared.one.find("migration", "m1") is None
        assert await shared.one.events() == []
        # What belongs to no lease is written as ever, and nothing is wrong with the journal.
        await shared.one.save(document("m2"))
        assert shared.one.complaint == ""

    async def test_beside_those_that_are_refused_are_written(self, shared: Shared) -> None:
        lost = await taken(shared.leases, "a", seconds=1)
        mine = await taken(shared.leases, "a", "migration/m2")
        await shared.jump(2)
        found = await asyncio.gather(
            shared.one.save(document("m1"), lease=lost),
            shared.one.save(document("m2"), lease=mine),
            shared.one.save(document("m3")),
            return_exceptions=True,
        )
        assert [type(each) for each in found] == [LeaseLost, list, list]
        assert [each["id"] for each in await shared.one.unfinished("migration")] == ["m2", "m3"]

    async def test_with_another_token_of_the_same_owner_are_refused(self, shared: Shared) -> None:
        before = await taken(shared.leases, "a")
        now = await taken(shared.leases, "a")
        with pytest.raises(LeaseLost):
            await shared.one.save(document("m1"), lease=before)
        await shared.one.save(document("m1"), lease=now)


class TestClocks:
    async def test_of_the_holder_ends_it_a_margin_before_anybody_else_can_have_it(
        self, shared: Shared
    ) -> None:
        lease = await taken(shared.leases, "a", seconds=6)
        assert lease_margin(6) == 1
        shared.clock.time += 4.99
        assert lease.may_act
        shared.clock.time += 0.02
        assert not lease.may_act

    async def test_are_read_before_it_is_asked_for(self, shared: Shared) -> None:
        """However long the answer takes, the holder stops in time."""
        began = shared.clock.time
        shared.one.leases.clock = lambda: shared.clock.time
        asking = asyncio.create_task(shared.leases.acquire("site", owner="a", seconds=6), name="asking")
        await asyncio.sleep(0)
        shared.clock.time += 100
        lease = await asking
        assert lease is not None
        assert lease.until == began + 5
        assert not lease.may_act

    async def test_that_all_share_set_forward_end_it_early_and_no_write_is_taken(
        self, shared: Shared
    ) -> None:
        lease = await taken(shared.leases, "a")
        await shared.jump(3600)
        # Its holder cannot know; the journal does.
        assert lease.may_act
        with pytest.raises(LeaseLost):
            await shared.one.save(document("m1"), lease=lease)
        assert (await taken(shared.other.leases, "b")).token > lease.token

    async def test_that_all_share_set_back_keep_it_from_others_and_its_holder_stops_in_time(
        self, shared: Shared
    ) -> None:
        lease = await taken(shared.leases, "a")
        await shared.jump(-3600)
        shared.clock.time += 100
        assert not lease.may_act
        assert await shared.other.leases.acquire("site", owner="b", seconds=60) is None
        # Who has the lease can have it anew, with its right end.
        again = await taken(shared.leases, "a")
        assert again.may_act
        await shared.jump(61)
        assert (await taken(shared.other.leases, "b")).owner == "b"

    async def test_that_all_share_set_back_keep_nobody_away_for_longer_than_a_lease_can_be(
        self, shared: Shared
    ) -> None:
        lease = await taken(shared.leases, "a")
        watched = shared.other.leases
        await shared.jump(-3600)
        await watched.all()
        shared.clock.time += 59
        await watched.end_stuck()
        assert await watched.acquire("site", owner="b", seconds=60) is None
        # One that is renewed is its holder's.
        [renewed] = await shared.leases.renew([lease], seconds=60)
        assert renewed is not None
        await shared.jump(-3600)
        await watched.all()
        shared.clock.time += 60
        await watched.end_stuck()
        assert not renewed.may_act
        assert (await taken(watched, "b")).token > lease.token
        assert await shared.leases.renew([renewed], seconds=60) == [None]


async def test_those_who_look_see_who_has_what(shared: Shared) -> None:
    assert await shared.leases.all() == []
    first = await taken(shared.leases, "a")
    await taken(shared.other.leases, "b", "migration/m1", seconds=60)
    (migration, site) = await shared.other.leases.all()
    assert (site.name, site.owner, site.token) == ("site", "a", first.token)
    assert 30 < site.left_seconds <= 60
    assert (migration.name, migration.owner) == ("migration/m1", "b")
    await shared.jump(70)
    assert -40 < (await shared.leases.all())[1].left_seconds <= -10
    await shared.leases.release(first)
    assert [each.name for each in await shared.leases.all()] == ["migration/m1"]


async def test_whoever_takes_it_over_waits_for_a_write_that_was_let_pass(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await SqlJournal.open(place) as one, await SqlJournal.open(place, alone=False) as other:
        lease = await taken(one.leases, "a", seconds=60)
        begun = asyncio.Event()
        order: list[str] = []
        now = other._database.now

        async def slow(connection: Any) -> None:
            begun.set()
            await asyncio.sleep(0.2)
            order.append("written")

        async def later(connection: Any) -> int:
            return await now(connection) + 61_000_000

        async def take_over() -> None:
            await begun.wait()
            # While it is written the lease ends.
            monkeypatch.setattr(other._database, "now", later)
            while await other.leases.acquire("site", owner="b", seconds=60) is None:
                await asyncio.sleep(0.02)
            order.append("taken over")

        await asyncio.gather(one._database.write(slow, lease=lease), take_over())
        assert order == ["written", "taken over"]


async def test_a_journal_that_cannot_be_written_gives_none_out() -> None:
    journal = MemoryJournal()
    lease = await taken(journal.leases, "a")
    journal.broken = "the disk is full"
    with pytest.raises(JournalError, match="the disk is full"):
        await journal.leases.acquire("site", owner="b", seconds=60)
    with pytest.raises(JournalError, match="the disk is full"):
        await journal.leases.renew([lease], seconds=60)
