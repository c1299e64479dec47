"""Records of steps in the journal's database, which another controller can take up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import State
from migrator.errors import LeaseLost, RecordError, RecordInUse
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from tests.journals import run_sql

FACTS = {"guest": "web", "attempt": 2, "places": {"source": {"host": "a"}}}
PREPARING = Intent()
MIGRATING = Intent(milestone=Milestone.MIGRATING, undo=None)


@pytest.fixture
async def one(place: Place) -> AsyncIterator[SqlJournal]:
    async with await SqlJournal.open(place, alone=False) as journal:
        yield journal


@pytest.fixture
async def other(place: Place, one: SqlJournal) -> AsyncIterator[SqlJournal]:
    """Of another controller."""
    async with await SqlJournal.open(place, alone=False) as journal:
        yield journal


async def begun(journal: SqlJournal, intent: Intent = PREPARING, name: str = "m1") -> Any:
    record = journal.steps.create(name)
    await record.begin(FACTS, intent)
    return record


async def taken(journal: SqlJournal, name: str = "m1") -> tuple[Any, Any, Intent]:
    left = await journal.steps.take_up(name)
    assert left is not None
    return left


async def test_what_was_begun_is_seen_by_another_controller(one: SqlJournal, other: SqlJournal) -> None:
    assert await other.steps.take_up("m1") is None
    await begun(one)
    record, facts, intent = await taken(other)
    assert facts == FACTS
    assert (intent.milestone, intent.live) == (Milestone.PREPARING, False)
    assert record.noted_at is not None


async def test_what_was_noted_before_the_switch_is_there_when_it_returns(
    one: SqlJournal, place: Place
) -> None:
    record = await begun(one)
    await record.note(MIGRATING)
    [(text,)] = await run_sql(place, "SELECT intent FROM step_records")
    assert f'"milestone": {int(Milestone.MIGRATING)}' in text


async def test_once_a_switch_was_allowed_it_counts_as_done(one: SqlJournal, other: SqlJournal) -> None:
    await (await begun(one)).note(replace(MIGRATING, guest_runs=False))
    _, _, intent = await taken(other)
    assert (intent.milestone, intent.guest_runs) == (Milestone.HANDED_OVER, False)


async def test_what_was_let_go_of_says_all(one: SqlJournal, other: SqlJournal) -> None:
    record = await begun(one)
    await record.note(MIGRATING)
    record.note_behind(replace(MIGRATING, undo=State.CANCELLED))
    one.steps.release(record)
    await one.probe()  # what is written in turn is written
    _, _, intent = await taken(other)
    assert (intent.milestone, intent.undo) == (Milestone.MIGRATING, State.CANCELLED)
    # The other's now: it may note what nobody sees any more.
    async with asyncio.timeout(5):
        assert (await taken(one))[2].milestone is Milestone.HANDED_OVER


async def test_what_is_noted_behind_waits_for_nothing_and_follows_in_order(one: SqlJournal) -> None:
    record = await begun(one)
    blocked = asyncio.Event()

    async def block(connection: Any) -> None:
        await blocked.wait()

    blocking = asyncio.create_task(one._database.write(block), name="block")
    await asyncio.sleep(0)
    for milestone in (Milestone.MIGRATING, Milestone.SWITCHING, Milestone.RETIRING):
        record.note_behind(Intent(milestone=milestone))
    blocked.set()
    await blocking
    one.steps.release(record)
    assert (await taken(one))[2].milestone is Milestone.RETIRING


async def test_one_that_is_driven_is_not_taken_up_twice(one: SqlJournal) -> None:
    record = await begun(one)
    with pytest.raises(RecordInUse, match="is being moved right now"):
        await one.steps.take_up("m1")
    with pytest.raises(RecordInUse):
        await one.steps.put_away("m1", {"state": "completed"})
    with pytest.raises(RecordError, match="there is a record of the steps of m1 already"):
        await begun(one)
    one.steps.release(record)
    record, _, _ = await taken(one)
    one.steps.release(record)


async def test_how_it_ended_is_found_and_the_next_attempt_begins_anew(one: SqlJournal) -> None:
    record = await begun(one)
    record.note_behind(MIGRATING)
    assert await one.steps.outcome("m1") is None
    await record.end({"state": State.CANCELLED, "postponed": True, "rounds": 3})
    assert await one.steps.take_up("m1") is None
    outcome = await one.steps.outcome("m1")
    assert outcome is not None
    assert (outcome.attempt, outcome.postponed, outcome.fields["rounds"]) == (2, True, 3)
    await begun(one)
    assert await one.steps.outcome("m1") is None
    assert [each.migration for each in await one.steps.strays(())] == ["m1"]


async def test_strays_are_those_that_nobody_knows_and_can_be_put_away(one: SqlJournal, place: Place) -> None:
    for name in ("m1", "m2", "m3"):
        one.steps.release(await begun(one, name=name))
    await one.probe()
    await run_sql(place, "UPDATE step_records SET facts = 'torn' WHERE migration = 'm3'")
    found = await one.steps.strays({"m1"})
    assert [(each.migration, each.facts) for each in found] == [("m2", FACTS), ("m3", None)]
    with pytest.raises(RecordError, match="the record of the steps of m3 is damaged"):
        await one.steps.take_up("m3")
    for name in ("m2", "m3", "m4"):
        await one.steps.put_away(name, {"state": "completed"})
    assert await one.steps.strays({"m1"}) == []


async def test_without_its_lease_nothing_is_noted(one: SqlJournal, other: SqlJournal, place: Place) -> None:
    lease = await one.leases.acquire("migration/m1", owner="one", seconds=60)
    assert lease is not None
    one.steps.leases["m1"] = lease
    record = await begun(one)
    await run_sql(place, "UPDATE leases SET ends_at = 1")
    with pytest.raises(RecordError, match="the lease migration/m1 of one does not hold any more") as caught:
        await record.note(MIGRATING)
    assert isinstance(caught.value.__cause__, LeaseLost)
    assert (await taken(other))[2].milestone is Milestone.PREPARING


async def test_while_the_journal_cannot_be_written_no_step_is_taken(one: SqlJournal) -> None:
    record = await begun(one)
    one._database._writer.complaint = "the server cannot be reached"
    with pytest.raises(RecordError, match="cannot be reached"):
        record.note_behind(MIGRATING)


async def test_while_the_lease_holds_a_step_needs_no_server_and_then_none_is_taken(one: SqlJournal) -> None:
    clock = [1000.0]
    one.leases.clock = lambda: clock[0]
    one.lease = await one.leases.acquire("service", owner="one", seconds=6)
    record = await begun(one)
    one._database._writer.complaint = "the server cannot be reached"
    record.note_behind(MIGRATING)
    clock[0] += 5.1
    with pytest.raises(
        RecordError, match="service could not be renewed in time, another may have it: the server"
    ):
        record.note_behind(MIGRATING)
