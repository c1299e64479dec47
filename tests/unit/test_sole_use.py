"""A journal on a server belongs to one service at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from migrator.errors import JournalError, LeaseLost
from migrator.store import sole_use
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.store.sole_use import SoleUse
from migrator.testing.lab import until
from tests.journals import run_sql


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole_use, "_SECONDS", 1.0)
    monkeypatch.setattr(sole_use, "_RENEW_SECONDS", 0.2)
    monkeypatch.setattr(sole_use, "_RETRY_SECONDS", 0.1)


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


async def test_while_it_lives_another_is_refused_and_then_waits_for_its_end(
    one: SqlJournal, other: SqlJournal
) -> None:
    held = await SoleUse.begin(one, owner="one")
    renewing = asyncio.create_task(held.run(), name="renewing")
    with pytest.raises(JournalError, match="is in use by another service: there can be one; stop it first"):
        await SoleUse.begin(other, owner="other")
    renewing.cancel()
    await asyncio.wait({renewing})
    await SoleUse.begin(other, owner="other")
    with pytest.raises(LeaseLost):
        await one.save(("host", {"id": "h1"}))


async def test_that_has_ended_lets_the_next_one_begin_at_once(one: SqlJournal, other: SqlJournal) -> None:
    await (await SoleUse.begin(one, owner="one")).end()
    await asyncio.wait_for(SoleUse.begin(other, owner="other"), 0.5)


async def test_that_was_killed_begins_anew_at_once(one: SqlJournal, other: SqlJournal) -> None:
    await SoleUse.begin(one, owner="one")
    await asyncio.wait_for(SoleUse.begin(other, owner="one"), 0.5)
    await other.save(("host", {"id": "h1"}))


async def test_whose_server_was_away_for_longer_goes_on(one: SqlJournal, place: Place) -> None:
    held = await SoleUse.begin(one, owner="one")
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
    held = await SoleUse.begin(one, owner="one")
    await ended(place)
    successor = await SoleUse.begin(other, owner="other")
    if not still:
        await successor.end()
    with pytest.raises(LeaseLost, match="another service has taken the journal"):
        await asyncio.wait_for(held.run(), 5)
