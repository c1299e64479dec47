"""A journal in memory as one of several controllers sees it: over a network, and under its lease.

What all of them share is a :class:`~migrator.testing.journal.MemoryJournal`; each has a :class:`JournalView` of it,
which keeps the order of what it writes, checks its lease at the journal, and fails as a server does that is away.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

from migrator.core.migration.situation import Intent
from migrator.errors import JournalError, LeaseLost, RecordError, RecordInUse, RecordUnavailable
from migrator.ports import (
    Assignment,
    ControllerInfo,
    EndedRecord,
    HeldLease,
    Lease,
    PresentController,
    Record,
    Signal,
    StrayRecord,
    lease_margin,
)
from migrator.store.signals import LocalSignals
from migrator.store.step_rows import as_text, read_row
from migrator.testing.journal import MemoryJournal
from migrator.testing.wire import Lost, Wire

PLACE = "store"
#: As the client of a server: an answer that did not come by then is not waited for any more.
_SECONDS = 5.0
_AWAY = "the journal does not answer"


@dataclass
class SharedSteps:
    """The steps of one migration, as :mod:`migrator.store.step_rows` keeps them."""

    facts: str
    intent: str
    noted_at: int
    exact: bool = False
    outcome: str | None = None
    ended: bool = False


Written = Callable[[Lease | None, str, Mapping[str, Any] | None, Mapping[str, Any]], None]


class SharedSignals:
    """Tells all who use the store, but those that are cut off from it; see :class:`migrator.ports.Signals`."""

    def __init__(self) -> None:
        self._views: list[tuple[Wire, LocalSignals]] = []

    def view(self, wire: Wire) -> LocalSignals:
        """Return the signals as one process hears them."""
        heard = LocalSignals()
        self._views.append((wire, heard))
        return heard

    def drop(self, wire: Wire) -> None:
        """Tell a process nothing more: it was killed."""
        self._views = [each for each in self._views if each[0] is not wire]

    async def notify(self, channel: str, payload: str = "") -> None:
        """See :meth:`migrator.ports.Signals.notify`."""
        for wire, heard in tuple(self._views):
            if PLACE not in wire.cut:
                await heard.notify(channel, payload)

    def listen(
        self, *channels: str, poll_seconds: float = 5.0
    ) -> AbstractAsyncContextManager[AsyncIterator[Signal]]:
        """See :meth:`view`: each process listens by itself."""
        raise NotImplementedError


class SharedStore:
    """All that the controllers share.

    :ivar fenced: what a lease does not allow any more is refused; only a test of tests has it otherwise.
    :ivar fences_drivers: likewise, of those that drive what a planner gave them.
    :ivar taken_late: called with the lease of what a driver wrote after its assignment was over, and was not refused.
    :ivar written: called with the writer's lease, the kind, the document before and after, when one is written.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.journal = MemoryJournal()
        self.written: Written = lambda lease, kind, before, after: None
        self.journal.signals = self.signals = SharedSignals()
        self.journal.pause = _at_once
        self.journal.leases.now = self.journal.leases.clock = now
        self.meta: dict[str, str] = {}
        self.steps: dict[str, SharedSteps] = {}
        self.fenced = self.fences_drivers = True
        self.taken_late: Callable[[Lease], None] = lambda lease: None
        self.now = now

    def check(self, lease: Lease | None) -> None:
        """:raise LeaseLost: it does not hold."""
        if lease is None:
            return
        drives = lease.name.startswith("migration/")
        its = self.journal.assignments if drives else self.journal.leases
        if its.holds(lease):
            return
        if self.fenced and (self.fences_drivers or not drives):
            raise LeaseLost(f"the lease {lease.name} of {lease.owner} does not hold any more")
        if drives:
            self.taken_late(lease)


async def _at_once(call: str) -> None:
    """The network takes the time."""


class JournalView:
    """See :class:`migrator.ports.Journal` and :class:`migrator.ports.CommandLog`.

    :ivar lease: what gives the right to every write of this controller.
    """

    name = "memory"

    def __init__(self, store: SharedStore, wire: Wire) -> None:
        self.shared, self.wire = store, wire
        self.lease: Lease | None = None
        self.complaint = ""
        self.leases = _Leases(self)
        self.steps = MemoryStepRecords(self)
        self.controllers = _Controllers(self)
        self.assignments = _Assignments(self)
        self.signals = store.signals.view(wire)
        self.others = False
        self._jobs: deque[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._writing = False

    @property
    def rights(self) -> dict[str, Lease]:
        """See :attr:`migrator.store.journal.SqlJournal.rights`."""
        return self.steps.leases

    async def read(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer of a read.

        :raise JournalError: it does not come.
        """
        try:
            return await self.wire.call(PLACE, work, seconds=_SECONDS)
        except Lost as error:
            raise JournalError(_AWAY) from error

    def queue(self, work: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        """Write in turn; nothing has to be awaited."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._jobs.append((work, done))
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().create_task(self._write(), name="journal writer")
        return done

    async def _write(self) -> None:
        try:
            while self._jobs:
                work, done = self._jobs.popleft()
                try:
                    result = await self.wire.call(PLACE, work, seconds=_SECONDS)
                except Lost:
                    self.complaint = _AWAY
                    _fail(done, JournalError(_AWAY))
                except JournalError as error:
                    _fail(done, error)
                else:
                    self.complaint = ""
                    if not done.done():
                        done.set_result(result)
        finally:
            self._writing = False

    async def write(self, work: Callable[[], Awaitable[Any]], lease: Lease | None = None) -> Any:
        """Write in turn.

        :raise LeaseLost: its lease does not hold.
        :raise JournalError: it was not written, or nobody knows.
        """
        return await asyncio.shield(self.queue(self.checked(work, lease or self.lease)))

    def checked(
        self, work: Callable[[], Awaitable[Any]], lease: Lease | None
    ) -> Callable[[], Awaitable[Any]]:
        """Return the work with the check of its lease in the same transaction."""

        async def transaction() -> Any:
            self.shared.check(lease)
            return await work()

        return transaction

    # --- as the journal ----------------------------------------------------------------------------------------------

    async def probe(self) -> str:
        """See :meth:`migrator.store.journal.SqlJournal.probe`."""
        try:
            await self.write(self.shared.journal.probe)
        except JournalError:
            pass  # the complaint says so
        return self.complaint

    async def save(
        self,
        *documents: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        """See :meth:`migrator.ports.Journal.save`."""
        copied = [(kind, json.loads(json.dumps(document))) for kind, document in documents]
        its = lease or self.lease

        async def work() -> list[int]:
            for kind, document in copied:
                before = await self.shared.journal.find(kind, document["id"])
                self.shared.written(its, kind, before, document)
            return await self.shared.journal.save(*copied, events=events)

        numbers: list[int] = await self.write(work, lease)
        return numbers

    async def claim_command(
        self, *documents: tuple[str, Mapping[str, Any]], lease: Lease | None = None, **how: Any
    ) -> Any:
        """See :meth:`migrator.ports.CommandLog.claim_command`."""
        return await self.write(lambda: self.shared.journal.claim_command(*documents, **how), lease)

    async def answer_command(self, *, key: str, reply: Mapping[str, Any]) -> None:
        """See :meth:`migrator.ports.CommandLog.answer_command`."""
        await self.write(lambda: self.shared.journal.answer_command(key=key, reply=reply))

    async def meta(self, name: str) -> str | None:
        """See :meth:`migrator.store.journal.SqlJournal.meta`."""

        async def work() -> str | None:
            return self.shared.meta.get(name)

        found: str | None = await self.read(work)
        return found

    async def metas(self, prefix: str) -> dict[str, str]:
        """See :meth:`migrator.store.journal.SqlJournal.metas`."""

        async def work() -> dict[str, str]:
            return {name: value for name, value in self.shared.meta.items() if name.startswith(prefix)}

        found: dict[str, str] = await self.read(work)
        return found

    async def keep_meta(self, name: str, value: str) -> None:
        """See :meth:`migrator.store.journal.SqlJournal.keep_meta`."""

        async def work() -> None:
            self.shared.meta[name] = value

        await self.write(work)

    def __getattr__(self, name: str) -> Any:
        """Return a read of the journal."""
        found = getattr(self.shared.journal, name)

        async def ask(*args: Any, **kwargs: Any) -> Any:
            return await self.read(lambda: found(*args, **kwargs))

        return ask


class _Leases:
    """See :class:`migrator.ports.Leases`."""

    def __init__(self, view: JournalView) -> None:
        self._view = view
        self._leases = view.shared.journal.leases

    async def acquire(
        self, name: str, *, owner: str, seconds: float, known: int | None = None
    ) -> Lease | None:
        asked_at = self._leases.clock()
        lease: Lease | None = await self._view.queue(
            lambda: self._leases.acquire(name, owner=owner, seconds=seconds, known=known)
        )
        return lease and _counted_from(asked_at, lease, seconds)

    async def renew(self, held: Sequence[Lease], *, seconds: float) -> list[Lease | None]:
        asked_at = self._leases.clock()
        renewed: list[Lease | None] = await self._view.queue(
            lambda: self._leases.renew(held, seconds=seconds)
        )
        return [lease and _counted_from(asked_at, lease, seconds) for lease in renewed]

    async def release(self, lease: Lease) -> None:
        await self._view.queue(lambda: self._leases.release(lease))

    async def all(self) -> list[HeldLease]:
        found: list[HeldLease] = await self._view.read(self._leases.all)
        return found


class _Controllers:
    """See :class:`migrator.ports.Controllers`."""

    def __init__(self, view: JournalView) -> None:
        self._view = view
        self._controllers, self._clock = view.shared.journal.controllers, view.shared.journal.leases

    async def join(self, info: ControllerInfo, *, seconds: float, known: int | None = None) -> Lease | None:
        asked_at = self._clock.clock()
        lease: Lease | None = await self._view.queue(
            lambda: self._controllers.join(info, seconds=seconds, known=known)
        )
        return lease and _counted_from(asked_at, lease, seconds)

    async def beat(self, info: ControllerInfo, lease: Lease, *, seconds: float) -> Lease | None:
        asked_at = self._clock.clock()
        work = lambda: self._controllers.beat(info, lease, seconds=seconds)  # noqa: E731 - it is awaited elsewhere
        renewed: Lease | None = await self._view.queue(work)
        return renewed and _counted_from(asked_at, renewed, seconds)

    async def leave(self, lease: Lease) -> None:
        await self._view.queue(lambda: self._controllers.leave(lease))

    async def all(self) -> list[PresentController]:
        found: list[PresentController] = await self._view.read(self._controllers.all)
        return found


class _Assignments:
    """See :class:`migrator.ports.Assignments`."""

    def __init__(self, view: JournalView) -> None:
        self._view, self._assignments = view, view.shared.journal.assignments

    async def give(self, assignment: Assignment) -> bool:
        given: bool = await self._view.write(lambda: self._assignments.give(assignment))
        return given

    async def fence(self, migration: str, number: int) -> Assignment | None:
        last: Assignment | None = await self._view.write(lambda: self._assignments.fence(migration, number))
        return last

    async def remove(self, migration: str, number: int) -> None:
        await self._view.write(lambda: self._assignments.remove(migration, number))

    async def request(self, migration: str, number: int, requests: Mapping[str, Any]) -> None:
        await self._view.write(lambda: self._assignments.request(migration, number, dict(requests)))

    async def report(
        self, assignment: Assignment, report: Mapping[str, Any] | None, *, released: bool
    ) -> None:
        said = json.loads(json.dumps(report))
        shared = self._view.shared
        fenced = shared.fenced and shared.fences_drivers
        write = self._assignments.report if fenced else self._assignments.overwrite
        right = assignment.right(lambda: True)
        await self._view.write(lambda: write(assignment, said, released=released), right)

    async def find(self, migrations: Collection[str] | None = None) -> Sequence[Assignment]:
        wanted = None if migrations is None else set(migrations)
        found: Sequence[Assignment] = await self._view.read(lambda: self._assignments.find(wanted))
        return found

    async def of(self, driver: str) -> Sequence[Assignment]:
        found: Sequence[Assignment] = await self._view.read(lambda: self._assignments.of(driver))
        return found


def _counted_from(asked_at: float, lease: Lease, seconds: float) -> Lease:
    return replace(lease, until=asked_at + seconds - lease_margin(seconds))


def _fail(done: asyncio.Future[Any], error: JournalError) -> None:
    if not done.done():
        done.set_exception(error)


class _Record:
    """See :class:`migrator.ports.Record`; as :class:`migrator.store.step_rows.SqlRecord`."""

    def __init__(self, records: MemoryStepRecords, migration: str) -> None:
        self._records, self.migration = records, migration
        self.noted_at: float | None = None
        self._last = Intent()
        self._behind: asyncio.Future[Any] | None = None

    async def begin(self, facts: Mapping[str, Any], intent: Intent) -> None:
        self._last = intent
        row = SharedSteps(json.dumps(dict(facts)), as_text(intent), self._records.microseconds())

        async def work() -> bool:
            there = self._records.rows.get(self.migration)
            if there is not None and not there.ended:
                return False
            self._records.rows[self.migration] = row
            return True

        if not await self._done(self._records.queue(work, self.migration)):
            raise RecordError(f"there is a record of the steps of {self.migration} already")
        self._records.held[self.migration] = self

    async def note(self, intent: Intent) -> None:
        self._last = intent
        await self._done(self._note())

    def note_behind(self, intent: Intent) -> None:
        if why_not := self._records.why_not(self.migration):
            raise RecordError(why_not)
        self._last = intent
        self._behind = self._note()

    def _note(self, *, exact: bool = False) -> asyncio.Future[Any]:
        text, at = as_text(self._last), self._records.microseconds()

        async def work() -> None:
            if (row := self._records.rows.get(self.migration)) is not None:
                row.intent, row.noted_at, row.exact = text, at, exact

        return self._records.queue(work, self.migration)

    async def end(self, outcome: Mapping[str, Any]) -> None:
        if self._behind is not None:
            await asyncio.wait({self._behind})
        await self._done(self._records.end(self.migration, outcome))
        self._records.held.pop(self.migration, None)

    def close(self) -> None:
        self._note(exact=True)

    async def taken_up(self, intent: Intent) -> None:
        self._last = intent
        await self._done(self._note())

    async def _done(self, writing: asyncio.Future[Any]) -> Any:
        try:
            return await asyncio.shield(writing)
        except JournalError as error:
            raise RecordUnavailable(f"the steps of {self.migration} cannot be recorded: {error}") from error


class MemoryStepRecords:
    """See :class:`migrator.engine.migration.services.StepRecordStore`; as that of a journal on a server."""

    whole = True

    def __init__(self, view: JournalView) -> None:
        self._view = view
        self.rows = view.shared.steps
        self.held: dict[str, _Record] = {}
        self.leases: dict[str, Lease] = {}

    def microseconds(self) -> int:
        """Return the time."""
        return int(self._view.shared.now() * 1e6)

    def why_not(self, migration: str) -> str:
        """See :meth:`migrator.store.step_rows.SqlStepRecords.why_not`."""
        lease = self.leases.get(migration) or self._view.lease
        return (
            "" if lease is None or lease.may_act else f"the lease {lease.name} could not be renewed in time"
        )

    def queue(self, work: Callable[[], Awaitable[Any]], migration: str) -> asyncio.Future[Any]:
        """Write in turn, under the lease that allows it."""
        lease = self.leases.get(migration) or self._view.lease
        return self._view.queue(self._view.checked(work, lease))

    def end(self, migration: str, outcome: Mapping[str, Any]) -> asyncio.Future[Any]:
        """Put a record away."""
        text = json.dumps(dict(outcome))

        async def work() -> None:
            row = self.rows.get(migration)
            if row is not None and not row.ended:
                row.outcome, row.ended = text, True

        return self.queue(work, migration)

    def create(self, migration: str) -> Record:
        return _Record(self, migration)

    async def take_up(self, migration: str) -> tuple[Record, Mapping[str, Any], Intent] | None:
        if migration in self.held:
            raise RecordInUse(f"the record of the steps of {migration} is in use")
        record = self.held[migration] = _Record(self, migration)
        try:
            row = await self._read(migration)
            if row is None or row.ended:
                del self.held[migration]
                return None
            facts, intent = read_row(migration, row)
            record.noted_at = row.noted_at / 1e6
            await record.taken_up(intent)
        except BaseException:
            self.held.pop(migration, None)
            raise
        return record, facts, intent

    async def _read(self, migration: str) -> SharedSteps | None:
        async def work() -> SharedSteps | None:
            row = self.rows.get(migration)
            return None if row is None else replace(row)

        try:
            found: SharedSteps | None = await self._view.read(work)
        except JournalError as error:
            raise RecordUnavailable(
                f"the record of the steps of {migration} cannot be read: {error}"
            ) from error
        return found

    async def outcome(self, migration: str) -> EndedRecord | None:
        row = await self._read(migration)
        if row is None or row.outcome is None:
            return None
        ended = json.loads(row.outcome)
        attempt = int(json.loads(row.facts).get("attempt", 1))
        return EndedRecord(attempt=attempt, postponed=bool(ended.get("postponed")), fields=ended)

    async def strays(self, known: Container[str]) -> Sequence[StrayRecord]:
        async def work() -> list[str]:
            return [name for name, row in self.rows.items() if not row.ended]

        found = []
        for name in await self._view.read(work):
            if name not in known:
                facts = json.loads(self.rows[name].facts)
                found.append(StrayRecord(migration=name, path=f"memory {name}", facts=facts))
        return found

    def release(self, record: Record) -> None:
        if isinstance(record, _Record) and self.held.get(record.migration) is record:
            record.close()
            self.held.pop(record.migration, None)

    async def put_away(self, migration: str, outcome: Mapping[str, Any]) -> None:
        if migration in self.held:
            raise RecordInUse(f"the record of the steps of {migration} is in use")
        await self.end(migration, outcome)
