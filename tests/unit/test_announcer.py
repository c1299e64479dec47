"""An evacuation's document has all its guests: it is told at once, but not again and again for each of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from migrator.api.events import EvacuationStateChanged, Event
from migrator.core.drain.entries import Entries
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Guest
from migrator.engine.announcer import Announcer
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.registry import Registry
from migrator.testing.journal import MemoryJournal
from migrator.testing.simulated_site import SimulatedSite

pytestmark = pytest.mark.looptime


def announcer(guests: int) -> tuple[Registry, Announcer, list[EvacuationStateChanged]]:
    registry, bus, told = Registry(), EventBus(), list[EvacuationStateChanged]()
    names = [f"vm-{number}" for number in range(guests)]
    entries = Entries({name: Entry(guest=Guest(key=name, host="a")) for name in names})
    registry.evacuations["e1"] = Evacuation(id="e1", host="a", entries=entries)

    def hear(event: Event) -> None:
        assert isinstance(event, EvacuationStateChanged)
        told.append(event)

    bus.subscribe(hear)
    writer = JournalWriter(MemoryJournal())
    inventory = Inventory([], site=SimulatedSite())
    return registry, Announcer(registry=registry, inventory=inventory, journal_writer=writer, bus=bus), told


def moved(run: Evacuation, name: str) -> Evacuation:
    return run.marked({name: replace(run.entries[name], standing=GuestStanding.MOVED)})


async def move_all(registry: Registry, announce: Announcer) -> None:
    for name in list(registry.evacuations["e1"].entries):
        registry.evacuations["e1"] = moved(registry.evacuations["e1"], name)
        announce.evacuation("e1")
        await asyncio.sleep(0.005)


async def test_the_first_change_is_told_at_once_and_the_last_one_soon() -> None:
    registry, announce, told = announcer(100)
    await move_all(registry, announce)
    assert len(told) == 1
    assert told[0].evacuation.guests_left == 99
    await asyncio.sleep(1.0)
    assert [each.evacuation.guests_left for each in told] == [99, 0]


async def test_what_must_be_told_now_is_and_nothing_is_told_twice() -> None:
    registry, announce, told = announcer(100)
    await move_all(registry, announce)
    announce.evacuation("e1", at_once=True)
    assert [each.evacuation.guests_left for each in told] == [99, 0]
    await asyncio.sleep(5.0)
    assert len(told) == 2


async def test_what_waits_to_be_told_is_told_when_the_service_stops() -> None:
    registry, announce, told = announcer(100)
    await move_all(registry, announce)
    announce.flush()
    assert [each.evacuation.guests_left for each in told] == [99, 0]


async def test_one_that_ended_while_the_journal_was_away_is_journalled_though_it_is_forgotten_by_then() -> (
    None
):
    registry, announce, _ = announcer(1)
    announce.evacuation("e1", at_once=True)
    del registry.evacuations["e1"]
    announce.forget([], ["e1"])
    writer = announce._journal_writer
    await writer.commit()
    (saved,) = await writer.journal.unfinished("evacuation")
    assert saved["id"] == "e1"
