"""Gives a migration to the controller that is to drive it: by exactly one row of the journal."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from migrator import logs
from migrator.core.drain.assignments import choose_driver
from migrator.core.model import State
from migrator.core.policy import Start
from migrator.engine import clock
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.registry import Registry
from migrator.engine.remote_sessions import RemoteSession, wanted_of
from migrator.errors import JournalError
from migrator.ports.assignments import Assignment, Assignments, AvailableDriver, DriverPool

_RETRY_SECONDS = 0.5
#: A driver that could not ask a guest, or its target's host, gets none of those two hosts for so long.
_UNABLE_SECONDS = 60.0
#: Drivers of groups that are remembered at least.
_GROUPS = 32


class SpreadingSite(Protocol):
    """The part of the site that this needs."""

    def mark_with(self, number: int) -> None:
        """Mark what is changed from now on with a number that is larger than all that were given."""

    def note_driven_elsewhere(
        self, migration: str, *, source: tuple[str, str], target: str, destination: str = ""
    ) -> None:
        """Leave the monitors of a migration to another controller."""

    def forget_driven_elsewhere(self, migration: str) -> None:
        """Treat the monitors of a migration like all others again."""


class HandingOver:
    """Chooses drivers, and gives them migrations.

    :param controller: what QEMUs are marked with, the same for all who share the journal.
    :param number: gives numbers, each larger than all that planners gave before.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        services: SessionServices,
        assignments: Assignments,
        site: SpreadingSite,
        pool: DriverPool,
        controller: str,
        number: Callable[[], int],
    ) -> None:
        self._registry, self._services, self._assignments = registry, services, assignments
        self._site, self._pool, self._controller, self._number = site, pool, controller, number
        #: Drivers of migrations that are being given to them.
        self._coming: Counter[str] = Counter()
        #: Until when a driver of that name and token is given nothing of that host; on the engine's clock.
        self._unable: dict[tuple[str, int, str], float] = {}
        #: Who drives the guests of a group, by their evacuation and its name.
        self._groups: dict[tuple[str, str], str] = {}
        #: Those of groups that have gone are forgotten when there are so many.
        self._tidy_at = _GROUPS
        self._log = logs.logger()

    def choose(self, session: JournalledSession) -> AvailableDriver | None:
        """Return the controller that shall drive a migration; ``None``: this one.

        One whose guest may have to wait until it writes little stays here: only the planner knows when it usually does,
        and the deadline of its evacuation.
        """
        if session.state is State.QUEUED and session.policy.start is Start.QUIET:
            return None
        able = {each.name: each for each in self._pool.available()}
        if not able:
            return None
        needs = frozenset({session.guest.host, session.target})
        chosen = choose_driver(
            self._pool.name,
            self._loads(),
            {name: each.hosts for name, each in able.items() if needs.isdisjoint(self._unreached(each))},
            needs=needs,
            group=self._driver_of_group(session),
        )
        self._note_group(session, chosen)
        return able.get(chosen)

    def _loads(self) -> Counter[str]:
        """Return how many migrations each controller drives, or is being given."""
        loads = self._registry.driven_elsewhere + self._coming
        loads[self._pool.name] += self._registry.busy_here() - self._coming.total()  # they have tasks here
        return loads

    def _driver_of_group(self, session: JournalledSession) -> str:
        """Return who was chosen for others that are switched together with it; empty: nobody was."""
        return self._groups.get((session.evacuation or "", session.moved_with), "")

    def _note_group(self, session: JournalledSession, driver: str) -> None:
        if session.moved_with:
            self._groups[session.evacuation or "", session.moved_with] = driver
            if len(self._groups) >= self._tidy_at:
                going_on = {(each.evacuation or "", each.moved_with) for each in self._registry.live()}
                self._groups = {key: each for key, each in self._groups.items() if key in going_on}
                self._tidy_at = max(_GROUPS, 2 * len(self._groups))

    def _unreached(self, driver: AvailableDriver) -> set[str]:
        """Return the hosts that a driver could not ask a moment ago: it may lack the way there, which others have."""
        now = clock.now()
        self._unable = {key: until for key, until in self._unable.items() if until > now}
        return {host for name, token, host in self._unable if (name, token) == (driver.name, driver.token)}

    def note_unreached(self, session: RemoteSession) -> None:
        """Note it where its driver gave a migration up, or left it, because something could not be asked or read."""
        unread = session.assignment.released and session.assignment.report is None
        if unread or session.unreachable or (session.state is State.FAILED and session.may_pass):
            driver, until = session.assignment, clock.now() + _UNABLE_SECONDS
            for host in (session.guest.host, session.target):
                self._unable[driver.driver, driver.driver_token, host] = until

    async def give(
        self, session: JournalledSession, driver: AvailableDriver, *, former: tuple[str, int]
    ) -> Assignment | None:
        """Give a migration that nobody drives; ``None``: it could not be given, and nobody has it.

        :param former: who drove it before and may hold its monitors, and that one's token; an empty name: nobody.
        """
        self._coming[driver.name] += 1
        try:
            return await self._given(session, driver, former)
        finally:
            self._coming[driver.name] -= 1

    async def _given(
        self, session: JournalledSession, driver: AvailableDriver, former: tuple[str, int]
    ) -> Assignment | None:
        saved = session.journalled()
        if (prior := session.prior()) is not None:
            saved["_private"]["prior"] = asdict(prior)
        if self._services.experience is not None:
            saved["_private"]["overheads"] = self._services.experience.known()
        assignment = Assignment(
            migration=session.id,
            driver=driver.name,
            driver_token=driver.token,
            number=self._number(),
            controller=self._controller,
            session=saved,
            stream_speed=self._services.stream_speed(session.guest.host, session.target),
            former=former[0],
            former_token=former[1],
            requests=wanted_of(session.requests),
        )
        leave_monitors(self._site, session)
        # What this one does after it was taken back has a later mark.
        self._site.mark_with(self._number())
        given: bool | None = None
        while given is None:
            try:
                given = await self._assignments.give(assignment) or await self._is_left(assignment)
            except JournalError:
                given = await self._was_given(assignment)
        if not given:
            self._site.forget_driven_elsewhere(session.id)
            return None
        self._log.info("migration is driven by another controller", migration=session.id, by=driver.instance)
        return assignment

    async def _is_left(self, assignment: Assignment) -> bool | None:
        """Remove what was given though nobody answered, and then refused: its driver was gone by then.

        ``None``: that driver has it, or may have it.

        :raise JournalError: it cannot be done now.
        """
        if not await self._assignments.find([assignment.migration]):
            return False
        if await self._assignments.fence(assignment.migration, assignment.number) is None:
            return None
        await self._assignments.remove(assignment.migration, assignment.number)
        return False

    async def _was_given(self, assignment: Assignment) -> bool | None:
        """Tell whether a migration was given when nobody answered; ``None``: that cannot be told yet."""
        await asyncio.sleep(_RETRY_SECONDS)
        try:
            found = await self._assignments.find([assignment.migration])
        except JournalError:
            return None
        return any(each.number == assignment.number for each in found) or None


def leave_monitors(site: SpreadingSite, session: JournalledSession) -> None:
    """Leave the monitors of a migration to the controller that drives it."""
    place = session.places.get("destination")
    site.note_driven_elsewhere(
        session.id,
        source=(session.guest.host, session.guest.socket),
        target=session.target,
        destination=place.socket if place is not None else "",
    )
