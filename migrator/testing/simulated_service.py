"""The service for tests: the real engine on a simulated site, with a journal in memory that has latency.

What is simulated is what lies outside: hosts, QEMUs and the disk of the journal. All of it outlives the engine, so that
the next one goes on with what the last one left.

::

    service = SimulatedService(tmp_path)
    service.site.add_host("a"); service.site.add_host("b")
    service.site.add_guest("vm-1", host="a")
    async with service.running() as running:            # or running(killed=True): it ends without a word to anyone
        evacuation = await running.ask(Evacuate(host="a"))
        await running.end_of(evacuation)
    assert service.site.running("vm-1") == ["b"]

Under looptime an hour of it takes a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from migrator.api.commands import Command, Role
from migrator.api.events import Subject
from migrator.api.requests import Caller
from migrator.core.drain.evacuation import Evacuation
from migrator.core.inventory import Guest
from migrator.core.migration.downsampling import Point, Series
from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.engine.commands.settlement import Settlement
from migrator.engine.controller import Engine
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import MAX_EVENT_DELAY_SECONDS, JournalWriter
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.rules import Rules
from migrator.ports import Hooks, Record
from migrator.store.step_records import StepRecords
from migrator.testing.journal import MemoryJournal
from migrator.testing.simulated_site import SimulatedSite

OPERATOR = Caller(user="unix:0", role=Role.OPERATOR, interface="http")
#: Of each call of the journal: what a good disk takes.
LATENCY_SECONDS = 0.002


def _unchanged(inner: Any, name: str) -> Any:  # noqa: ARG001 - as what a test puts in its place
    return inner


def _as_found(findings: Any, codes: Any) -> Any:  # noqa: ARG001 - as what a test puts in its place
    return findings


class LockedRecords(StepRecords):
    """Records of steps that know the locks they hold, as the kernel does of a process that is killed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._locked: list[Record] = []

    def create(self, migration: str) -> Record:
        self._locked.append(super().create(migration))
        return self._locked[-1]

    async def take_up(self, migration: str) -> Any:
        found = await super().take_up(migration)
        if found is not None:
            self._locked.append(found[0])
        return found

    def unlock_all(self) -> None:
        """Release every lock, as at the end of a process."""
        for record in self._locked:
            self.release(record)


class MemorySamples:
    """Implements :class:`migrator.ports.Samples`."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def add(self, migration: str, point: Point) -> None:
        self._series.setdefault(migration, Series()).add(point)

    async def of(self, migration: str) -> Sequence[Point]:
        return self._series.get(migration, Series()).points


class SimulatedService:
    """A site, a journal and records, and the engine that keeps them while :meth:`running`.

    :param accept: makes findings into what they are once some codes are accepted, as ``SessionServices.accept``.
    :param latency_seconds: what each call of the journal takes.
    :ivar requires: labels that every guest requires of its host.
    :ivar anti_affinity: the word that every guest names.
    :ivar group: the group of every guest.
    :ivar hooks: commands that are run while guests move.
    :ivar roll_hooks: commands that are run for hosts that are rolled through.
    :ivar rules: what the engine goes by; for the next that is started.
    :ivar numbered_by_journal: the journal numbers events, as one on a server that several controllers share.
    :ivar whole: whether journal and records belong together.
    :ivar max_event_delay: see :class:`migrator.engine.journal_writer.JournalWriter`; for the next engine.
    """

    def __init__(
        self,
        directory: Path,
        site: SimulatedSite | None = None,
        *,
        accept: Callable[[Any, Any], Any] = _as_found,
        latency_seconds: float = LATENCY_SECONDS,
    ) -> None:
        self.site = site or SimulatedSite()
        self.directory = directory
        self.accept = accept
        self.journal = MemoryJournal(latency_seconds=latency_seconds)
        self.samples = MemorySamples()
        self.requires: dict[str, str] = {}
        self.anti_affinity = self.group = ""
        self.rules = Rules(policy=builtin)
        self.hooks: Hooks | None = None
        #: Looked into by tests.
        self.roll_hooks: Any = None
        self.numbered_by_journal = False
        self.whole = True
        self.max_event_delay = MAX_EVENT_DELAY_SECONDS

    def configured(self, guest: Guest) -> Guest:
        """Return the guest with what the configuration says of it."""
        return replace(guest, requires=self.requires, anti_affinity=self.anti_affinity, group=self.group)

    async def make(self, *, outside: Callable[[Any, str], Any] = _unchanged) -> RunningEngine:
        """Put an engine together as the service does; :meth:`RunningEngine.start` starts it.

        :param outside: given the site, the journal and the records with the name of each, returns what the engine is
            to use instead.
        """
        journal: Any = outside(self.journal, "journal")
        site: Any = outside(self.site, "site")
        records = LockedRecords(self.directory)
        records.whole = self.whole
        last, sequences = await self.journal.positions()
        journal_writer = JournalWriter(journal, max_event_delay=self.max_event_delay)

        async def keep(session: JournalledSession) -> None:
            await journal_writer.commit(("migration", session.journalled))

        inventory = Inventory(
            [host.configured() for host in self.site.hosts.values()], site=site, rules=self.configured
        )
        engine = Engine(
            inventory=inventory,
            services=SessionServices(
                site=site,
                records=outside(records, "records"),
                keep=keep,
                accept=self.accept,
                samples=self.samples,
                hooks=self.hooks,
                roll_hooks=self.roll_hooks,
            ),
            journal_writer=journal_writer,
            bus=EventBus(
                last_event_id=last,
                sequences={(Subject(kind), name): number for (kind, name), number in sequences.items()},
                numbered_by_journal=self.numbered_by_journal,
            ),
            rules=self.rules,
        )
        inventory.on_change(engine.inventory_changed)
        return RunningEngine(engine, records=records, journal=journal)

    @asynccontextmanager
    async def running(
        self, *, killed: bool = False, outside: Callable[[Any, str], Any] = _unchanged
    ) -> AsyncIterator[RunningEngine]:
        """Run an engine while the block lasts; it is stopped at the end of it, or killed.

        :param outside: see :meth:`make`.
        """
        service = await self.make(outside=outside)
        try:
            await service.start()
            yield service
        finally:
            if not killed:
                await service.engine.stop()
                assert service.task is None or not service.task.done(), "a part of the engine ended by itself"
            await service.kill()


class RunningEngine:
    """One engine of a :class:`SimulatedService`, and what commands and queries go through."""

    def __init__(self, engine: Engine, *, records: LockedRecords, journal: Any) -> None:
        self.engine = engine
        self.bus = engine.bus
        #: Its answers are looked into by field, whichever document they are.
        self.queries: Any = engine.queries
        self.task: asyncio.Task[None] | None = None
        self._records = records
        #: Every command, as whoever counts them is told: interface, verb and outcome.
        self.counted: list[tuple[str, str, str]] = []
        self.dispatcher = Dispatcher(
            controller=engine.handlers, log=journal, count=lambda *each: self.counted.append(each)
        )
        self._settlement = Settlement(
            bus=engine.bus, journal=journal, dispatcher=self.dispatcher, elsewhere=("mqtt",)
        )
        self._settling: asyncio.Task[None] | None = None

    async def start(self, *, settling: bool = True) -> None:
        """Recover, look at all hosts, and run.

        :param settling: what has ended is joined with the command that began it, too.
        """
        await self.engine.recover()
        await self.engine.inventory.look_at_all()
        self.task = asyncio.create_task(self.engine.run(), name="engine")
        if settling:
            self._settling = asyncio.create_task(self._settlement.run(), name="settlement")

    async def kill(self) -> None:
        """End everything of it at once; what it had locked is free."""
        own = [task for task in (self.task, self._settling) if task is not None]
        tasks = {*self.engine.registry.driving(), *own}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._records.unlock_all()

    def sessions(self) -> list[JournalledSession]:
        """Return every migration that is in memory."""
        return list(self.engine.registry.migrations.values())

    def run(self, identifier: str) -> Evacuation:
        """Return an evacuation that is in memory."""
        return self.engine.registry.evacuations[identifier]

    async def ask(self, command: Command, *, key: str = "") -> Any:
        """Have a command carried out by an operator; the document that it answers.

        :raise Refusal: it is refused.
        """
        return await self.engine.handlers.carry_out(command, OPERATOR, key=key)

    async def until(self, what: Callable[[], bool], seconds: float = 3600) -> None:
        """Wait until it holds.

        :raise TimeoutError: it does not within so many seconds.
        """
        async with asyncio.timeout(seconds):
            while not what():
                await asyncio.sleep(0.1)

    async def end_of(self, evacuation: Any) -> Any:
        """Wait until an evacuation has ended; its document then.

        :raise TimeoutError: it does not within an hour.
        """
        async with asyncio.timeout(3600):
            while True:
                now = await self.queries.evacuation(evacuation.id)
                if now.ended_at is not None:
                    return now
                await asyncio.sleep(0.2)

    async def settled(self) -> None:
        """Wait until nothing is under way but what is held."""
        registry = self.engine.registry
        while any(
            not session.ended and session.state is not State.HELD for session in registry.migrations.values()
        ) or any(not each.ended for each in registry.evacuations.values()):
            await asyncio.sleep(0.05)
