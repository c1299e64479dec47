"""The migrations and evacuations of this service, and the one task that each migration has."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from migrator import logs
from migrator.core.drain.evacuation import Evacuation
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.errors import MigratorError
from migrator.faults import told

#: What ended is kept for so long: the journal may be a moment behind memory.
_REMEMBERED_SECONDS = 30.0


class Registry:
    """All migrations and evacuations that are under way or ended a moment ago; one event loop, no locks.

    :ivar migrations: by id.
    :ivar evacuations: by id; values, replaced as a whole by :meth:`change`.
    """

    def __init__(self) -> None:
        self.migrations: dict[str, JournalledSession] = {}
        self.evacuations: dict[str, Evacuation] = {}
        #: Migrations and evacuations that were under way at the start and cannot be read: nothing of them is touched.
        self.unread: frozenset[str] = frozenset()
        #: The service stops.
        self.stopping = False
        #: Another controller may have the right to act.
        self.suspended = False
        #: Migrations that are being journalled: their targets are not given away meanwhile.
        self._coming: dict[str, JournalledSession] = {}
        #: Migrations that have not ended when they were last looked at.
        self._live: dict[str, JournalledSession] = {}
        #: The same by their guests' keys, and by their ids.
        self._of_guest: dict[str, dict[str, JournalledSession]] = {}
        #: How many of those other controllers drive, by their names; and which drives which.
        self.driven_elsewhere: Counter[str] = Counter()
        self._drivers: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log = logs.logger()
        #: Called when the task of a migration is done.
        self.on_done: Callable[[JournalledSession], None] = lambda session: None

    # --- migrations --------------------------------------------------------------------------------------------------

    def add(self, session: JournalledSession) -> None:
        """Take in a migration that is in the journal."""
        self.replace(session)

    def replace(self, session: JournalledSession) -> None:
        """Have it in place of the one of its id, which somebody else drives, or drove, from now on."""
        self._count_driver(session.id, session.driver_name)
        self.migrations[session.id] = self._live[session.id] = session
        self._of_guest.setdefault(session.guest.key, {})[session.id] = session

    def _drop(self, name: str) -> None:
        session = self._live.pop(name, None)
        if session is None:
            return
        self._count_driver(name, "")
        key = session.guest.key
        self._of_guest[key].pop(name, None)
        if not self._of_guest[key]:
            del self._of_guest[key]

    def _count_driver(self, migration: str, driver: str) -> None:
        """Note which other controller drives a migration; empty: none does."""
        if before := self._drivers.pop(migration, ""):
            self.driven_elsewhere[before] -= 1
        if driver:
            self._drivers[migration] = driver
            self.driven_elsewhere[driver] += 1

    def live(self) -> list[JournalledSession]:
        """Return those that have not ended, and those that have while their task still does something about them."""
        for name in [name for name, each in self._live.items() if each.ended and name not in self._tasks]:
            self._drop(name)
        return list(self._live.values())

    @property
    def count_live(self) -> int:
        """Return how many there are in :meth:`live`; one that has ended may be among them for a moment longer."""
        return len(self._live)

    def of_guest(self, key: str) -> JournalledSession | None:
        """Return the migration of that guest that has not ended, if there is one."""
        return next((each for each in self._of_guest.get(key, {}).values() if not each.ended), None)

    def is_moving(self, key: str) -> bool:
        """Tell whether a migration of that guest has not ended, or is being journalled."""
        return self.of_guest(key) is not None or key in self.coming

    def is_under_way(self, migration: str) -> bool:
        """Tell whether a migration of that id has not ended."""
        session = self.migrations.get(migration)
        return migration in self.unread or (session is not None and not session.ended)

    def expect(self, session: JournalledSession) -> None:
        """Keep its target for a migration that is being journalled, until :meth:`expect_no_more`."""
        self._coming[session.id] = session

    def expect_no_more(self, session: JournalledSession) -> None:
        """Give up the target that :meth:`expect` keeps: the migration is journalled and added, or will never be."""
        self._coming.pop(session.id, None)

    @property
    def coming(self) -> dict[str, str]:
        """Return the targets of guests whose migrations are being journalled, by the guests' keys."""
        return {each.guest.key: each.target for each in self._coming.values()}

    @property
    def reserved_targets(self) -> dict[str, str]:
        """Return the targets of all guests on their way, by the guests' keys."""
        return {
            **self.coming,
            **{each.guest.key: each.target for each in self._live.values() if not each.ended},
        }

    @property
    def may_begin(self) -> bool:
        """Return whether anything new is begun."""
        return not (self.stopping or self.suspended)

    # --- their tasks -------------------------------------------------------------------------------------------------

    def start(self, session: JournalledSession, work: Coroutine[Any, Any, None]) -> None:
        """Do this with a migration, in the one task that it has."""
        with logs.about(**({"trace_id": session.trace.trace_id} if session.trace else {})):
            task = asyncio.create_task(work, name=f"migration {session.id}")
        self._tasks[session.id] = task
        task.add_done_callback(lambda done: self._done(session, done))

    def _done(self, session: JournalledSession, task: asyncio.Task[None]) -> None:
        self._tasks.pop(session.id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            fault = error if isinstance(error, MigratorError) else told(f"migration {session.id}", error)
            self._log.warning("migration broke off", migration=session.id, error=str(fault))
            session.break_off(str(fault))
        self.on_done(session)

    def task(self, session: JournalledSession) -> asyncio.Task[None] | None:
        """Return the task that drives it, or does something else with it, now."""
        return self._tasks.get(session.id)

    def busy(self, session: JournalledSession) -> bool:
        """Tell whether something drives it now, here or at another controller."""
        return session.driven_elsewhere or session.id in self._tasks

    def busy_here(self) -> int:
        """Return how many are driven by this controller as the planner."""
        return len(self._tasks)

    def driving(self) -> list[asyncio.Task[None]]:
        """Return the tasks that drive migrations now."""
        return list(self._tasks.values())

    # --- evacuations -------------------------------------------------------------------------------------------------

    def running(self) -> Iterator[Evacuation]:
        """Return the evacuations that have begun and have not ended."""
        return (
            run
            for run in self.evacuations.values()
            if not run.ended and not run.scheduled and run.roll is None
        )

    def rolls(self) -> list[Evacuation]:
        """Return the rolling evacuations that have not ended."""
        return [run for run in self.evacuations.values() if run.roll is not None and not run.ended]

    def shown(self) -> list[Evacuation]:
        """Return everything that has not ended: what is under way, rolls, and what is scheduled."""
        return [*self.running(), *self.rolls(), *self.scheduled()]

    def scheduled(self) -> list[Evacuation]:
        """Return the evacuations that wait for their windows, the first to begin first."""
        waiting = (run for run in self.evacuations.values() if run.scheduled)
        return sorted(waiting, key=lambda run: (run.window.starts_at or run.created_at, run.id))

    def leaving(self) -> set[str]:
        """Return the hosts that are being emptied."""
        return {run.host for run in self.running() if run.kind == "evacuate"}

    def change(self, identifier: str, change: Callable[[Evacuation], Evacuation]) -> bool:
        """Replace an evacuation by what `change` makes of it; return whether that differs; False: it is gone."""
        before = self.evacuations.get(identifier)
        if before is None:
            return False
        after = self.evacuations[identifier] = change(before)
        return after is not before

    def forget(self) -> tuple[list[str], list[str]]:
        """Drop what ended a while ago, as the journal has it; return the ids of those migrations and evacuations."""
        long_ago = datetime.now(UTC) - timedelta(seconds=_REMEMBERED_SECONDS)
        going_on = {run.id for run in self.running()}
        migrations = [
            each.id
            for each in self.migrations.values()
            if each.ended_at is not None and each.ended_at < long_ago and each.evacuation not in going_on
        ]
        evacuations = [
            run.id
            for run in self.evacuations.values()
            if run.ended_at is not None and run.ended_at < long_ago
        ]
        for name in migrations:
            del self.migrations[name]
            self._drop(name)
        for name in evacuations:
            del self.evacuations[name]
        return migrations, evacuations


def new_id() -> str:
    """Return an id for a migration or an evacuation."""
    return secrets.token_hex(6)
