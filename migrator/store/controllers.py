"""The controllers that share a journal, each with a lease of its own and a row that describes it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import delete, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.errors import JournalError
from migrator.ports import Lease
from migrator.ports.controllers import ControllerInfo, PresentController, controller_lease
from migrator.store import schema
from migrator.store.database import Database
from migrator.store.leases import SqlLeases
from migrator.store.rows import moment
from migrator.store.schema import controllers, leases

#: One that went without a word is shown for so long.
_SHOWN_MICROSECONDS = 24 * 3600 * 1_000_000
_DESCRIBED = ("instance", "version", "schema", "url", "role", "detail", "lease_length", "hosts", "migrations")
#: Older versions leave the last two as they were.
_FIRST_OF_THEM = "0009"


class SqlControllers:
    """See :class:`migrator.ports.controllers.Controllers`."""

    def __init__(self, database: Database, held: SqlLeases) -> None:
        self.complaint = ""
        self._database, self._leases = database, held

    async def join(self, info: ControllerInfo, *, seconds: float, known: int | None = None) -> Lease | None:
        """See :meth:`migrator.ports.controllers.Controllers.join`."""
        name = controller_lease(info.name)
        lease = await self._leases.acquire(name, owner=info.name, seconds=seconds, known=known)
        if lease is not None:
            await self._describe(info, seconds, began=True)
        return lease

    async def beat(self, info: ControllerInfo, lease: Lease, *, seconds: float) -> Lease | None:
        """See :meth:`migrator.ports.controllers.Controllers.beat`."""
        [renewed] = await self._leases.renew([lease], seconds=seconds)
        if renewed is not None:
            await self._describe(info, seconds, began=False)
        return renewed

    async def leave(self, lease: Lease) -> None:
        """See :meth:`migrator.ports.controllers.Controllers.leave`."""
        statement = delete(controllers).where(controllers.c.name == lease.owner)

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(statement)

        await self._database.write_unleased(write)
        await self._leases.release(lease)

    async def _describe(self, info: ControllerInfo, seconds: float, *, began: bool) -> None:
        row = {
            "name": info.name,
            "instance": info.instance,
            "version": info.version,
            "schema": schema.HEAD,
            "url": info.url,
            "role": info.role,
            "detail": info.detail,
            "lease_length": round(seconds * 1e6),
            "migrations": info.migrations,
            "hosts": None if info.hosts is None else json.dumps(info.hosts),
        }

        async def write(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            given = insert(controllers).values({**row, "started_at": now, "seen_at": now})
            changed = {name: given.excluded[name] for name in (*_DESCRIBED, "seen_at")}
            if began:
                changed["started_at"] = given.excluded.started_at
            await connection.execute(given.on_conflict_do_update(index_elements=["name"], set_=changed))
            if began:
                old = controllers.c.seen_at < now - _SHOWN_MICROSECONDS
                await connection.execute(delete(controllers).where(old))

        self.complaint = ""
        try:
            await self._database.write_unleased(write, first=True)
        except JournalError as error:  # the lease is had all the same
            self.complaint = str(error)

    async def all(self) -> list[PresentController]:
        """See :meth:`migrator.ports.controllers.Controllers.all`."""
        its = leases.c.name == literal(controller_lease("")) + controllers.c.name
        query = (
            select(controllers, leases.c.owner, leases.c.token, leases.c.ends_at)
            .join(leases, its, isouter=True)
            .order_by(controllers.c.instance, controllers.c.name)
        )

        async def read(connection: AsyncConnection) -> list[PresentController]:
            now = await self._database.now(connection)
            return [
                _present(row, now)
                for row in await connection.execute(query)
                if now - row.seen_at < _SHOWN_MICROSECONDS
            ]

        return await self._database.read(read)


def _present(row: Any, now: int) -> PresentController:
    says = str(row.schema) >= _FIRST_OF_THEM
    return PresentController(
        info=ControllerInfo(
            name=row.name,
            instance=row.instance,
            version=row.version,
            url=row.url,
            role=row.role,
            detail=row.detail,
            hosts=tuple(json.loads(row.hosts)) if says and row.hosts else None,
            migrations=row.migrations or 0,
        ),
        schema=row.schema,
        token=row.token if row.owner else 0,
        started_at=moment(row.started_at),
        seen_at=moment(row.seen_at),
        age_seconds=max(0.0, (now - row.seen_at) / 1e6),
        present=bool(row.owner) and row.ends_at > now,
        lease_seconds=row.lease_length / 1e6 if says and row.lease_length is not None else None,
    )
