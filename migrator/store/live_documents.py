"""Live documents in the database: what is not journalled at every change, written in batches and read by all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import BigInteger, Text, bindparam, cast, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.ports import Lease
from migrator.ports.controllers import LIVE_CHANNEL, LiveDocument
from migrator.store.database import Database
from migrator.store.rows import text as column_text
from migrator.store.schema import LIVE_VERSION, live_documents, meta
from migrator.store.signals import LocalSignals

#: All of a batch in one statement: a thousand migrations write one a second.
_WRITE_ALL = text(
    "INSERT INTO live_documents (kind, id, writer, version, sequence, body) "
    "SELECT kind, id, :writer, :version, sequence, body "
    "FROM unnest(:kinds, :ids, :sequences, :bodies) AS given (kind, id, sequence, body) "
    "ON CONFLICT (kind, id) DO UPDATE SET writer = excluded.writer, version = excluded.version, "
    "sequence = excluded.sequence, body = excluded.body"
).bindparams(
    bindparam("writer", type_=Text),
    bindparam("version", type_=BigInteger),
    bindparam("kinds", type_=postgresql.ARRAY(Text)),
    bindparam("ids", type_=postgresql.ARRAY(Text)),
    bindparam("sequences", type_=postgresql.ARRAY(BigInteger)),
    bindparam("bodies", type_=postgresql.ARRAY(Text)),
)
_one = sqlite.insert(live_documents)
_WRITE_ONE = _one.on_conflict_do_update(
    index_elements=["kind", "id"],
    set_={name: _one.excluded[name] for name in ("writer", "version", "sequence", "body")},
)


class SqlLiveDocuments:
    """See :class:`migrator.ports.controllers.LiveDocuments`."""

    def __init__(self, database: Database, signals: LocalSignals) -> None:
        self._database, self._signals = database, signals

    async def write(
        self, documents: Sequence[LiveDocument], *, writer: str, lease: Lease | None = None
    ) -> int:
        """See :meth:`migrator.ports.controllers.LiveDocuments.write`."""
        rows = [
            {
                "kind": each.kind,
                "id": column_text(each.id),
                "writer": writer,
                "sequence": each.sequence,
                "body": each.text,
            }
            for each in documents
        ]

        async def write(connection: AsyncConnection) -> tuple[int, bool]:
            version = await _next_version(connection)
            if connection.dialect.name == "postgresql":
                columns = {f"{name}s": [row[name] for row in rows] for name in ("kind", "id", "sequence")}
                bodies = [row["body"] for row in rows]
                given = {**columns, "bodies": bodies, "writer": writer, "version": version}
                await connection.execute(_WRITE_ALL, given)
            else:
                await connection.execute(_WRITE_ONE, [{**row, "version": version} for row in rows])
            return version, await self._signals.notify_with(connection, LIVE_CHANNEL)

        version, told = await self._database.write(write, lease=lease)
        if not told:
            await self._signals.notify(LIVE_CHANNEL)
        return version

    async def since(self, version: int, kinds: Collection[str] = ()) -> list[LiveDocument]:
        """See :meth:`migrator.ports.controllers.LiveDocuments.since`."""
        query = select(live_documents).where(live_documents.c.version > version)
        if kinds:
            query = query.where(live_documents.c.kind.in_(kinds))
        query = query.order_by(live_documents.c.version)

        async def read(connection: AsyncConnection) -> list[LiveDocument]:
            return [
                LiveDocument(
                    kind=row.kind,
                    id=row.id,
                    text=row.body,
                    sequence=row.sequence,
                    writer=row.writer,
                    version=row.version,
                )
                for row in await connection.execute(query)
            ]

        return await self._database.read(read)

    async def version(self) -> int:
        """See :meth:`migrator.ports.controllers.LiveDocuments.version`."""

        async def read(connection: AsyncConnection) -> int:
            query = select(meta.c.value).where(meta.c.key == LIVE_VERSION)
            return int((await connection.execute(query)).scalar() or 0)

        return await self._database.read(read)


async def _next_version(connection: AsyncConnection) -> int:
    """Take the next version; whoever else writes waits for the end of the transaction."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = (
        insert(meta)
        .values(key=LIVE_VERSION, value="1")
        .on_conflict_do_update(
            index_elements=["key"], set_={"value": cast(cast(meta.c.value, BigInteger) + 1, Text)}
        )
        .returning(meta.c.value)
    )
    return int((await connection.execute(statement)).scalar_one())
