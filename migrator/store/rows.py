"""How documents, events and times stand in rows of the journal, and the statements that write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Dialect, Executable, Table, Text, bindparam, cast, func, null, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.store.schema import commands, documents, events, leases, meta, samples, step_records
from migrator.text import as_json, writable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def document_row(kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a document, with what it can be looked up by in columns of their own."""
    private = document.get("_private") or {}
    host = document.get("host") or (document["id"] if kind == "host" else None)
    return {
        "kind": text(kind),
        "id": text(document["id"]),
        "state": text(document.get("state")),
        "guest": text(document.get("guest")),
        "source": text(document.get("source") or host),
        "destination": text(document.get("destination")),
        "evacuation": text(document.get("evacuation")),
        "command": text(document.get("command") or private.get("command")),
        "created_at": _parsed(document.get("created_at")),
        "ended_at": _parsed(document.get("ended_at")),
        "body": as_json(document),
    }


def event_row(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an event, with what it is looked up by in columns; :func:`numbered` gives it its number."""
    return {
        "event_id": event["event_id"],
        "sequence": event["sequence"],
        "time": _parsed(event["time"]),
        "subject": text(event["subject"]),
        "subject_id": text(event["subject_id"]),
        # The number comes first: see below.
        "body": as_json({"event_id": event["event_id"], **event}),
    }


def numbered(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the row of an event that had no number with one, in its body too."""
    body = row["body"]
    return {**row, "event_id": number, "body": f'{{"event_id":{number}{body[body.index(",") :]}'}


def text(value: Any) -> str | None:
    """Return a text as it stands in a column: no database takes lone surrogates, which names of guests may hold."""
    if value is None or value == "":
        return None
    return writable(str(value))


def microseconds(time: datetime) -> int:
    """Return a time as it stands in a column: microseconds since the epoch."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def moment(count: int) -> datetime:
    """Return the time that :func:`microseconds` counted."""
    return _EPOCH + timedelta(microseconds=count)


def _parsed(time: str | None) -> int | None:
    return microseconds(datetime.fromisoformat(time)) if time else None


class Statements:
    """Statements that write rows that may be there already; each dialect of SQL has its own words for that.

    The same objects every time: :meth:`migrator.store.database.Database.write_rows` tells them by that.
    """

    def __init__(self, insert: Callable[[Table], Any]) -> None:
        document = insert(documents)
        self.upsert_document: Executable = document.on_conflict_do_update(
            index_elements=["kind", "id"],
            set_={
                column.name: document.excluded[column.name]
                for column in documents.c
                if column.name not in ("number", "kind", "id")
            },
        )
        event = insert(events)
        #: The same event again is let pass: whoever was not told that it is on disk writes it once more. Another one
        #: of its number breaks the rule that a sequence is never empty, and with it the whole transaction.
        self.insert_event: Executable = event.on_conflict_do_update(
            index_elements=["event_id"], set_={"sequence": null()}, where=events.c.body != event.excluded.body
        )
        self.claim_command: Executable = insert(commands).on_conflict_do_nothing()
        value = insert(meta)
        self.upsert_meta: Executable = value.on_conflict_do_update(
            index_elements=["key"], set_={"value": value.excluded.value}
        )
        #: Takes ``count`` numbers for events, and returns the last of them. Others wait for the end of the transaction:
        #: in the order of the numbers events come to be seen, and whoever has seen one has seen all before it.
        there = func.coalesce(select(func.max(events.c.event_id)).scalar_subquery(), 0)
        count = bindparam("count", type_=BigInteger)
        larger = func.greatest if insert is postgresql.insert else func.max
        self.take_event_ids: Executable = (
            value.values(key="last_event_id", value=cast(there + count, Text))
            .on_conflict_do_update(
                index_elements=["key"],
                set_={"value": cast(larger(cast(meta.c.value, BigInteger), there) + count, Text)},
            )
            .returning(meta.c.value)
        )
        record = insert(step_records)
        self.begin_record: Executable = record.on_conflict_do_update(
            index_elements=["migration"],
            set_={
                column.name: record.excluded[column.name]
                for column in step_records.c
                if column.name != "migration"
            },
            where=step_records.c.ended_at.is_not(None),
        )
        self.new_lease: Executable = insert(leases).on_conflict_do_nothing()
        self.insert_sample: Executable = insert(samples).on_conflict_do_nothing()


_STATEMENTS = {"sqlite": Statements(sqlite.insert), "postgresql": Statements(postgresql.insert)}


def statements(dialect: Dialect) -> Statements:
    """Return the statements of a database's dialect."""
    return _STATEMENTS[dialect.name]


async def last_event_id(connection: AsyncConnection) -> int:
    """Return the largest number that was ever given or reserved, also when its event has been removed."""
    there = (await connection.execute(select(func.max(events.c.event_id)))).scalar()
    kept = (await connection.execute(select(meta.c.value).where(meta.c.key == "last_event_id"))).scalar()
    return max(there or 0, int(kept or 0))


async def take_event_ids(connection: AsyncConnection, count: int = 0) -> int:
    """Take so many numbers for events, and return the last that was ever given.

    It stays known when the event itself is gone. Whoever else takes some waits for the end of the transaction.
    """
    statement = statements(connection.dialect).take_event_ids
    return int((await connection.execute(statement, {"count": count})).scalar_one())


async def reserve_event_ids(connection: AsyncConnection, up_to: int) -> None:
    """Have no number up to and with this given by :func:`take_event_ids`."""
    value = str(max(up_to, await take_event_ids(connection)))
    await connection.execute(
        statements(connection.dialect).upsert_meta, {"key": "last_event_id", "value": value}
    )
