"""Leases in the journal: who may plan the site, who drives a migration, one at a time, for as long as it is renewed.

Time is the database's. What a lease allows is checked where it matters: in the transaction of the write itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator import logs
from migrator.ports import LONGEST_LEASE_SECONDS, HeldLease, Lease, lease_margin
from migrator.store.rows import moment, statements
from migrator.store.schema import leases
from migrator.store.stuck_leases import StuckLeases

if TYPE_CHECKING:
    from migrator.store.database import Database

#: End of a lease that is not renewed: it holds until whoever gave it takes it back.
UNTIL_WITHDRAWN = 2**62


def monotonic() -> float:
    """Return the seconds of a clock that nobody sets, and that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SqlLeases:
    """See :class:`migrator.ports.Leases`.

    :ivar clock: the holder's own; only tests need another.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = monotonic) -> None:
        self._database = database
        self.clock = clock
        self._stuck = StuckLeases()

    async def acquire(
        self, name: str, *, owner: str, seconds: float, known: int | None = None
    ) -> Lease | None:
        """See :meth:`migrator.ports.Leases.acquire`."""
        asked_at = self.clock()
        length = round(seconds * 1e6)

        def is_anothers(there: Any, now: int) -> bool:
            others = there.owner != owner or known not in (None, there.token)
            return bool(there.owner) and others and there.ends_at > now

        async def write(connection: AsyncConnection) -> tuple[int, str] | None:
            # Without a lock: one whose holder is frozen in the middle of a write is waited for only once it has ended.
            seen = (await connection.execute(select(leases).where(leases.c.name == name))).one_or_none()
            if seen is not None and is_anothers(seen, await self._database.now(connection)):
                return None
            there = await _locked(connection, name)
            if there is None:
                nobody = {"name": name, "owner": "", "token": 0, "taken_at": 0, "ends_at": 0}
                await connection.execute(statements(connection.dialect).new_lease, nobody)
                there = await _locked(connection, name)
            # After the lock, which may have been waited for.
            now = await self._database.now(connection)
            if is_anothers(there, now):
                return None
            token = int(there.token) + 1
            changed = {"owner": owner, "token": token, "taken_at": now, "ends_at": now + length}
            await connection.execute(update(leases).where(leases.c.name == name).values(changed))
            return token, "" if there.owner == owner else str(there.owner)

        taken = await self._database.write_unleased(write, first=True)
        return (
            None
            if taken is None
            else replace(self._lease(name, owner, taken[0], asked_at, seconds), taken_from=taken[1])
        )

    async def renew(self, held: Sequence[Lease], *, seconds: float) -> list[Lease | None]:
        """See :meth:`migrator.ports.Leases.renew`."""
        if not held:
            return []
        asked_at = self.clock()
        length = round(seconds * 1e6)

        async def write(connection: AsyncConnection) -> set[tuple[str, str, int]]:
            locked = select(leases.c.name).where(_these(held)).order_by(leases.c.name)
            await connection.execute(locked.with_for_update(key_share=True))
            # After the lock, which may have been waited for: whoever had it may have found that it has ended.
            now = await self._database.now(connection)
            changed = update(leases).where(_these(held), leases.c.ends_at > now).values(ends_at=now + length)
            found = await connection.execute(changed.returning(leases.c.name, leases.c.owner, leases.c.token))
            return {(row.name, row.owner, row.token) for row in found}

        # However much there is to be written, and whatever that waits for: it would be refused if this came too late.
        renewed = await self._database.write_unleased(write, first=True)
        return [
            self._lease(each.name, each.owner, each.token, asked_at, seconds)
            if (each.name, each.owner, each.token) in renewed
            else None
            for each in held
        ]

    async def release(self, lease: Lease) -> None:
        """See :meth:`migrator.ports.Leases.release`."""
        statement = update(leases).where(_these([lease])).values(owner="", ends_at=0)

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(statement)

        await self._database.write_unleased(write)

    async def all(self) -> list[HeldLease]:
        """See :meth:`migrator.ports.Leases.all`."""

        query = (
            select(leases)
            .where(leases.c.owner != "", leases.c.ends_at < UNTIL_WITHDRAWN)
            .order_by(leases.c.name)
        )

        async def read(connection: AsyncConnection) -> list[HeldLease]:
            now = await self._database.now(connection)
            found = list(await connection.execute(query))
            latest = now + round(LONGEST_LEASE_SECONDS * 1e6)
            ends = {(row.name, row.token): row.ends_at for row in found if row.ends_at > latest}
            self._stuck.note(ends, self.clock())
            return [
                HeldLease(
                    name=row.name,
                    owner=row.owner,
                    token=row.token,
                    taken_at=moment(row.taken_at),
                    left_seconds=(row.ends_at - now) / 1e6,
                )
                for row in found
            ]

        return await self._database.read(read)

    async def end_stuck(self) -> None:
        """See :meth:`migrator.ports.Leases.end_stuck`."""
        stuck = self._stuck.due(self.clock())
        if not stuck:
            return

        async def write(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            for (name, token), ends_at in stuck.items():
                its = (leases.c.name == name, leases.c.token == token, leases.c.ends_at == ends_at)
                await connection.execute(update(leases).where(*its).values(ends_at=now))

        await self._database.write_unleased(write, first=True)
        for name, _ in stuck:
            logs.logger().warning(
                "a lease that nobody renewed is ended: the database's clock was set back", lease=name
            )

    def _lease(self, name: str, owner: str, token: int, asked_at: float, seconds: float) -> Lease:
        until = asked_at + seconds - lease_margin(seconds)
        return Lease(name=name, owner=owner, token=token, until=until, clock=self.clock)


async def _locked(connection: AsyncConnection, name: str) -> Any:
    found = await connection.execute(select(leases).where(leases.c.name == name).with_for_update())
    return found.one_or_none()


async def holding(connection: AsyncConnection, given: Iterable[Lease], now: int) -> set[tuple[str, str, int]]:
    """Return the given leases that hold, and will until the transaction on `connection` has ended.

    Whoever wants to take one of them over waits for that.
    """
    query = select(leases.c.name, leases.c.owner, leases.c.token)
    # In one order, so that two who check several never wait for each other.
    query = query.where(_these(given), leases.c.ends_at > now).order_by(leases.c.name)
    # Its holder renews it meanwhile, which leaves the key as it is.
    found = await connection.execute(query.with_for_update(read=True, key_share=True))
    return {(row.name, row.owner, row.token) for row in found}


def _these(given: Iterable[Lease]) -> ColumnElement[bool]:
    identity = tuple_(leases.c.name, leases.c.owner, leases.c.token)
    return identity.in_([(each.name, each.owner, each.token) for each in given])
