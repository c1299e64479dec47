"""Records of steps in a journal in memory that several controllers share, as one of them writes and finds them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from migrator.core.migration.situation import Intent
from migrator.errors import JournalError, RecordError, RecordInUse, RecordUnavailable
from migrator.ports import EndedRecord, Lease, Record, StrayRecord
from migrator.store.step_rows import as_text, read_row
from migrator.testing.shared_store import SharedSteps, SharedStore
from migrator.testing.wire import Wire


class StepTransactions(Protocol):
    """The journal as one controller sees it: :class:`migrator.testing.journal_view.JournalView`."""

    shared: SharedStore
    wire: Wire
    lease: Lease | None

    async def read(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer of a read.

        :raise JournalError: it does not come.
        """

    def queue(self, work: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        """Write in turn; nothing has to be awaited."""

    def checked(
        self, work: Callable[[], Awaitable[Any]], lease: Lease | None
    ) -> Callable[[], Awaitable[Any]]:
        """Return the work with the check of its lease in the same transaction."""


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

    def __init__(self, view: StepTransactions) -> None:
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
