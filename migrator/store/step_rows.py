"""The steps of migrations in the journal's database, where another controller can see them.

One row a migration. What allows a switch is committed before it is allowed; what is noted later follows behind, as a
guest may stand still meanwhile. So of a record whose controller did not let go of it nobody knows whether the last ones
are missing: it is read as if the point of no return had been passed, and both QEMUs tell the rest.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import State
from migrator.errors import JournalError, RecordError, RecordInUse, RecordUnavailable
from migrator.ports import EndedRecord, Lease, Record, StrayRecord
from migrator.store.database import Database
from migrator.store.records import intent_of
from migrator.store.rows import statements
from migrator.store.schema import step_records

_NOTE = (
    update(step_records)
    .where(step_records.c.migration == bindparam("its"))
    .values(intent=bindparam("now"), noted_at=bindparam("at"), exact=bindparam("whole"))
)
_END = (
    update(step_records)
    .where(step_records.c.migration == bindparam("its"), step_records.c.ended_at.is_(None))
    .values(outcome=bindparam("how"), ended_at=bindparam("at"))
)


class SqlRecord:
    """See :class:`migrator.ports.Record`; made by :class:`SqlStepRecords`."""

    def __init__(self, records: SqlStepRecords, migration: str) -> None:
        self._records = records
        self.migration = migration
        self.noted_at: float | None = None
        self._last = Intent()
        self._behind: asyncio.Future[Any] | None = None

    async def begin(self, facts: Mapping[str, Any], intent: Intent) -> None:
        """See :meth:`migrator.ports.Record.begin`."""
        now = _microseconds()
        row = {
            "migration": self.migration,
            "facts": json.dumps(dict(facts)),
            "intent": as_text(intent),
            "begun_at": now,
            "noted_at": now,
            "exact": 0,
            "outcome": None,
            "ended_at": None,
        }

        async def write(connection: AsyncConnection) -> bool:
            # One that has ended was of an attempt before.
            upsert = statements(connection.dialect).begin_record
            return (await connection.execute(upsert, row)).rowcount == 1

        self._last = intent
        if not await self._done(self._records.write(write, self.migration)):
            raise RecordError(
                f"there is a record of the steps of {self.migration} already; nothing was changed. See migrator status "
                f"{self.migration}"
            )
        self._records.hold(self)

    async def note(self, intent: Intent) -> None:
        """See :meth:`migrator.ports.Record.note`."""
        self._last = intent
        await self._done(self._records.queue(_NOTE, self._row(intent), self.migration))

    def note_behind(self, intent: Intent) -> None:
        """See :meth:`migrator.ports.Record.note_behind`."""
        if why_not := self._records.why_not(self.migration):
            raise RecordError(why_not)
        self._last = intent
        self._behind = self._records.queue(_NOTE, self._row(intent), self.migration)

    async def end(self, outcome: Mapping[str, Any]) -> None:
        """See :meth:`migrator.ports.Record.end`."""
        row = {"its": self.migration, "how": json.dumps(dict(outcome)), "at": _microseconds()}
        if self._behind is not None:
            await asyncio.wait({self._behind})
        await self._done(self._records.queue(_END, row, self.migration))
        self._records.let_go(self)

    def close(self) -> None:
        """Note the last intent as a whole; nothing more will be noted."""
        self._records.queue(_NOTE, self._row(self._last, whole=True), self.migration)

    async def taken_up(self, intent: Intent) -> None:
        """Take the record over: from now on this controller writes it."""
        self._last = intent
        await self._done(self._records.queue(_NOTE, self._row(intent), self.migration))

    def _row(self, intent: Intent, *, whole: bool = False) -> dict[str, Any]:
        at = _microseconds()
        return {"its": self.migration, "now": as_text(intent), "at": at, "whole": int(whole)}

    async def _done(self, writing: Any) -> Any:
        try:
            return await writing
        except JournalError as error:
            raise RecordUnavailable(f"the steps of {self.migration} cannot be recorded: {error}") from error


class SqlStepRecords:
    """See :class:`migrator.engine.migration.services.StepRecordStore`.

    :ivar leases: by migration, what gives the right to write its steps; of one that is not there it is the journal's.
    """

    #: They are in the journal itself.
    whole = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[str, SqlRecord] = {}
        self.leases: dict[str, Lease] = {}

    def why_not(self, migration: str) -> str:
        """Return why a step may not be taken without waiting for its note; empty where it may.

        A switch that was allowed counts as done for whoever comes next, so that a server which is away stops nothing by
        itself: what stops it is that another may have the lease by now.
        """
        lease = self.leases.get(migration) or self._database.lease
        if lease is None:
            return self._database.complaint
        if lease.may_act:
            return ""
        lost = f"the lease {lease.name} could not be renewed in time, another may have it"
        return f"{lost}: {complaint}" if (complaint := self._database.complaint) else lost

    def create(self, migration: str) -> Record:
        """See :meth:`migrator.engine.migration.services.StepRecordStore.create`."""
        return SqlRecord(self, migration)

    async def take_up(self, migration: str) -> tuple[Record, Mapping[str, Any], Intent] | None:
        """See :meth:`migrator.engine.migration.services.StepRecordStore.take_up`."""
        if migration in self._held:
            raise RecordInUse(
                f"the record of the steps of {migration} is in use: it is being moved right now"
            )
        record = self._held[migration] = SqlRecord(self, migration)
        try:
            row = await self._read(migration)
            if row is None or row.ended_at is not None:
                del self._held[migration]
                return None
            facts, intent = read_row(migration, row)
            record.noted_at = row.noted_at / 1e6
            await record.taken_up(intent)
        except BaseException:
            self._held.pop(migration, None)
            raise
        return record, facts, intent

    async def outcome(self, migration: str) -> EndedRecord | None:
        """See :meth:`migrator.engine.migration.services.StepRecordStore.outcome`."""
        row = await self._read(migration)
        try:
            if row is None or row.outcome is None:
                return None
            ended = json.loads(row.outcome)
            State(ended["state"])
            attempt = int(json.loads(row.facts).get("attempt", 1))
            return EndedRecord(attempt=attempt, postponed=bool(ended.get("postponed")), fields={**ended})
        except (ValueError, LookupError, TypeError, AttributeError):
            return None

    async def strays(self, known: Container[str]) -> Sequence[StrayRecord]:
        """See :meth:`migrator.engine.migration.services.StepRecordStore.strays`."""
        query = select(step_records).where(step_records.c.ended_at.is_(None))

        async def read(connection: AsyncConnection) -> list[Any]:
            return list(await connection.execute(query.order_by(step_records.c.begun_at)))

        found = []
        for row in await self._database.read(read):
            if row.migration in known:
                continue
            facts: Mapping[str, Any] | None
            try:
                facts, _ = read_row(row.migration, row)
            except RecordError:
                facts = None
            path = f"{self._database.name}, step_records {row.migration}"
            found.append(StrayRecord(migration=row.migration, path=path, facts=facts))
        return found

    def release(self, record: Record) -> None:
        """See :meth:`migrator.engine.migration.services.StepRecordStore.release`."""
        if isinstance(record, SqlRecord) and self._held.get(record.migration) is record:
            record.close()
            self.let_go(record)

    def hold(self, record: SqlRecord) -> None:
        """Note that a record is this controller's."""
        self._held[record.migration] = record

    def let_go(self, record: SqlRecord) -> None:
        """Note that a record is nobody's."""
        self._held.pop(record.migration, None)

    async def put_away(self, migration: str, outcome: Mapping[str, Any]) -> None:
        """See :meth:`migrator.engine.migration.services.StepRecordStore.put_away`."""
        if migration in self._held:
            raise RecordInUse(
                f"the record of the steps of {migration} is in use: it is being moved right now"
            )
        row = {"its": migration, "how": json.dumps(dict(outcome)), "at": _microseconds()}
        try:
            await self.queue(_END, row, migration)
        except JournalError as error:
            raise RecordError(
                f"the record of the steps of {migration} cannot be put away: {error}"
            ) from error

    def queue(self, statement: Any, row: Mapping[str, Any], migration: str) -> asyncio.Future[Any]:
        """Write a row in turn; nothing has to be awaited."""
        return self._database.queue(statement, [row], lease=self.leases.get(migration))

    async def write(self, work: Any, migration: str) -> Any:
        """See :meth:`migrator.store.database.Database.write`."""
        return await self._database.write(work, lease=self.leases.get(migration))

    async def _read(self, migration: str) -> Any:
        query = select(step_records).where(step_records.c.migration == migration)

        async def read(connection: AsyncConnection) -> Any:
            return (await connection.execute(query)).one_or_none()

        try:
            return await self._database.read(read)
        except JournalError as error:
            raise RecordUnavailable(
                f"the record of the steps of {migration} cannot be read: {error}"
            ) from error


class StepRow(Protocol):
    """A migration's row of ``step_records``."""

    @property
    def facts(self) -> str:
        """Return what :meth:`SqlRecord.begin` was given, as JSON."""

    @property
    def intent(self) -> str:
        """Return the last intent, as JSON."""

    @property
    def exact(self) -> bool | int:
        """Return whether its controller let go of it: nothing was done that is not in :attr:`intent`."""


def read_row(migration: str, row: StepRow) -> tuple[Mapping[str, Any], Intent]:
    """Return the facts and the last intent of a row, as whoever takes it up must read them.

    :raise RecordError: it is damaged.
    """
    try:
        facts = dict(json.loads(row.facts))
        intent = intent_of(json.loads(row.intent))
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(
            f"the record of the steps of {migration} is damaged: look at both QEMUs by hand"
        ) from error
    # Once the source was put back as it was, nothing more was handed over.
    if not row.exact and intent.milestone >= Milestone.MIGRATING and not intent.restored:
        intent = replace(intent, milestone=max(intent.milestone, Milestone.HANDED_OVER))
    return facts, intent


def as_text(intent: Intent) -> str:
    """Return an intent as a row has it."""
    return json.dumps(asdict(intent))


def _microseconds() -> int:
    return time.time_ns() // 1000
