"""The service's journal in its database: documents, events and commands, written and found again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from sqlalchemy import ColumnElement, Select, func, select, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.api.queries import EventTexts
from migrator.errors import JournalError
from migrator.ports import ANSWERS_CHANNEL, EVENTS_CHANNEL, Claim, Lease
from migrator.store import retention, rows
from migrator.store.backend import Place
from migrator.store.controllers import SqlControllers
from migrator.store.database import Database
from migrator.store.leases import SqlLeases
from migrator.store.live_documents import SqlLiveDocuments
from migrator.store.samples import SqlSamples
from migrator.store.schema import commands, documents, events, meta
from migrator.store.signals import LocalSignals, ServerSignals
from migrator.store.sqlite import FILE_TIMEOUTS, FileTimeouts
from migrator.store.step_rows import SqlStepRecords
from migrator.store.tokens import Tokens
from migrator.store.waiting_commands import SqlWaitingCommands
from migrator.text import mended

#: What the last samples are waited for at the end.
_PATIENCE_SECONDS = 2.0
#: Numbers of events are reserved so many at a time, when half of them are used.
_RESERVED = 500
#: What `where` may ask for, and the columns it is looked up in.
_COLUMNS = {
    "state": (documents.c.state,),
    "guest": (documents.c.guest,),
    "host": (documents.c.source, documents.c.destination),
    "evacuation": (documents.c.evacuation,),
    "command": (documents.c.command,),
}


#: Subject, its id, sequence and time of an event: what it is told by before it has a number.
_Identity = tuple[str, str, int, int]


class SqlJournal:
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
    :ivar steps: how far migrations got, likewise, where that is not in files.
    """

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
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
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self.samples.flush()
        except TimeoutError:
            pass  # a help for people; whoever closes has more to do
        await self._database.close()

    @property
    def name(self) -> str:
        """Where it is, as messages say it."""
        return self._database.name

    @property
    def lease(self) -> Lease | None:
        """Lease that gives the right to every write that belongs to no other lease."""
        return self._database.lease

    @lease.setter
    def lease(self, lease: Lease | None) -> None:
        self._database.lease = lease

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

    async def meta(self, key: str) -> str | None:
        """Return what :meth:`keep_meta` kept.

        :raise JournalError: it cannot be read.
        """

        async def read(connection: AsyncConnection) -> str | None:
            found = (await connection.execute(select(meta.c.value).where(meta.c.key == key))).scalar()
            return None if found is None else str(found)

        return await self._database.read(read)

    async def metas(self, prefix: str) -> dict[str, str]:
        """Return all that :meth:`keep_meta` kept under names that begin so.

        :raise JournalError: it cannot be read.
        """
        query = select(meta.c.key, meta.c.value).where(meta.c.key.startswith(prefix, autoescape=True))

        async def read(connection: AsyncConnection) -> dict[str, str]:
            return {str(key): str(value) for key, value in await connection.execute(query)}

        return await self._database.read(read)

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
        written = [rows.document_row(kind, document) for kind, document in given]
        if events:
            return await self._save_all(written, [rows.event_row(event) for event in events], lease)
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
            if written:
                await connection.execute(self._statements.upsert_document, written)
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
            await connection.execute(self._statements.insert_event, new)
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

    async def unfinished(self, kind: str) -> list[dict[str, Any]]:
        return await self._bodies(
            select(documents.c.body)
            .where(documents.c.kind == rows.text(kind), documents.c.ended_at.is_(None))
            .order_by(documents.c.number)
        )

    async def find(self, kind: str, identifier: str) -> dict[str, Any] | None:
        found = await self._bodies(
            select(documents.c.body).where(
                documents.c.kind == rows.text(kind), documents.c.id == rows.text(identifier)
            )
        )
        return found[0] if found else None

    async def page(
        self, kind: str, *, limit: int, before: str | None = None, where: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """See :meth:`migrator.ports.Journal.page`; nothing comes before an id that is not there (any more).

        :raise ValueError: `where` asks for something else.
        """
        chosen = [documents.c.kind == rows.text(kind)]
        either: Sequence[Any] = ()
        asked = dict(where or {})
        for name, value in asked.items():
            if name not in _COLUMNS:
                raise ValueError(f"cannot ask for {name}; there are {', '.join(_COLUMNS)}")
            columns: Sequence[Any] = _COLUMNS[name]
            if name == "state" and len(asked) > 1:
                # Whatever else is asked for, fewer have it: not by the index of states.
                columns = [func.coalesce(column, "") for column in columns]
            equal = [column == (rows.text(value) or "") for column in columns]
            if len(equal) > 1:
                either = equal
            else:
                chosen += equal
        if before is not None:
            last = select(documents.c.number).where(
                documents.c.kind == rows.text(kind), documents.c.id == rows.text(before)
            )
            chosen.append(documents.c.number < last.scalar_subquery())
        newest = documents.c.number.desc()
        query = select(documents.c.body).where(*chosen).order_by(newest).limit(limit)
        if either:
            # Each by its own index: one condition with an "or" in it would read all that either has.
            parts = [
                select(
                    select(documents.c.number).where(*chosen, each).order_by(newest).limit(limit).subquery()
                )
                for each in either
            ]
            numbers = union(*parts).subquery()
            query = select(documents.c.body).where(documents.c.number.in_(select(numbers.c.number)))
            query = query.order_by(newest).limit(limit)
        return await self._bodies(query)

    async def _bodies(self, query: Select[Any]) -> list[dict[str, Any]]:
        async def read(connection: AsyncConnection) -> list[str]:
            return list((await connection.execute(query)).scalars())

        return [json.loads(mended(body)) for body in await self._database.read(read)]

    # --- events

    async def events(
        self, *, after: int = 0, limit: int = 1000, subject: str | None = None, subject_id: str | None = None
    ) -> list[dict[str, Any]]:
        query = select(events.c.body).where(*_chosen(after, subject, subject_id))
        return await self._bodies(query.order_by(events.c.event_id).limit(limit))

    async def latest_events(
        self, *, subject: str, subject_id: str, limit: int, before: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the last events of a subject, the newest first.

        :param before: only those with smaller numbers.
        :raise JournalError: they cannot be read.
        """
        query = select(events.c.body).where(*_chosen(0, subject, subject_id))
        if before is not None:
            query = query.where(events.c.event_id < before)
        return await self._bodies(query.order_by(events.c.event_id.desc()).limit(limit))

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        """See :meth:`migrator.ports.Journal.event_texts`."""
        chosen = _chosen(after, subject, subject_id)
        sizes = select(events.c.event_id, func.length(events.c.body)).where(*chosen)
        texts = select(events.c.event_id, events.c.body).where(*chosen)

        async def read(connection: AsyncConnection) -> EventTexts:
            # Before they are read it is known how many of them are not too much.
            last, count, size = after, 0, 0
            for number, length in await connection.execute(
                sizes.order_by(events.c.event_id).limit(limit + 1)
            ):
                size += length
                if count == limit or (count and size > most_bytes):
                    break
                last, count = number, count + 1
            else:
                size = -1
            found = await connection.execute(
                texts.where(events.c.event_id <= last).order_by(events.c.event_id)
            )
            items = [(number, mended(body)) for number, body in found]
            return EventTexts(items=items, more=size >= 0)

        return await self._database.read(read)

    async def positions(self) -> tuple[int, dict[tuple[str, str], int]]:
        """See :meth:`migrator.ports.Journal.positions`.

        A host never ends; a command does once nothing more will be said to it.
        """
        same = (events.c.subject == documents.c.kind, events.c.subject_id == documents.c.id)
        going_on = select(
            documents.c.kind,
            documents.c.id,
            select(func.max(events.c.sequence)).where(*same).correlate(documents).scalar_subquery(),
        ).where(documents.c.ended_at.is_(None), documents.c.kind.in_(("migration", "evacuation")))
        unsettled = (
            select(commands.c.key, func.max(events.c.sequence))
            .join(events, (events.c.subject == "command") & (events.c.subject_id == commands.c.key))
            .where(commands.c.settled == 0)
            .group_by(commands.c.key)
        )
        hosts = (
            select(events.c.subject_id, func.max(events.c.sequence))
            .where(events.c.subject == "host")
            .group_by(events.c.subject_id)
        )

        async def read(connection: AsyncConnection) -> tuple[int, dict[tuple[str, str], int]]:
            last = await rows.last_event_id(connection)
            sequences: dict[tuple[str, str], int] = {}
            for kind, identifier, sequence in await connection.execute(going_on):
                if sequence is not None:
                    sequences[kind, identifier] = sequence
            for identifier, sequence in await connection.execute(hosts):
                sequences["host", identifier] = sequence
            for key, sequence in await connection.execute(unsettled):
                sequences["command", key] = sequence
            return last, sequences

        return await self._database.read(read)

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

    async def command_behind(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """``key``, ``verb``, ``caller`` and ``settled`` of the command that began a document; ``None``: none did.

        :raise JournalError: it cannot be read.
        """
        document = await self.find(kind, identifier)
        key = (document or {}).get("_private", {}).get("command")
        if not key:
            return None

        async def read(connection: AsyncConnection) -> dict[str, Any] | None:
            row = (
                await connection.execute(
                    select(commands.c.verb, commands.c.caller, commands.c.settled).where(
                        commands.c.key == rows.text(key)
                    )
                )
            ).one_or_none()
            if row is None:
                return None
            return {
                "key": key,
                "verb": row.verb,
                "caller": json.loads(row.caller),
                "settled": bool(row.settled),
            }

        return await self._database.read(read)

    async def unsettled(self) -> list[tuple[str, str]]:
        """See :meth:`migrator.engine.commands.settlement.CommandJournal.unsettled`.

        :raise JournalError: it cannot be read.
        """
        query = (
            select(documents.c.kind, documents.c.id)
            .join(commands, commands.c.key == documents.c.command)
            .where(commands.c.settled == 0, documents.c.ended_at.is_not(None))
            .order_by(documents.c.number)
        )

        async def read(connection: AsyncConnection) -> list[tuple[str, str]]:
            return [(str(kind), str(identifier)) for kind, identifier in await connection.execute(query)]

        return await self._database.read(read)

    async def answer_command(self, *, key: str, reply: Mapping[str, Any], told: bool = True) -> None:
        """See :meth:`migrator.ports.CommandLog.answer_command`."""
        values = {
            "reply": json.dumps(dict(reply)),
            "answered_at": rows.microseconds(self._now()),
            "settled": int(told and _settled(reply)),
            "waiting": 0,
        }
        statement = update(commands).where(commands.c.key == rows.text(key)).values(values)

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(statement)
            if self.shared:  # another controller may have received it
                await self.signals.notify_with(connection, ANSWERS_CHANNEL, key)

        await self._database.write(write)

    async def prune(self, older_than: datetime) -> int:
        """Remove what ended before that: documents, their events and samples, and the commands that began them.

        Commands that began nothing, and events of hosts and commands, go by their age; the last event of each host
        stays. What has not ended stays whole. The room is used again, the file does not shrink.

        :return: how many documents were removed.
        :raise JournalError: it cannot be written; what was removed until then stays removed.
        """
        return await retention.prune(self._database, older_than)


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
    """Nothing more will be said to the command."""
    return reply.get("kind") != "accepted" or reply.get("subject") not in ("migration", "evacuation")


def _chosen(after: int, subject: str | None, subject_id: str | None) -> list[ColumnElement[bool]]:
    """Return the condition for the events that are asked for."""
    chosen = [events.c.event_id > after]
    if subject is not None:
        chosen.append(events.c.subject == rows.text(subject))
    if subject_id is not None:
        chosen.append(events.c.subject_id == rows.text(subject_id))
    return chosen
