"""Assignments in the database: which migrations other controllers than the planner drive, and what is said of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.ports import Lease
from migrator.ports.assignments import ASSIGNMENTS_CHANNEL, REPORTS_CHANNEL, Assignment, assignment_lease
from migrator.ports.controllers import controller_lease
from migrator.store.database import Database
from migrator.store.leases import UNTIL_WITHDRAWN
from migrator.store.schema import assignments, leases
from migrator.store.signals import LocalSignals

#: Of what is given, written once.
_GIVEN = ("controller", "session", "stream_speed", "former", "former_token")
#: So many are read before others on the event loop have their turn: each has all that is known of a migration.
_AT_ONCE = 20
#: Of ``released``: its driver has let go of it; it was taken from its driver.
_RELEASED, _FENCED = 1, 2
#: Writes that lock a driver's right come before those that only change a row, which a driver does under its right.
_RIGHTS, _ROWS = "1", "2"


class SqlAssignments:
    """See :class:`migrator.ports.assignments.Assignments`."""

    def __init__(self, database: Database, signals: LocalSignals) -> None:
        self._database, self._signals = database, signals

    async def give(self, assignment: Assignment) -> bool:
        """See :meth:`migrator.ports.assignments.Assignments.give`."""
        row = {
            "migration": assignment.migration,
            "driver": assignment.driver,
            "driver_token": assignment.driver_token,
            "number": assignment.number,
            "given": json.dumps({name: getattr(assignment, name) for name in _GIVEN}),
            "requests": json.dumps(dict(assignment.requests)),
            "report": None,
            "released": 0,
        }

        async def write(connection: AsyncConnection) -> tuple[bool, bool]:
            now = await self._database.now(connection)
            its = _driver_lease(assignment.driver, assignment.driver_token)
            # Not locked: of one that ends a moment later it is taken back like any other.
            there = select(leases.c.name).where(
                leases.c.name == its.name,
                leases.c.owner == its.owner,
                leases.c.token == its.token,
                leases.c.ends_at > now,
            )
            if (await connection.execute(there)).first() is None:
                return False, True
            right = {
                "name": assignment_lease(assignment.migration),
                "owner": assignment.driver,
                "token": assignment.number,
                "taken_at": now,
                "ends_at": UNTIL_WITHDRAWN,
            }
            await connection.execute(insert(leases).values(right))
            await connection.execute(insert(assignments).values(row))
            return True, await self._signals.notify_with(connection, ASSIGNMENTS_CHANNEL, assignment.driver)

        given, told = await self._database.write(write, order=_order(_RIGHTS, assignment.migration))
        if not told:
            await self._signals.notify(ASSIGNMENTS_CHANNEL, assignment.driver)
        return given

    async def fence(self, migration: str, number: int) -> Assignment | None:
        """See :meth:`migrator.ports.assignments.Assignments.fence`."""
        its = assignments.c.migration == migration, assignments.c.number == number
        right = leases.c.name == assignment_lease(migration)

        async def write(connection: AsyncConnection) -> Assignment | None:
            row = (await connection.execute(select(assignments).where(*its))).one_or_none()
            if row is None:
                return None
            if row.released:
                return _assignment(row)
            if await _holds_on(connection, _driver_lease(row.driver, row.driver_token), self._database.now):
                return None
            # What its driver writes at this moment comes before, or is refused.
            await connection.execute(select(leases.c.token).where(right).with_for_update())
            await connection.execute(delete(leases).where(right))
            fence = update(assignments).where(*its, assignments.c.released == 0).values(released=_FENCED)
            await connection.execute(fence)
            return _assignment((await connection.execute(select(assignments).where(*its))).one())

        return await self._database.write(write, order=_order(_RIGHTS, migration))

    async def remove(self, migration: str, number: int) -> None:
        """See :meth:`migrator.ports.assignments.Assignments.remove`."""
        its = assignments.c.migration == migration, assignments.c.number == number
        right = leases.c.name == assignment_lease(migration), leases.c.token == number
        over = delete(assignments).where(*its, assignments.c.released != 0).returning(assignments.c.number)

        async def write(connection: AsyncConnection) -> None:
            # In the order in which a driver takes them that still writes.
            await connection.execute(select(leases.c.token).where(*right).with_for_update())
            if (await connection.execute(over)).first() is not None:
                await connection.execute(delete(leases).where(*right))

        await self._database.write(write, order=_order(_RIGHTS, migration))

    async def request(self, migration: str, number: int, requests: Mapping[str, Any]) -> None:
        """See :meth:`migrator.ports.assignments.Assignments.request`."""
        statement = (
            update(assignments)
            .where(assignments.c.migration == migration, assignments.c.number == number)
            .values(requests=json.dumps(dict(requests)))
            .returning(assignments.c.driver)
        )

        async def write(connection: AsyncConnection) -> str:
            driver = (await connection.execute(statement)).scalar()
            if driver is None or await self._signals.notify_with(connection, ASSIGNMENTS_CHANNEL, driver):
                return ""
            return str(driver)

        if driver := await self._database.write(write, order=_order(_ROWS, migration)):
            await self._signals.notify(ASSIGNMENTS_CHANNEL, driver)

    async def report(
        self, assignment: Assignment, report: Mapping[str, Any] | None, *, released: bool
    ) -> None:
        """See :meth:`migrator.ports.assignments.Assignments.report`."""
        statement = (
            update(assignments)
            .where(assignments.c.migration == assignment.migration, assignments.c.number == assignment.number)
            .values(
                report=None if report is None else json.dumps(dict(report)),
                released=_RELEASED if released else 0,
            )
        )

        async def write(connection: AsyncConnection) -> bool:
            await connection.execute(statement)
            return await self._signals.notify_with(connection, REPORTS_CHANNEL, assignment.migration)

        right, order = assignment.right(lambda: True), _order(_ROWS, assignment.migration)
        if not await self._database.write(write, lease=right, order=order):
            await self._signals.notify(REPORTS_CHANNEL, assignment.migration)

    async def find(self, migrations: Collection[str] | None = None) -> Sequence[Assignment]:
        """See :meth:`migrator.ports.assignments.Assignments.find`."""
        query = select(assignments).order_by(assignments.c.number)
        if migrations is not None:
            query = query.where(assignments.c.migration.in_(migrations))

        async def read(connection: AsyncConnection) -> list[Assignment]:
            found = []
            for row in await connection.execute(query):
                found.append(_assignment(row))
                if len(found) % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            return found

        return await self._database.read(read)

    async def of(self, driver: str, numbers: Collection[int] | None = None) -> Sequence[Assignment]:
        """See :meth:`migrator.ports.assignments.Assignments.of`."""
        columns = [each for each in assignments.c if each.name != "report"]
        query = select(*columns).where(assignments.c.driver == driver, assignments.c.released == 0)
        if numbers is not None:
            query = query.where(assignments.c.number.in_(numbers))

        async def read(connection: AsyncConnection) -> list[Assignment]:
            return [
                _assignment(row) for row in await connection.execute(query.order_by(assignments.c.number))
            ]

        return await self._database.read(read)

    async def requests_of(self, driver: str) -> Mapping[int, Mapping[str, Any]]:
        """See :meth:`migrator.ports.assignments.Assignments.requests_of`."""
        query = select(assignments.c.number, assignments.c.requests).where(
            assignments.c.driver == driver, assignments.c.released == 0
        )

        async def read(connection: AsyncConnection) -> dict[int, Mapping[str, Any]]:
            rows = await connection.execute(query.order_by(assignments.c.number))
            return {number: json.loads(requests) for number, requests in rows}

        return await self._database.read(read)


async def _holds_on(
    connection: AsyncConnection, lease: Lease, now: Callable[[AsyncConnection], Awaitable[int]]
) -> bool:
    """Tell whether a lease holds: a renewal that is under way is waited for, and one that begins now comes too late."""
    its = leases.c.name == lease.name, leases.c.owner == lease.owner, leases.c.token == lease.token
    found = await connection.execute(select(leases.c.ends_at).where(*its).with_for_update(key_share=True))
    ends_at = found.scalar()
    return ends_at is not None and bool(ends_at > await now(connection))


def _order(kind: str, migration: str) -> str:
    """Return the place of a write among those of one transaction."""
    return f"assignments {kind} {migration}"


def _driver_lease(driver: str, token: int) -> Lease:
    return Lease(
        name=controller_lease(driver), owner=driver, token=token, until=float("inf"), clock=lambda: 0.0
    )


def _assignment(row: Any) -> Assignment:
    report = getattr(row, "report", None)
    return Assignment(
        migration=row.migration,
        driver=row.driver,
        driver_token=row.driver_token,
        number=row.number,
        requests=json.loads(row.requests),
        report=None if report is None else json.loads(report),
        released=row.released == _RELEASED,
        fenced=row.released == _FENCED,
        **json.loads(row.given),
    )
