"""Commands that another controller has received, and that wait for the one that acts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.ports import Claim
from migrator.ports.controllers import COMMANDS_CHANNEL, WaitingCommand
from migrator.store import rows
from migrator.store.database import Database
from migrator.store.schema import commands
from migrator.store.signals import LocalSignals

#: Read at a time; the others wait for the next look.
_AT_ONCE = 200


class SqlWaitingCommands:
    """See :class:`migrator.ports.controllers.WaitingCommands`."""

    def __init__(self, database: Database, signals: LocalSignals) -> None:
        self._database, self._signals = database, signals
        self._claim = rows.statements(database.dialect).claim_command

    async def leave(
        self,
        *,
        key: str,
        verb: str,
        body_hash: str,
        body: Mapping[str, Any],
        caller: Mapping[str, str],
        envelope: str,
    ) -> Claim:
        """See :meth:`migrator.ports.controllers.WaitingCommands.leave`."""
        name = rows.text(key)

        async def write(connection: AsyncConnection) -> tuple[Claim, bool]:
            row = {
                "key": name,
                "verb": verb,
                "body_hash": body_hash,
                "body": json.dumps(dict(body)),
                "caller": json.dumps(dict(caller)),
                "claimed_at": await self._database.now(connection),
                "settled": 0,
                "waiting": 1,
                "envelope": envelope,
            }
            if (await connection.execute(self._claim, row)).rowcount == 1:
                told = await self._signals.notify_with(connection, COMMANDS_CHANNEL, key)
                return Claim(new=True), told
            query = select(commands.c.body_hash, commands.c.reply).where(commands.c.key == name)
            there = (await connection.execute(query)).one()
            reply = None if there.reply is None else json.loads(there.reply)
            return Claim(new=False, other_body=there.body_hash != body_hash, reply=reply), True

        claim, told = await self._database.write(write)
        if not told:
            await self._signals.notify(COMMANDS_CHANNEL, key)
        return claim

    async def waiting(self) -> list[WaitingCommand]:
        """See :meth:`migrator.ports.controllers.WaitingCommands.waiting`."""
        query = (
            select(commands.c.key, commands.c.envelope, commands.c.taken_by)
            .where(commands.c.waiting == 1)
            .order_by(commands.c.claimed_at)
            .limit(_AT_ONCE)
        )

        async def read(connection: AsyncConnection) -> list[WaitingCommand]:
            return [
                WaitingCommand(key=row.key, envelope=row.envelope, taken=row.taken_by is not None)
                for row in await connection.execute(query)
            ]

        return await self._database.read(read)

    async def take(self, key: str, *, by: str) -> WaitingCommand | None:
        """See :meth:`migrator.ports.controllers.WaitingCommands.take`."""
        its = (commands.c.key == rows.text(key), commands.c.waiting == 1)
        there = select(commands.c.envelope, commands.c.taken_by, commands.c.claimed_at).where(*its)
        there = there.with_for_update()
        statement = update(commands).where(*its).values(taken_by=by)

        async def write(connection: AsyncConnection) -> WaitingCommand | None:
            row = (await connection.execute(there)).one_or_none()
            if row is None:
                return None
            await connection.execute(statement)
            age = (await self._database.now(connection) - row.claimed_at) / 1e6
            return WaitingCommand(
                key=key, envelope=row.envelope, taken=row.taken_by is not None, age_seconds=age
            )

        return await self._database.write(write)

    async def take_back(self, key: str) -> bool:
        """See :meth:`migrator.ports.controllers.WaitingCommands.take_back`."""
        its = (commands.c.key == rows.text(key), commands.c.waiting == 1, commands.c.taken_by.is_(None))

        async def write(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(delete(commands).where(*its))).rowcount)

        return await self._database.write(write)

    async def replies(self, keys: Collection[str]) -> dict[str, Mapping[str, Any]]:
        """See :meth:`migrator.ports.controllers.WaitingCommands.replies`."""
        names = {rows.text(key): key for key in keys}
        query = select(commands.c.key, commands.c.reply).where(
            commands.c.key.in_(list(names)), commands.c.reply.is_not(None)
        )

        async def read(connection: AsyncConnection) -> dict[str, Mapping[str, Any]]:
            return {names[row.key]: json.loads(row.reply) for row in await connection.execute(query)}

        return await self._database.read(read)

    async def forget(self, key: str) -> None:
        """See :meth:`migrator.ports.controllers.WaitingCommands.forget`."""
        statement = delete(commands).where(commands.c.key == rows.text(key), commands.c.waiting == 0)

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(statement)

        await self._database.write(write)
