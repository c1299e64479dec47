"""Retention: the journal forgets what ended long ago, with all that belongs to it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.store.database import Database
from migrator.store.rows import microseconds, take_event_ids
from migrator.store.schema import (
    LIVE_VERSION,
    commands,
    documents,
    events,
    live_documents,
    meta,
    samples,
    step_records,
)

#: What is removed in one go, so that nobody waits long for it.
_AT_ONCE = 200
#: That a live document has gone is kept for so many batches of them, one a second at most: whoever has not looked for
#: half as long reads all of them anew.
_GONE_VERSIONS = 86_400


async def prune(database: Database, older_than: datetime) -> int:
    """See :meth:`migrator.store.journal.SqlJournal.prune`."""
    limit = microseconds(older_than)
    removed = 0
    while True:
        batch = await database.write(lambda connection: _prune_documents(connection, limit))
        removed += batch
        if batch < _AT_ONCE:
            break
    await database.write(lambda connection: _prune_rest(connection, limit))
    return removed


async def _prune_documents(connection: AsyncConnection, limit: int) -> int:
    await take_event_ids(connection)
    old = (
        await connection.execute(
            select(documents.c.number, documents.c.kind, documents.c.id)
            .where(documents.c.ended_at < limit)
            .order_by(documents.c.number)
            .limit(_AT_ONCE)
        )
    ).all()
    for each in old:
        await connection.execute(
            delete(events).where(events.c.subject == each.kind, events.c.subject_id == each.id)
        )
    gone = [each.id for each in old if each.kind == "migration"]
    await connection.execute(delete(samples).where(samples.c.migration.in_(gone)))
    await connection.execute(
        delete(step_records).where(step_records.c.migration.in_(gone), step_records.c.ended_at.is_not(None))
    )
    await connection.execute(delete(documents).where(documents.c.number.in_([each.number for each in old])))
    return len(old)


async def _prune_rest(connection: AsyncConnection, limit: int) -> None:
    await take_event_ids(connection)
    version = (await connection.execute(select(meta.c.value).where(meta.c.key == LIVE_VERSION))).scalar()
    old = live_documents.c.version < int(version or 0) - _GONE_VERSIONS
    await connection.execute(delete(live_documents).where(live_documents.c.body.is_(None), old))
    # Asked row by row, by an index: a list of all that is kept would be long.
    needed = select(documents.c.number).where(documents.c.command == commands.c.key)
    await connection.execute(delete(commands).where(commands.c.claimed_at < limit, ~needed.exists()))
    claimed = select(commands.c.key).where(commands.c.key == events.c.subject_id)
    await connection.execute(
        delete(events).where(events.c.subject == "command", events.c.time < limit, ~claimed.exists())
    )
    last = select(func.max(events.c.event_id)).where(events.c.subject == "host").group_by(events.c.subject_id)
    await connection.execute(
        delete(events).where(
            events.c.subject == "host", events.c.time < limit, events.c.event_id.not_in(last)
        )
    )
