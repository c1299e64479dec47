"""Who hears of an event when: at once, or once the journal has it; and what that becomes when it cannot be written."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from migrator.api.events import Event, EventKind, Subject
from migrator.engine.event_bus import EventBus
from migrator.engine.journal_writer import JournalWriter
from migrator.errors import JournalError, LeaseLost
from migrator.ports import Lease
from migrator.testing.journal import MemoryJournal
from tests.some_events import host_state, of_migration

pytestmark = pytest.mark.looptime


class SlowJournal(MemoryJournal):
    """Every write takes until :attr:`free` is set; `refused` events are refused with all beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()
        self.refused: set[int] = set()

    async def save(
        self,
        *given: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        await self.free.wait()
        if self.refused & {event["event_id"] or event["sequence"] for event in events}:
            raise JournalError("no such event")
        return await super().save(*given, events=events, lease=lease)


class Site:
    """A bus that is journalled, and who hears it."""

    def __init__(self, journal: MemoryJournal, *, last: int = 0, numbered_by_journal: bool = False) -> None:
        self.journal = journal
        self.bus = EventBus(last_event_id=last, numbered_by_journal=numbered_by_journal)
        self.journal_writer = JournalWriter(journal)
        self.journal_writer.follow(self.bus)
        self.at_once: list[Event] = []
        self.later: list[Event] = []
        self.bus.subscribe(self.at_once.append)
        self.bus.subscribe(self.later.append, journalled=True)

    def say(self, count: int = 1, *, kind: EventKind = EventKind.STATE, about: str = "m1") -> None:
        for _ in range(count):
            self.journal_writer.schedule("migration", {"id": about, "told": self.bus.place + 1})
            self.bus.publish(of_migration(kind, about))

    @property
    def told(self) -> list[int]:
        return [event.event_id for event in self.later if event.kind is not EventKind.PROGRESS]

    async def journalled(self) -> list[int]:
        return [event["event_id"] for event in await self.journal.events(limit=10_000)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.journal_writer.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_told_at_once_where_nobody_keeps_a_journal() -> None:
    bus = EventBus()
    heard: list[Event] = []
    bus.subscribe(heard.append, journalled=True)
    with bus.listen(journalled=True) as listener:
        said = bus.publish(host_state("a"))
        listener.close()
        assert [event async for event in listener] == heard == [said]
    assert (bus.last_event_id, bus.sequence(Subject.HOST, "a"), bus.listening()) == (1, 1, 0)


async def test_what_leaves_the_process_is_told_once_it_is_on_disk_and_the_rest_at_once() -> None:
    journal = SlowJournal()
    site = Site(journal)
    async with site.running():
        site.say(3)
        await asyncio.sleep(1)
        assert [event.event_id for event in site.at_once] == [1, 2, 3]
        assert site.told == []
        # What is shown with replies is what was told, not what was counted.
        assert (site.bus.last_event_id, site.bus.sequence(Subject.MIGRATION, "m1")) == (0, 0)
        journal.free.set()
        assert await site.journal_writer.flush(1)
        assert site.told == await site.journalled() == [1, 2, 3]
        assert (site.bus.last_event_id, site.bus.sequence(Subject.MIGRATION, "m1")) == (3, 3)


async def test_progress_does_not_overtake_the_state_whose_number_it_shows() -> None:
    journal = SlowJournal()
    site = Site(journal)
    async with site.running():
        site.say()
        site.say(kind=EventKind.PROGRESS)
        site.say()
        site.say(kind=EventKind.PROGRESS)
        assert site.later == []
        journal.free.set()
        await site.journal_writer.flush(1)
        assert [(event.kind, event.sequence) for event in site.later] == [
            (EventKind.STATE, 1),
            (EventKind.PROGRESS, 1),
            (EventKind.STATE, 2),
            (EventKind.PROGRESS, 2),
        ]
        site.say(kind=EventKind.PROGRESS)
        assert len(site.later) == 5  # nothing is before it


async def test_what_was_counted_while_the_journal_was_written_waits_for_the_next_write() -> None:
    journal = SlowJournal()
    site = Site(journal)
    async with site.running():
        site.say(2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        site.say(2)  # those before are on their way to the disk
        told_with: list[int] = []
        site.bus.subscribe(lambda _: told_with.append(len(journal._events)), journalled=True)
        journal.free.set()
        await site.journal_writer.flush(1)
    assert site.told == [1, 2, 3, 4]
    assert told_with == [2, 2, 4, 4]


async def test_a_step_that_waits_for_the_journal_takes_the_events_with_it() -> None:
    journal = MemoryJournal()
    site = Site(journal)
    site.say(2)
    await site.journal_writer.commit(("migration", {"id": "m2"}))
    assert site.told == await site.journalled() == [1, 2]
    assert {each["id"] for each in await journal.unfinished("migration")} == {"m1", "m2"}


async def test_a_journal_that_fails_holds_nothing_back_for_longer_than_three_seconds() -> None:
    journal = MemoryJournal()
    site = Site(journal)
    loop = asyncio.get_running_loop()
    async with site.running():
        journal.broken = "the disk is full"
        began = loop.time()
        site.say(2)
        while not site.told:
            await asyncio.sleep(0.01)
        assert loop.time() - began == pytest.approx(3, abs=0.1)
        assert site.told == [1, 2]
        site.say()  # nobody believes in it any more
        assert site.told == [1, 2, 3]
        journal.broken = ""
        assert await site.journal_writer.flush(5)
        assert await site.journalled() == [1, 2, 3]
        site.say()
        assert site.told == [1, 2, 3]  # it is waited for again
        assert await site.journal_writer.flush(1)
        assert site.told == await site.journalled() == [1, 2, 3, 4]


class TakenJournal(MemoryJournal):
    """Another controller may act, for as long as :attr:`taken` is true."""

    taken = True

    async def save(
        self,
        *given: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        if self.taken:
            raise LeaseLost("the lease site does not hold any more")
        return await super().save(*given, events=events, lease=lease)


async def test_what_is_refused_because_another_controller_may_act_is_not_told() -> None:
    journal = TakenJournal()
    site = Site(journal)
    async with site.running():
        site.say(2)
        await asyncio.sleep(20)
        assert not await site.journal_writer.flush(1)
        assert site.told == []
        journal.taken = False  # nobody had taken it, and it was renewed
        assert await site.journal_writer.flush(5)
        assert site.told == await site.journalled() == [1, 2]


async def test_a_disk_that_does_not_answer_holds_nothing_back_for_longer_either() -> None:
    site = Site(SlowJournal())
    async with site.running():
        site.say(2)
        await asyncio.sleep(2.9)
        assert site.told == []
        await asyncio.sleep(0.2)
        assert site.told == [1, 2]


async def test_numbers_that_were_told_but_never_journalled_are_not_given_again() -> None:
    journal = MemoryJournal()
    site = Site(journal)
    async with site.running():
        site.say()
        assert await site.journal_writer.flush(1)
        journal.broken = "the disk is full"
        site.say(100)
        await asyncio.sleep(5)
        assert site.told == list(range(1, 102))
    journal.broken = ""  # killed, and the next one finds room
    last, _ = await journal.positions()
    again = Site(journal, last=last)
    async with again.running():
        again.say()
        assert await again.journal_writer.flush(1)
    assert set(again.told).isdisjoint(site.told)
    assert again.told > site.told


async def test_who_goes_has_told_everything() -> None:
    site = Site(SlowJournal())
    async with site.running():
        site.say(5)
        assert not await site.journal_writer.flush(0.5)
        assert site.told == [1, 2, 3, 4, 5]


async def test_one_that_is_refused_holds_up_no_other() -> None:
    journal = SlowJournal()
    journal.refused = {2}
    site = Site(journal)
    async with site.running():
        site.say(3)
        journal.free.set()
        await site.journal_writer.commit(("migration", {"id": "m2"}))
        assert await site.journal_writer.flush(1)
        assert await site.journalled() == [1, 3]
        assert site.told == [1, 2, 3]


async def test_a_document_is_never_ahead_of_what_was_said_of_it() -> None:
    """Whenever it is killed: the document that the journal has, and its last event, are of the same moment."""

    async def at_once(call: str) -> None: ...

    journal = MemoryJournal()
    pause = journal.pause
    site = Site(journal)
    async with site.running():
        for number in range(20):
            site.say()
            if number % 3:
                await asyncio.sleep(0)
            if number % 5 == 0:
                await site.journal_writer.commit(("migration", {"id": "m2"}))
            journal.pause = at_once  # both of one moment
            saved = await journal.find("migration", "m1")
            told = await site.journalled()
            journal.pause = pause
            assert (saved or {"told": 0})["told"] == (told[-1] if told else 0)


async def test_a_long_backlog_is_written_in_parts() -> None:
    journal = SlowJournal()
    site = Site(journal)
    async with site.running():
        site.say(2500)
        journal.free.set()
        assert await site.journal_writer.flush(1)
    assert site.told == await site.journalled() == list(range(1, 2501))


class TestWhereTheJournalGivesTheNumbers:
    async def test_events_are_told_with_the_number_that_they_got_there(self) -> None:
        journal = SlowJournal()
        journal.free.set()
        await journal.save(events=[{**host_state("z").payload, "event_id": 0, "sequence": 1}])  # another's
        site = Site(journal, last=1, numbered_by_journal=True)
        async with site.running():
            site.say(2)
            site.say(kind=EventKind.PROGRESS)
            assert [event.event_id for event in site.at_once] == [0, 0, 0]
            assert await site.journal_writer.flush(1)
            assert [(event.event_id, event.has_number) for event in site.later] == [
                *((2, True), (3, True), (3, False)),
            ]
            assert [json.loads(event.text)["event_id"] for event in site.later] == [2, 3, 3]
            assert await site.journalled() == [1, 2, 3]
            assert site.bus.last_event_id == 3

    async def test_those_that_cannot_wait_are_told_without_one_and_keep_their_order(self) -> None:
        journal = SlowJournal()
        site = Site(journal, numbered_by_journal=True)
        async with site.running():
            site.say(2)
            await asyncio.sleep(4)
            assert [(event.event_id, event.has_number) for event in site.later] == [(0, False)] * 2
            site.say()
            journal.free.set()
            assert await site.journal_writer.flush(1)
            assert await site.journalled() == [1, 2, 3]
            site.say()
            assert await site.journal_writer.flush(1)
            assert [event.sequence for event in site.later] == [1, 2, 3, 4]
            assert (site.later[-1].event_id, site.later[-1].has_number) == (4, True)

    async def test_one_that_the_journal_refuses_is_told_without_one(self) -> None:
        journal = SlowJournal()
        journal.free.set()
        journal.refused = {2}
        site = Site(journal, numbered_by_journal=True)
        async with site.running():
            site.say(3)
            assert await site.journal_writer.flush(1)
            assert [(event.event_id, event.has_number) for event in site.later] == [
                *((1, True), (1, False), (2, True)),
            ]


class CountingJournal(SlowJournal):
    """Counts its writes; `impossible` documents are refused with all beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.impossible: set[str] = set()

    async def save(
        self,
        *given: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        self.writes += 1
        await self.free.wait()
        if self.impossible & {document["id"] for _, document in given}:
            raise JournalError("no such document")
        return await super().save(*given, events=events, lease=lease)


async def _committed(
    journal: CountingJournal, *documents: Mapping[str, Any]
) -> tuple[list[BaseException | None], list[str]]:
    """Commit each while the journal is being written; the outcomes, and what memory took over."""
    writer, taken = JournalWriter(journal), list[str]()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.commit(("migration", {"id": "first"})))
        await asyncio.sleep(0)
        waiting = [
            asyncio.create_task(
                writer.commit(
                    ("migration", document),
                    then=lambda text=f"{document}": taken.append(text),  # type: ignore[misc]  # its default
                )
            )
            for document in documents
        ]
        await asyncio.sleep(0)
        journal.free.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    return found, taken


async def test_those_who_wait_for_a_write_that_is_under_way_are_written_together() -> None:
    journal = CountingJournal()
    found, taken = await _committed(journal, *({"id": f"m{number}"} for number in range(50)))
    assert found == [None] * 50
    assert len(taken) == 50
    assert journal.writes == 2
    assert len(await journal.unfinished("migration")) == 51


async def test_one_that_the_journal_refuses_costs_those_beside_it_nothing() -> None:
    journal = CountingJournal()
    journal.impossible.add("m1")
    found, taken = await _committed(journal, *({"id": f"m{number}"} for number in range(3)))
    assert [type(each) for each in found] == [type(None), JournalError, type(None)]
    assert len(taken) == 2
    assert {each["id"] for each in await journal.unfinished("migration")} == {"first", "m0", "m2"}


async def test_what_is_about_the_same_is_written_one_after_the_other() -> None:
    journal = CountingJournal()
    found, taken = await _committed(journal, *({"id": "same", "number": number} for number in range(3)))
    assert found == [None] * 3
    assert taken == [f"{ {'id': 'same', 'number': number} }" for number in range(3)]
    assert [each["number"] for each in await journal.unfinished("migration") if each["id"] == "same"] == [2]


async def test_whoever_gives_up_waiting_takes_nothing_over_and_keeps_nobody_waiting() -> None:
    journal, taken = CountingJournal(), list[str]()
    writer = JournalWriter(journal)
    tasks = [
        asyncio.create_task(
            writer.commit(("migration", {"id": name}), then=lambda name=name: taken.append(name))  # type: ignore[misc]  # its default
        )
        for name in ("writes", "gives-up", "stays")
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()  # the one whose turn it is
    await asyncio.sleep(0)
    journal.free.set()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, True, False]
    assert taken == ["stays"]


class Turns:
    """How much was built in each turn of the event loop."""

    def __init__(self) -> None:
        self.now = 0
        self.built: Counter[int] = Counter()

    async def count(self) -> None:
        while True:
            self.now += 1
            await asyncio.sleep(0)

    def document(self, name: str) -> dict[str, Any]:
        self.built[self.now] += 1
        return {"id": name}


@pytest.mark.parametrize("how", ["wait", "are-asked-for"])
async def test_thousands_are_built_a_few_at_a_time_so_that_guests_are_steered_meanwhile(how: str) -> None:
    journal, counted = MemoryJournal(), Turns()
    writer = JournalWriter(journal)
    async with asyncio.TaskGroup() as tasks:
        counting = tasks.create_task(counted.count())
        asked = [(f"m{number}", partial(counted.document, f"m{number}")) for number in range(2000)]
        if how == "wait":
            for name, build in asked:
                writer.schedule_latest("migration", name, build)
            await writer.commit(("migration", {"id": "own"}))
        else:
            await asyncio.gather(*(writer.commit(("migration", build)) for _, build in asked))
        counting.cancel()
    assert max(counted.built.values()) <= 70
    assert {each["id"] for each in await journal.unfinished("migration")} >= {name for name, _ in asked}


@pytest.mark.parametrize("beside", [1, 50])
async def test_one_that_cannot_be_built_holds_up_no_other(beside: int) -> None:
    journal, strange = MemoryJournal(), dict[str, Any]()
    writer = JournalWriter(journal)
    writer.schedule_latest("migration", "strange", lambda: {"id": strange["id"]})
    for number in range(beside):
        writer.schedule("migration", {"id": f"m{number}"})
    await writer.commit(("migration", {"id": "own"}))
    assert len(await journal.unfinished("migration")) == beside + 1
    strange["id"] = "strange"
    writer.schedule_latest("migration", "strange", lambda: {"id": strange["id"]})
    await writer.commit()
    assert "strange" in {each["id"] for each in await journal.unfinished("migration")}


async def test_what_changes_while_many_are_built_is_written_with_what_was_said_of_it() -> None:
    site = Site(MemoryJournal())
    for number in range(200):
        site.say(about=f"m{number}")

    async def change() -> None:
        for number in range(100):
            site.say(about=f"m{7 * number % 200}")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        changing = tasks.create_task(change())
        await site.journal_writer.commit(("migration", {"id": "own"}))
        changing.cancel()
    told = {event["subject_id"]: event["event_id"] for event in await site.journal.events(limit=1000)}
    saved = {
        each["id"]: each["told"] for each in await site.journal.unfinished("migration") if "told" in each
    }
    assert saved == told
    assert len(told) == 200
    assert max(told.values()) > 200  # some did
