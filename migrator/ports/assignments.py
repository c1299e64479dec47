"""The interface between the controller that plans and those that drive: which migration is whose, and what is said.

A migration that another controller drives has one assignment at a time. The planner gives it, under the lease ``site``;
its driver writes under the assignment itself (:meth:`Assignment.right`), which holds until the planner fences it or
removes it. What a driver said last is removed only when the journal has it: a planner may die between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from migrator.ports.store import Lease

#: Signals (:class:`~migrator.ports.Signals`) that a driver was given something or asked for something; the payload is
#: its name.
ASSIGNMENTS_CHANNEL = "assignments"
#: A driver has reported; the payload is the migration.
REPORTS_CHANNEL = "reports"
#: Bits of an assignment's number below those of the planner's token.
_COUNT_BITS = 32


def assignment_lease(migration: str) -> str:
    """Return the name of the lease that a migration's driver writes under."""
    return f"migration/{migration}"


def assignment_number(token: int, count: int = 0) -> int:
    """Return a number that is larger than all that planners gave before.

    Drivers mark QEMUs with it: of two marks that of the larger number was given later.

    :param token: of the planner's lease.
    :param count: of its assignments so far; what it drives itself without one has 0.
    """
    return (token << _COUNT_BITS) + count


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The right and the duty of one controller to drive a migration."""

    migration: str
    #: Name of the controller that drives it.
    driver: str
    #: Token of its lease ``controller/<name>`` when it was given: a driver that had to take that anew has lost it.
    driver_token: int
    #: See :func:`assignment_number`.
    number: int
    #: What QEMUs are marked with, the same for all who share the journal.
    controller: str = ""
    #: The migration as it was given, in the form in which the journal has it.
    session: Mapping[str, Any]
    #: Bytes per second that the links let its stream carry; ``None``: not known.
    stream_speed: float | None = None
    #: Who drove it before and may still hold its monitors, and that one's token; empty: nobody.
    former: str = ""
    former_token: int = 0
    #: What the planner wants of it; see :class:`migrator.engine.migration.requests.MigrationRequests`.
    requests: Mapping[str, Any] = field(default_factory=dict)
    #: What its driver said of it last; ``None``: nothing yet.
    report: Mapping[str, Any] | None = None
    #: Its driver has let go of it: nothing more is reported.
    released: bool = False
    #: It was taken from its driver, whose lease had ended: likewise.
    fenced: bool = False

    @property
    def over(self) -> bool:
        """Return whether nobody drives it under this assignment any more: its report is the last."""
        return self.released or self.fenced

    def right(self, holds: Callable[[], bool]) -> Lease:
        """Return what gives the driver the right to write.

        :param holds: whether the driver's own lease holds: without it nothing is done outside the journal.
        """
        return Lease(
            name=assignment_lease(self.migration),
            owner=self.driver,
            token=self.number,
            # It has no time of its own: it may be acted on for as long as the driver's lease holds.
            until=1.0,
            clock=lambda: 0.0 if holds() else 2.0,
        )


class Assignments(Protocol):
    """Every call raises :class:`~migrator.errors.JournalError` when it cannot be done."""

    async def give(self, assignment: Assignment) -> bool:
        """Give a migration to a driver, and tell it; ``False``: its lease does not hold, and nothing was written.

        One that another has must have been removed before. Belongs to the lease ``site``.
        """

    async def fence(self, migration: str, number: int) -> Assignment | None:
        """Take a migration from a driver whose lease has ended: from here on nothing is written under it.

        What its driver said last stays there until :meth:`remove`, for whoever plans by then. To do it again changes
        nothing. ``None``: its driver may still drive it, or it is not there any more.

        :return: the assignment as it was last.
        """

    async def remove(self, migration: str, number: int) -> None:
        """Forget an assignment that is over, once the journal has what its driver said last; no other."""

    async def request(self, migration: str, number: int, requests: Mapping[str, Any]) -> None:
        """Say what is wanted of a migration, in place of what was said before, and tell its driver."""

    async def report(
        self, assignment: Assignment, report: Mapping[str, Any] | None, *, released: bool
    ) -> None:
        """Say how a migration is, in place of what was said before, and tell the planner.

        :param report: ``None`` where it is released because it cannot be read: nothing was begun.
        :raise LeaseLost: the assignment was fenced or removed; nothing was written.
        """

    async def find(self, migrations: Collection[str] | None = None) -> Sequence[Assignment]:
        """Return the assignments of these migrations, or all."""

    async def of(self, driver: str, numbers: Collection[int] | None = None) -> Sequence[Assignment]:
        """Return the assignments of a driver that it has not released, without reports; or those of these numbers."""

    async def requests_of(self, driver: str) -> Mapping[int, Mapping[str, Any]]:
        """Return what is wanted now of each of these, by its number: no more than a driver has to know again."""


@dataclass(frozen=True, kw_only=True)
class AvailableDriver:
    """A controller that may be given migrations."""

    name: str
    instance: str
    #: Of its lease.
    token: int
    #: Names of the hosts that it is configured for.
    hosts: frozenset[str]


class DriverPool(Protocol):
    """The controllers that are there, as this one knows them."""

    @property
    def name(self) -> str:
        """Return the name of this controller."""

    def available(self) -> Sequence[AvailableDriver]:
        """Return those others that may be given migrations now."""

    def lives(self, name: str, token: int) -> bool:
        """Tell whether a controller, this one too, has the lease of that token as far as is known."""

    def instance(self, name: str) -> str:
        """Return what people call a controller."""

    def note_gone(self, name: str, token: int) -> None:
        """Note that a controller has lost what it had under its lease: its connections may be ended."""

    def subscribe(self, callback: Callable[[], None], /) -> None:
        """Call `callback` whenever others may have come or gone."""
