"""Reads the service's journal: documents, events and commands, a page or one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.api.queries import EventTexts
from migrator.store import rows
from migrator.store.database import Database
from migrator.store.schema import commands, documents, events, meta
from migrator.text import mended

#: What `where` may ask for, and the columns it is looked up in.
_COLUMNS = {
    "state": (documents.c.state,),
    "guest": (documents.c.guest,),
    "host": (documents.c.source, documents.c.destination),
    "evacuation": (documents.c.evacuation,),
    "command": (documents.c.command,),
}


class SqlJournalReader:
    """The part of :class:`migrator.store.journal.SqlJournal` that changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def now(self) -> datetime:
        """Return the time by the database's clock, which all who use it share.

        :raise JournalError: it cannot be read.
        """
        return rows.moment(await self._database.read(self._database.now))

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

    # --- documents

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
        self,
        kind: str,
        *,
        limit: int,
        before: str | None = None,
        where: Mapping[str, str | Sequence[str]] | None = None,
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
            values = [value] if isinstance(value, str) else value
            equal = [column == (rows.text(each) or "") for column in columns for each in values]
            if not equal:
                return []
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
            return EventTexts(items=items, last=last, more=size >= 0)

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

    async def command_behind(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """Return ``key``, ``verb``, ``caller`` and ``settled`` of the command that began a document, or ``None``.

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


def _chosen(after: int, subject: str | None, subject_id: str | None) -> list[ColumnElement[bool]]:
    """Return the condition for the events that are asked for."""
    chosen = [events.c.event_id > after]
    if subject is not None:
        chosen.append(events.c.subject == rows.text(subject))
    if subject_id is not None:
        chosen.append(events.c.subject_id == rows.text(subject_id))
    return chosen
