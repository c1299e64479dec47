"""Of several controllers that share a journal one acts at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from migrator.errors import LeaseLost
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.store.sole_use import SoleUse
from migrator.testing.lab import until
from tests.journals import run_sql


class Asked:
    """A controller that waits for its turn."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.stood_by = 0

    def standing_by(self) -> None:
        self.stood_by += 1

    async def wait(self) -> None:
        await self.stop.wait()


async def begin(journal: SqlJournal, owner: str, asked: Asked | None = None) -> SoleUse:
    asked = asked or Asked()
    found = await SoleUse.begin(
        journal, owner=owner, seconds=1.0, stop=asked.wait, standing_by=asked.standing_by
    )
    assert found is not None
    return found


@pytest.fixture
async def one(place: Place) -> AsyncIterator[SqlJournal]:
    async with await SqlJournal.open(place, alone=False) as journal:
        yield journal


@pytest.fixture
async def other(place: Place, one: SqlJournal) -> AsyncIterator[SqlJournal]:
    async with await SqlJournal.open(place, alone=False) as journal:
        yield journal


async def ended(place: Place) -> None:
    """As if nobody had renewed it for long."""
    await run_sql(place, "UPDATE leases SET ends_at = 1")


async def test_while_it_lives_another_stands_by_and_then_takes_its_place(
    one: SqlJournal, other: SqlJournal
) -> None:
    held = await begin(one, "one")
    renewing = asyncio.create_task(held.run(), name="renewing")
    asked = Asked()
    waiting = asyncio.create_task(begin(other, "other", asked), name="stands by")

    async def stood_by() -> bool:
        return asked.stood_by >= 4  # for longer than the lease holds without being renewed

    await until(stood_by, what="it stands by", within=20)
    assert not waiting.done()
    assert held.holds()
    renewing.cancel()
    await asyncio.wait({renewing})
    successor = await asyncio.wait_for(waiting, 10)
    assert successor.token > held.token
    assert successor.controller == held.controller, "what one has marked the other may follow"
    assert not held.holds()
    with pytest.raises(LeaseLost):
        await one.save(("host", {"id": "h1"}))


async def test_that_is_not_needed_any_more_stops_standing_by(one: SqlJournal, other: SqlJournal) -> None:
    await begin(one, "one")
    asked = Asked()
    asked.stop.set()
    found = await asyncio.wait_for(
        SoleUse.begin(other, owner="other", seconds=1.0, stop=asked.wait, standing_by=asked.standing_by), 10
    )
    assert found is None


async def test_that_has_ended_lets_the_next_one_begin_at_once(one: SqlJournal, other: SqlJournal) -> None:
    await (await begin(one, "one")).end()
    await asyncio.wait_for(begin(other, "other"), 10)


async def test_that_was_killed_begins_anew_at_once(one: SqlJournal, other: SqlJournal) -> None:
    await begin(one, "one")
    await asyncio.wait_for(begin(other, "one"), 10)
    await other.save(("host", {"id": "h1"}))


async def test_whose_server_was_away_for_longer_goes_on(one: SqlJournal, place: Place) -> None:
    held = await begin(one, "one")
    await ended(place)
    with pytest.raises(LeaseLost):
        await one.save(("host", {"id": "h1"}))
    renewing = asyncio.create_task(held.run(), name="renewing")

    async def written() -> bool:
        try:
            await one.save(("host", {"id": "h1"}))
        except LeaseLost:
            return False
        return True

    await until(written, what="a write that is taken", within=10)
    renewing.cancel()
    await asyncio.wait({renewing})


@pytest.mark.parametrize("still", [True, False])
async def test_that_another_took_the_place_of_says_so_whether_or_not_that_one_lives(
    one: SqlJournal, other: SqlJournal, place: Place, *, still: bool
) -> None:
    held = await begin(one, "one")
    await ended(place)
    successor = await begin(other, "other")
    if not still:
        await successor.end()
    with pytest.raises(LeaseLost, match="another controller has taken the journal"):
        await asyncio.wait_for(held.run(), 5)


async def test_a_lease_that_is_shorter_than_its_renewal_takes_is_said_to_be_too_short(
    one: SqlJournal,
) -> None:
    now = 0.0

    def slow() -> float:
        nonlocal now
        now += 0.4  # a database so far away that each look at the clock is so much later
        return now

    held = await begin(one, "one")
    assert held.too_short == ""
    one.leases.clock = slow
    renewing = asyncio.create_task(held.run(), name="renewing")

    async def said() -> bool:
        return "with a [controller] lease of 1 s: make that longer" in held.too_short

    try:
        await until(said, what="what is wrong with it")
    finally:
        renewing.cancel()
        await asyncio.wait({renewing})
