"""A process that did not run for a while does not judge others by the time that it missed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from migrator.api.events import Event, EventKind
from migrator.awake import Absence, timeout_while_awake
from migrator.core.inventory import Host, HostFacts
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.errors import HostError, JournalError
from migrator.ports import HostLook
from migrator.store.database import Database
from migrator.store.sqlite import FileTimeouts
from migrator.testing.journal import MemoryJournal
from tests.some_events import of_migration

#: As if the process were stopped (SIGSTOP): nothing of it runs for so long.
STOPPED_SECONDS = 2.5


async def test_patience_ends_when_its_time_has_passed() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with timeout_while_awake(0.6):
            await asyncio.sleep(10)
    assert 0.55 <= time.monotonic() - began < 6
    async with timeout_while_awake(5):
        await asyncio.sleep(0)


async def test_time_in_which_this_process_did_not_run_does_not_count() -> None:
    async with timeout_while_awake(2.0):
        asyncio.get_running_loop().call_later(0.1, time.sleep, STOPPED_SECONDS)
        await asyncio.sleep(STOPPED_SECONDS + 0.2)
    with Absence() as away:
        await asyncio.sleep(0.1)
        assert away.seconds == 0
        time.sleep(STOPPED_SECONDS)
        await asyncio.sleep(0)
        assert STOPPED_SECONDS - 0.6 < away.seconds < STOPPED_SECONDS + 5


async def test_a_journal_that_was_waited_for_by_nobody_answers(
    tmp_path: Path,
) -> None:
    opened = await Database.open(tmp_path / "journal.db", timeouts=FileTimeouts(answer_seconds=1.5))
    try:

        async def slow(connection: Any) -> str:
            time.sleep(STOPPED_SECONDS)
            await asyncio.sleep(0.2)
            return "read"

        assert await opened.read(slow) == "read"
        assert await opened.write(slow) == "read"
        assert opened.complaint == ""
    finally:
        await opened.close()


async def test_too_many_readers_are_no_disk_that_does_not_answer(
    tmp_path: Path,
) -> None:
    opened = await Database.open(tmp_path / "journal.db", timeouts=FileTimeouts(answer_seconds=2.0))
    try:

        async def slow(connection: Any) -> None:
            await asyncio.sleep(0.8)

        found = await asyncio.gather(*(opened.read(slow) for _ in range(20)), return_exceptions=True)
        failed = [str(each) for each in found if isinstance(each, JournalError)]
        assert found.count(None) >= 4
        assert failed
        assert all("is asked for more than it can answer" in text for text in failed)
        assert not any("disk" in text for text in failed)
    finally:
        await opened.close()


async def test_a_host_is_not_down_because_we_were_away() -> None:
    class Slow:
        looks = 0

        async def look(self, host: str) -> HostLook:
            self.looks += 1
            if self.looks == 1:
                time.sleep(STOPPED_SECONDS)
                raise HostError(host, "sh did not end within 20 s")
            return HostLook(facts=HostFacts(), guests=())

    site: Any = Slow()
    inventory = Inventory([Host(name="a")], site=site)
    host = await inventory.look("a")
    assert host.up
    assert site.looks == 2


async def test_what_waits_for_the_journal_is_not_told_before_it_is_asked_again() -> None:
    journal = MemoryJournal()
    journal_writer, bus, told = JournalWriter(journal, max_event_delay=1.5), EventBus(), list[Event]()
    journal_writer.follow(bus)
    bus.subscribe(told.append, journalled=True)
    bus.publish(of_migration(EventKind.STATE, "m1"))
    time.sleep(STOPPED_SECONDS)
    await asyncio.sleep(0.1)
    assert told == [], "in that time another controller may have begun to act"
    writing = asyncio.create_task(journal_writer.run())
    assert await journal_writer.flush(5)
    assert len(told) == 1
    writing.cancel()
    await asyncio.wait({writing})
