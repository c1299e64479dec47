"""Assignments in memory: the contract of :class:`migrator.ports.assignments.Assignments`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from migrator.errors import JournalError, LeaseLost
from migrator.ports import Lease
from migrator.ports.assignments import ASSIGNMENTS_CHANNEL, REPORTS_CHANNEL, Assignment
from migrator.ports.controllers import controller_lease

if TYPE_CHECKING:
    from migrator.testing.journal import MemoryJournal


class MemoryAssignments:
    """See :class:`migrator.ports.assignments.Assignments`."""

    def __init__(self, journal: MemoryJournal) -> None:
        self._journal = journal
        self._rows: dict[str, Assignment] = {}

    def holds(self, right: Lease) -> bool:
        """Tell whether the right of a driver has not been withdrawn."""
        row = self._rows.get(right.name.partition("/")[2])
        if row is None or row.fenced:
            return False
        return (row.driver, row.number) == (right.owner, right.token)

    async def give(self, assignment: Assignment) -> bool:
        """See :meth:`migrator.ports.assignments.Assignments.give`."""
        await self._journal.write("give")
        if not self._drives(assignment):
            return False
        if assignment.migration in self._rows:
            raise JournalError("the journal has another one there already")
        self._rows[assignment.migration] = _copied(assignment)
        await self._journal.signals.notify(ASSIGNMENTS_CHANNEL, assignment.driver)
        return True

    async def fence(self, migration: str, number: int) -> Assignment | None:
        """See :meth:`migrator.ports.assignments.Assignments.fence`."""
        await self._journal.write("fence")
        row = self._rows.get(migration)
        if row is None or row.number != number or (not row.over and self._drives(row)):
            return None
        if not row.over:
            row = self._rows[migration] = replace(row, fenced=True)
        return row

    async def remove(self, migration: str, number: int) -> None:
        """See :meth:`migrator.ports.assignments.Assignments.remove`."""
        await self._journal.write("remove")
        row = self._rows.get(migration)
        if row is not None and row.number == number and row.over:
            del self._rows[migration]

    async def request(self, migration: str, number: int, requests: Mapping[str, Any]) -> None:
        """See :meth:`migrator.ports.assignments.Assignments.request`."""
        await self._journal.write("request")
        row = self._rows.get(migration)
        if row is not None and row.number == number:
            self._rows[migration] = _copied(replace(row, requests=requests))
            await self._journal.signals.notify(ASSIGNMENTS_CHANNEL, row.driver)

    async def report(
        self, assignment: Assignment, report: Mapping[str, Any] | None, *, released: bool
    ) -> None:
        """See :meth:`migrator.ports.assignments.Assignments.report`."""
        await self._journal.write("report")
        if not self.holds(assignment.right(lambda: True)):
            raise LeaseLost(f"migration {assignment.migration} was given to another")
        await self.overwrite(assignment, report, released=released)

    async def overwrite(
        self, assignment: Assignment, report: Mapping[str, Any] | None, *, released: bool
    ) -> None:
        """Report without a look at whose it is; only a test of tests does."""
        if (row := self._rows.get(assignment.migration)) is not None:
            self._rows[assignment.migration] = _copied(replace(row, report=report, released=released))
            await self._journal.signals.notify(REPORTS_CHANNEL, assignment.migration)

    async def find(self, migrations: Collection[str] | None = None) -> Sequence[Assignment]:
        """See :meth:`migrator.ports.assignments.Assignments.find`."""
        await self._journal.read("assignments")
        return [row for row in self._rows.values() if migrations is None or row.migration in migrations]

    async def of(self, driver: str, numbers: Collection[int] | None = None) -> Sequence[Assignment]:
        """See :meth:`migrator.ports.assignments.Assignments.of`."""
        await self._journal.read("assignments")
        rows = [row for row in self._rows.values() if row.driver == driver and not row.over]
        return [replace(row, report=None) for row in rows if numbers is None or row.number in numbers]

    async def requests_of(self, driver: str) -> Mapping[int, Mapping[str, Any]]:
        """See :meth:`migrator.ports.assignments.Assignments.requests_of`."""
        await self._journal.read("assignments")
        rows = [row for row in self._rows.values() if row.driver == driver and not row.over]
        return {row.number: row.requests for row in rows}

    def _drives(self, assignment: Assignment) -> bool:
        lease = Lease(
            name=controller_lease(assignment.driver),
            owner=assignment.driver,
            token=assignment.driver_token,
            until=0.0,
            clock=lambda: 0.0,
        )
        return self._journal.leases.holds(lease)


def _copied(assignment: Assignment) -> Assignment:
    """Return what a database would give back."""
    return replace(
        assignment,
        session=_as_json(assignment.session),
        requests=_as_json(assignment.requests),
        report=_as_json(assignment.report),
    )


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
