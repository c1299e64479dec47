"""Recovery at the start: what another controller left is read from the journal, and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from migrator import logs
from migrator.api.events import Subject
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Ended, Evacuation
from migrator.core.drain.preparations import Preparations
from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Guest, HostState
from migrator.core.model import State
from migrator.engine import (
    clock,
    evacuation_documents,
    guest_experiences,
    image_removals,
    pair_overheads,
    path_speeds,
)
from migrator.engine.announcer import Announcer
from migrator.engine.event_bus import EventBus
from migrator.engine.guest_experiences import GuestExperiences
from migrator.engine.image_removals import ImageRemovals
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration import leftovers, stray_records, take_over
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.leftovers import Leftovers
from migrator.engine.migration.services import SessionServices
from migrator.engine.pair_overheads import PairOverheads
from migrator.engine.path_speeds import PathSpeeds
from migrator.engine.registry import Registry
from migrator.engine.rules import Rules
from migrator.engine.sessions import Sessions
from migrator.engine.spreading import Spreading
from migrator.ports.unreadable import UNREADABLE, say_unreadable

#: So many of the last migrations tell at a start how long preparing takes.
_PREPARED_BEFORE = 50
#: Of an evacuation's migrations so many are read at a time.
_PAGE = 500


@dataclass(kw_only=True)
class Recovery:
    """Reads the journal at a start.

    :ivar left_records: records of steps that nobody can make anything of, each in one line for a person.
    :ivar unreadable: rows that cannot be read, by kind and name: they are left out and said once.
    """

    registry: Registry
    inventory: Inventory
    services: SessionServices
    journal_writer: JournalWriter
    bus: EventBus
    announcer: Announcer
    sessions: Sessions
    leftovers: Leftovers
    image_removals: ImageRemovals
    preparations: Preparations
    path_speeds: PathSpeeds
    experiences: GuestExperiences
    pair_overheads: PairOverheads
    earlier_overheads: Callable[[], Mapping[str, Sequence[float]]]
    rules: Callable[[], Rules]
    unreadable: set[tuple[str, str]]
    left_records: list[str]
    spreading: Spreading | None = None

    async def run(self) -> None:
        """Begin to go on with everything that was left. Guests that stand still come first.

        :raise JournalError: the journal cannot be read.
        """
        # All is read before anything is driven: what ends at once is to find its evacuation.
        left = await self._read()
        for run in list(self.registry.running()):
            await self._bring_up_to_date(run, {session.id for session in left})
        for session in left:
            self.registry.add(session)
        for session in left:
            if not self.bus.sequence(Subject.MIGRATION, session.id):
                self.announcer.migration(
                    session
                )  # it was journalled, and then there was no time to tell anybody
            self._go_on(session)
        for run in self.registry.shown():
            if not self.bus.sequence(Subject.EVACUATION, run.id):
                self.announcer.evacuation(run.id)
            if run.closing is not None:
                self.sessions.cancel_all(run)
        await self._sort_out_strays()
        for saved in await self.journal_writer.journal.unfinished(leftovers.KIND):
            with self._left_out("leftover", saved):
                self.leftovers.take_over(saved)
        for saved in await self.journal_writer.journal.unfinished(image_removals.KIND):
            with self._left_out("image removal", saved):
                self.image_removals.take_over(saved)
        await self._take_over_experience()
        await self._learn()

    async def _take_over_experience(self) -> None:
        """Take in what was learned of paths, guests and pairs of QEMUs; a row that cannot be read is left out."""
        for saved in await self.journal_writer.journal.unfinished(path_speeds.KIND):
            with self._left_out(path_speeds.KIND, saved):
                self.path_speeds.take_over(saved)
        for saved in await self.journal_writer.journal.unfinished(guest_experiences.KIND):
            with self._left_out(guest_experiences.KIND, saved):
                self.experiences.take_over(saved)
        for saved in await self.journal_writer.journal.unfinished(pair_overheads.KIND):
            with self._left_out(pair_overheads.KIND, saved):
                self.pair_overheads.take_over(saved)
        self.pair_overheads.take_in(self.earlier_overheads())

    def _go_on(self, session: JournalledSession) -> None:
        if session.driven_elsewhere:
            return  # its driver goes on, or it is taken back from it
        if session.state is not State.QUEUED:
            self.registry.start(session, take_over.take_up(session))
        elif session.cancelled:
            self.sessions.call_off(session)  # that was accepted, and then there was no time to do it

    async def _read(self) -> list[JournalledSession]:
        """Read what has not ended; a row that cannot be read is left out."""
        journal = self.journal_writer.journal
        given = await self.spreading.left() if self.spreading is not None else {}
        for saved in await journal.unfinished("host"):
            with self._left_out("host", saved):
                if self.inventory.host(saved["id"]):
                    self.inventory.set_state(saved["id"], HostState(saved["state"]))
                    self.inventory.set_cordoned(saved["id"], bool(saved.get("cordoned")))
        left: list[JournalledSession] = []
        for saved in await journal.unfinished("migration"):
            with self._left_out("migration", saved):
                if self.spreading is not None and (its := given.get(saved["id"])) is not None:
                    left.append(self.spreading.adopt(saved, its))
                    continue
                callbacks = self.sessions.callbacks()
                left.append(JournalledSession.from_journal(saved, services=self.services, **callbacks))
        for saved in await journal.unfinished("evacuation"):
            with self._left_out("evacuation", saved):
                run = evacuation_documents.from_journal(saved)
                self.registry.evacuations[run.id] = run
        unread = {name for kind, name in self.unreadable if kind in ("migration", "evacuation")}
        self.registry.unread = frozenset(unread)
        return left

    @contextmanager
    def _left_out(self, kind: str, saved: Mapping[str, Any]) -> Iterator[None]:
        """Leave a row out that cannot be read; a record of its steps is found all the same, and is held."""
        try:
            yield
        except UNREADABLE as error:
            say_unreadable(self.unreadable, kind, str(saved.get("id", "")), error)

    async def _bring_up_to_date(self, run: Evacuation, left: Collection[str]) -> None:
        """Note which migrations of an evacuation were begun, and ended, before its own document was written.

        :param left: migrations that are gone on with.
        """
        rows: dict[str, list[dict[str, Any]]] = {}
        for saved in await self._migrations_of(run):
            with self._left_out("migration", saved):
                rows.setdefault(str(saved["guest"]), []).append(saved)
        after = run
        for key, its in rows.items():
            with self._left_out("migration", its[-1]):
                after = self._replayed(after, key, its)
        for key, entry in after.entries.items():
            if entry.standing is GuestStanding.MIGRATING and entry.migration not in left:
                last = next((row for row in rows.get(key, ()) if row["id"] == entry.migration), {})
                how = Ended(state=State.FAILED, error=last.get("error") or "it was not begun")
                after = after.one_ended(key, how, now=clock.now(), limits=self.rules().site_limits)
        if after is not run:
            self.registry.evacuations[run.id] = after
            self.announcer.evacuation(run.id)

    async def _migrations_of(self, run: Evacuation) -> list[dict[str, Any]]:
        """Return all that it began, the oldest first."""
        found: list[dict[str, Any]] = []
        while True:
            page = await self.journal_writer.journal.page(
                "migration",
                limit=_PAGE,
                before=found[-1]["id"] if found else None,
                where={"evacuation": run.id},
            )
            found += page
            if len(page) < _PAGE:
                return found[::-1]

    def _replayed(self, run: Evacuation, key: str, rows: Sequence[Mapping[str, Any]]) -> Evacuation:
        """Return the evacuation with what the journal says of one guest's migrations, the oldest first."""
        if key not in run.entries:
            guest = Guest.from_fields(rows[0]["_private"]["guest"])
            run = run.marked({key: Entry(guest=guest)})
        ids = [row["id"] for row in rows]
        entry = run.entries[key]
        if entry.migration is not None and entry.migration not in ids:
            return run  # somebody else's migration of that guest is held: it began none since
        known = ids.index(entry.migration) if entry.migration is not None else -1
        for place, row in enumerate(rows):
            if place < known:
                continue
            if place > known:
                run = run.begun(
                    key,
                    row["id"],
                    row["destination"],
                    "begun before the service started again",
                    saving=bool(row.get("file")),
                )
            elif entry.standing not in (GuestStanding.MIGRATING, GuestStanding.HELD):
                continue
            if row.get("ended_at"):
                how = Ended(
                    state=State(row["state"]),
                    error=row.get("error") or "",
                    refused=bool(row.get("refused")),
                    saved=str(row.get("file") or ""),
                )
                run = run.one_ended(key, how, now=clock.now(), limits=self.rules().site_limits)
        return run

    async def _sort_out_strays(self) -> None:
        held, left = await stray_records.sort_out(
            await self.services.records.strays(self.registry.migrations),
            journal=self.journal_writer.journal,
            services=self.services,
            callbacks=self.sessions.callbacks(),
        )
        self.left_records[:] = left
        for session in held:
            logs.logger().warning("record without its journal", migration=session.id, guest=session.guest.key)
            self.registry.add(session)
            self.announcer.migration(session)
            self.registry.start(session, take_over.look_at_orphan(session))

    async def _learn(self) -> None:
        """Note how long preparing took before."""
        for saved in reversed(await self.journal_writer.journal.page("migration", limit=_PREPARED_BEFORE)):
            with self._left_out("migration", saved):
                if (seconds := saved.get("preparation_seconds")) is not None:
                    self.preparations.note(str(saved["destination"]), float(seconds))
