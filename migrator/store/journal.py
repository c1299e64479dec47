"""The service's journal in its database: documents, events and commands; another module reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.errors import JournalError
from migrator.ports import Claim, Lease
from migrator.ports.controllers import ANSWERS_CHANNEL, EVENTS_CHANNEL, REPLIES_CHANNEL
from migrator.store import retention, rows
from migrator.store.assignments import SqlAssignments
from migrator.store.backend import Place
from migrator.store.controllers import SqlControllers
from migrator.store.database import Database
from migrator.store.journal_reader import SqlJournalReader
from migrator.store.leases import SqlLeases
from migrator.store.live_documents import SqlLiveDocuments
from migrator.store.samples import SqlSamples
from migrator.store.schema import commands, events
from migrator.store.signals import LocalSignals, ServerSignals
from migrator.store.sqlite import FILE_TIMEOUTS, FileTimeouts
from migrator.store.step_rows import SqlStepRecords
from migrator.store.tokens import Tokens
from migrator.store.waiting_commands import SqlWaitingCommands
from migrator.store.writer import parts

#: What the last samples are waited for at the end.
_LAST_SAMPLES_SECONDS = 2.0
#: Numbers of events are reserved so many at a time, when half of them are used.
_RESERVED = 500
#: Rows that are made before others on the event loop have their turn.
_MADE_AT_ONCE = 20
#: Characters of a reply that goes with its signal: a server's takes 8000 bytes, with what escaping makes of it.
_SHORT_REPLY = 3500
T = TypeVar("T")
#: Subject, its id, sequence and time of an event: what it is told by before it has a number.
_Identity = tuple[str, str, int, int]


class SqlJournal(SqlJournalReader):
    """See :class:`migrator.ports.Journal` and :class:`migrator.ports.CommandLog`.

    ::

        async with await SqlJournal.open(place) as journal:
            await journal.save(("migration", document))

    :ivar tokens: those who may use the service, in the same database.
    :ivar samples: the figures of migrations, likewise.
    :ivar leases: who may do what alone, likewise.
    :ivar controllers: which controllers share it.
    :ivar live: documents that are not journalled at every change, for other controllers.
    :ivar signals: tells others who use it that there is something to look at.
    :ivar shared: several controllers may write it: it gives events their numbers.
    :ivar waiting: commands that another controller has received.
    :ivar assignments: migrations that other controllers than the planner drive.
    :ivar steps: how far migrations got, likewise, where that is not in files.
    """

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        super().__init__(database)
        self._statements = rows.statements(database.dialect)
        self._now = now
        self._reserved = 0
        #: Whether other controllers are there, who are told that there are events.
        self.others = False
        #: Events without a number that may have been written and given one, though that is not known.
        self._unsure: set[_Identity] = set()
        self.tokens = Tokens(database, now=now)
        self.samples = SqlSamples(database)
        self.leases = SqlLeases(database)
        self.steps = SqlStepRecords(database)
        on_server = self.shared = database.dialect.name == "postgresql"
        self.signals = ServerSignals(database) if on_server else LocalSignals()
        self.live = SqlLiveDocuments(database, self.signals)
        self.controllers = SqlControllers(database, self.leases)
        self.waiting = SqlWaitingCommands(database, self.signals)
        self.assignments = SqlAssignments(database, self.signals)

    @classmethod
    async def open(
        cls,
        place: Place,
        *,
        alone: bool = True,
        timeouts: FileTimeouts = FILE_TIMEOUTS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> SqlJournal:
        """Open the journal there; it is made where there is none.

        A disk that is full or cannot be written is no reason to leave guests alone: the journal is opened all the
        same, and :attr:`complaint` says so.

        :param alone: of a file, keep every other service away from it.
        :param timeouts: of a file.
        :param now: the clock; only tests need another.
        :raise JournalError: it cannot be read, another service has it open, or a newer migrator wrote it.
        """
        journal = cls(await Database.open(place, alone=alone, timeouts=timeouts), now=now)
        await journal.probe()
        return journal

    @classmethod
    async def open_beside(cls, place: Place) -> SqlJournal:
        """Open the journal there to read it, while a service writes it.

        :raise JournalError: as :meth:`open`.
        """
        return cls(await Database.open(place, alone=False), now=lambda: datetime.now(UTC))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what is still to be written, and let go of the file."""
        try:
            async with asyncio.timeout(_LAST_SAMPLES_SECONDS):
                await self.samples.flush()
        except TimeoutError:
            pass  # a help for people; whoever closes has more to do
        await self._database.close()

    @property
    def name(self) -> str:
        """Return where it is, as messages say it."""
        return self._database.name

    @property
    def lease(self) -> Lease | None:
        """Return the lease that gives the right to every write that belongs to no other lease."""
        return self._database.lease

    @lease.setter
    def lease(self, lease: Lease | None) -> None:
        self._database.lease = lease

    @property
    def rights(self) -> dict[str, Lease]:
        """Return the leases that give the right to write the steps of single migrations, by migration."""
        return self.steps.leases

    @property
    def complaint(self) -> str:
        return self._database.complaint

    def tell(self, *, on_write: Callable[[float], None], on_error: Callable[[str], None]) -> None:
        """Tell the seconds of every write that is on disk, and ``write`` for every one that failed."""
        self._database.on_write, self._database.on_error = on_write, on_error

    async def probe(self) -> str:
        """Try whether it can be written, at the cost of one small write; :attr:`complaint` as it is then."""
        row = {"key": "probe", "value": self._now().isoformat()}
        try:
            await self._database.write_rows(self._statements.upsert_meta, [row])
        except JournalError:
            pass  # the complaint says it
        return self.complaint

    async def keep_meta(self, key: str, value: str) -> None:
        """Keep one value of the journal itself.

        :raise JournalError: it cannot be written.
        """
        await self._database.write_rows(self._statements.upsert_meta, [{"key": key, "value": value}])

    # --- documents

    async def save(
        self,
        *given: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        """See :meth:`migrator.ports.Journal.save`."""
        written = await _in_turns(lambda each: rows.document_row(*each), given)
        if events:
            return await self._save_all(written, await _in_turns(rows.event_row, events), lease)
        if written:
            await self._database.write_rows(self._statements.upsert_document, written, lease=lease)
        return []

    async def _save_all(
        self, written: Sequence[dict[str, Any]], told: Sequence[dict[str, Any]], lease: Lease | None
    ) -> list[int]:
        reserved = self._reserved
        last = max(row["event_id"] for row in told)
        if last and last + _RESERVED // 2 > reserved:
            reserved = last + _RESERVED
        without_number = {_identity(row): row for row in told if not row["event_id"]}
        perhaps_there = self._unsure & without_number.keys()

        async def write(connection: AsyncConnection) -> list[int]:
            for some in parts(written):
                await connection.execute(self._statements.upsert_document, some)
            numbers: dict[_Identity, int] = {}
            if without_number:
                # From here to the end of the transaction nobody else writes one.
                number = await rows.take_event_ids(connection, len(without_number)) - len(without_number)
                numbers = await _numbers_there(connection, perhaps_there)
                for identity in without_number:
                    if identity not in numbers:
                        number += 1
                        numbers[identity] = number
            new = [row if row["event_id"] else rows.numbered(row, numbers[_identity(row)]) for row in told]
            for some in parts(new):
                await connection.execute(self._statements.insert_event, some)
            if reserved != self._reserved:
                await rows.reserve_event_ids(connection, reserved)
            if self.others:
                await self.signals.notify_with(connection, EVENTS_CHANNEL)
            return [row["event_id"] for row in new]

        try:
            numbers = await self._database.write(write, lease=lease)
        except BaseException:
            # Nobody knows whether they are there, and the next time they must not get other numbers.
            self._unsure |= without_number.keys()
            raise
        self._unsure -= without_number.keys()
        self._reserved = max(reserved, self._reserved)
        return numbers

    # --- commands

    async def claim_command(
        self,
        *given: tuple[str, Mapping[str, Any]],
        key: str,
        verb: str,
        body_hash: str,
        body: Mapping[str, Any],
        caller: Mapping[str, str],
        lease: Lease | None = None,
    ) -> Claim:
        """See :meth:`migrator.ports.CommandLog.claim_command`."""
        row = {
            "key": rows.text(key),
            "verb": verb,
            "body_hash": body_hash,
            "body": json.dumps(dict(body)),
            "caller": json.dumps(dict(caller)),
            "claimed_at": rows.microseconds(self._now()),
            "settled": 0,
        }
        changed = [rows.document_row(kind, document) for kind, document in given]

        async def write(connection: AsyncConnection) -> Claim:
            if (await connection.execute(self._statements.claim_command, row)).rowcount == 1:
                if changed:
                    await connection.execute(self._statements.upsert_document, changed)
                return Claim(new=True)
            there = (
                await connection.execute(
                    select(commands.c.body_hash, commands.c.reply).where(commands.c.key == row["key"])
                )
            ).one()
            return Claim(
                new=False,
                other_body=there.body_hash != body_hash,
                reply=None if there.reply is None else json.loads(there.reply),
            )

        return await self._database.write(write, lease=lease)

    async def answer_command(self, *, key: str, reply: Mapping[str, Any], told: bool = True) -> None:
        """See :meth:`migrator.ports.CommandLog.answer_command`."""
        values = {
            "reply": json.dumps(dict(reply)),
            "answered_at": rows.microseconds(self._now()),
            "settled": int(told and _settled(reply)),
            "waiting": 0,
        }
        statement = update(commands).where(commands.c.key == rows.text(key)).values(values)
        both = json.dumps([key, dict(reply)])
        told_by = (REPLIES_CHANNEL, both) if len(both) <= _SHORT_REPLY else (ANSWERS_CHANNEL, key)

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(statement)
            if self.shared:  # another controller may have received it
                await self.signals.notify_with(connection, *told_by)

        await self._database.write(write)

    async def prune(self, older_than: datetime) -> int:
        """Remove what ended before that: documents, their events and samples, and the commands that began them.

        Commands that began nothing, and events of hosts and commands, go by their age; the last event of each host
        stays. What has not ended stays whole. The room is used again, the file does not shrink.

        :return: how many documents were removed.
        :raise JournalError: it cannot be written; what was removed until then stays removed.
        """
        return await retention.prune(self._database, older_than)


async def _in_turns(row: Callable[[T], dict[str, Any]], given: Sequence[T]) -> list[dict[str, Any]]:
    """Return the row of each; others on the event loop have their turns in between."""
    made: list[dict[str, Any]] = []
    for some in parts(given, _MADE_AT_ONCE):
        if made:
            await asyncio.sleep(0)
        made += map(row, some)
    return made


def _identity(row: Mapping[str, Any]) -> _Identity:
    return row["subject"], row["subject_id"], row["sequence"], row["time"]


async def _numbers_there(connection: AsyncConnection, sought: Collection[_Identity]) -> dict[_Identity, int]:
    """Return the numbers of those events that are there."""
    found = {}
    columns = (events.c.subject, events.c.subject_id, events.c.sequence, events.c.time)
    for each in sought:
        same = [column == value for column, value in zip(columns, each, strict=True)]
        number = (await connection.execute(select(func.max(events.c.event_id)).where(*same))).scalar()
        if number is not None:
            found[each] = int(number)
    return found


def _settled(reply: Mapping[str, Any]) -> bool:
    """Tell whether nothing more will be said to the command."""
    return reply.get("kind") != "accepted" or reply.get("subject") not in ("migration", "evacuation")
