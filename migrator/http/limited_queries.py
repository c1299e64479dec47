"""Queries of a caller who is limited to some hosts: lists have what is there, and the rest is refused in one line.

A guest is at the host that it is on, a migration at both of its ends, an evacuation at its host, a roll at all of its
hosts; the move of a group is shown to whoever asked for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

from migrator.api.documents import DirtyRatesDocument, MigrationDocument, SampleDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import (
    CommandAnswered,
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    HostStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
    read_event,
)
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.ports.queries import Events, Queries
from migrator.ports.unreadable import UNREADABLE


class LimitedQueries:
    """See :class:`migrator.ports.queries.Queries`; each function raises :class:`Refusal` for what is elsewhere, and the
    same for what is nowhere.

    :param caller: is limited to some hosts.
    :param queries: know of all.
    """

    def __init__(self, queries: Queries, caller: Caller) -> None:
        self._all, self._caller = queries, caller

    @property
    def bus(self) -> Events:
        """All events: who hands them on asks :meth:`shows`."""
        return self._all.bus

    def active_migrations(self) -> Sequence[MigrationDocument]:
        return [each for each in self._all.active_migrations() if self._shows_migration(each)]

    def active_evacuations(self) -> Sequence[EvacuationDocument]:
        return [each for each in self._all.active_evacuations() if self._shows_evacuation(each)]

    def hosts(self) -> Sequence[HostDocument]:
        return [each for each in self._all.hosts() if self._caller.covers(each.host)]

    def host(self, name: str) -> HostDocument | None:
        self._require(name)
        return self._all.host(name)

    def guests(self, host: str | None = None) -> Sequence[GuestDocument]:
        if host is not None:
            self._require(host)
        return [each for each in self._all.guests(host) if self._caller.covers(each.host)]

    async def refresh(self, host: str | None = None) -> None:
        if host is not None:
            self._require(host)
            await self._all.refresh(host)
        else:
            await asyncio.gather(*(self._all.refresh(each.host) for each in self.hosts()))

    def guest(self, which: str) -> GuestDocument | None:
        try:
            found = self._all.guest(which)
        except Refusal:  # several have that name, and who they are may be none of his business
            found = None
        if found is None or not self._caller.covers(found.host):
            raise self._caller.outside(
                f"{which} is no guest there, or not only there: see migrator guests, and name its uuid"
            )
        return found

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> Sequence[MigrationDocument]:
        where = where or MigrationFilter()
        if where.host is not None:
            self._require(where.host)
        else:
            where = replace(where, hosts=self._names())
        return await self._all.migrations(limit=limit, before=before, where=where)

    async def migration(self, identifier: str) -> MigrationDocument | None:
        found = await self._all.migration(identifier)
        if found is None or not self._shows_migration(found):
            raise self._caller.outside(f"no migration {identifier} from or to there")
        return found

    async def samples(self, migration: str) -> Sequence[SampleDocument]:
        await self.migration(migration)
        return await self._all.samples(migration)

    async def dirty_rates(self, guest: str) -> DirtyRatesDocument:
        found = self.guest(guest)
        return await self._all.dirty_rates(found.guest if found is not None else guest)

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> Sequence[EvacuationDocument]:
        where = where or EvacuationFilter()
        if where.host is not None:
            self._require(where.host)
        else:
            where = replace(where, hosts=self._names())
        return await self._all.evacuations(limit=limit, before=before, where=where)

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        found = await self._all.evacuation(identifier)
        if found is None or not self._shows_evacuation(found):
            raise self._caller.outside(f"no evacuation {identifier} of there")
        return found

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        found = await self._all.events(after=after, limit=limit, subject=subject, subject_id=subject_id)
        return replace(found, items=[each for each in found.items if await self.shows(each)], unreadable=())

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        found = await self._all.event_texts(
            after=after, limit=limit, most_bytes=most_bytes, subject=subject, subject_id=subject_id
        )
        items = [each for each in found.items if await self._shows_text(each[1])]
        return replace(found, items=items)

    def complaints(self) -> Sequence[str]:
        return self._all.complaints()

    async def shows(self, event: Event) -> bool:
        """Tell whether an event is about what the caller may see; of commands, whether he gave it."""
        match event:
            case HostStateChanged(host=document):
                return self._caller.covers(document.host)
            case MigrationStateChanged(migration=migration) | MigrationProgressed(migration=migration):
                return self._shows_migration(migration)
            case DecisionTaken(migration=identifier):
                found = await self._all.migration(identifier)
                return found is not None and self._shows_migration(found)
            case EvacuationStateChanged(evacuation=evacuation):
                return self._shows_evacuation(evacuation)
            case CommandAnswered(command=command):
                return command.user == self._caller.user
        return False

    async def _shows_text(self, text: str) -> bool:
        """Tell the same of an event as the journal has it; not of one that cannot be read."""
        try:
            event = read_event(json.loads(text))
        except UNREADABLE:
            return False
        return await self.shows(event)

    def _shows_migration(self, migration: MigrationDocument) -> bool:
        return self._caller.covers(migration.source) or self._caller.covers(migration.destination)

    def _shows_evacuation(self, evacuation: EvacuationDocument) -> bool:
        if evacuation.kind == "group":  # all its guests were within his rights when he asked for it
            return evacuation.requested_by == self._caller.user
        if evacuation.kind == "roll":
            return self._caller.covers(*(each.host for each in evacuation.hosts))
        return self._caller.covers(evacuation.host)

    def _names(self) -> tuple[str, ...]:
        """Names of the caller's hosts: those there are, and those that are given word for word."""
        known = {each.host for each in self._all.hosts() if self._caller.covers(each.host)}
        return tuple(sorted(known | set(self._caller.hosts or ())))

    def _require(self, host: str) -> None:
        if not self._caller.covers(host):
            raise self._caller.outside(f"nothing of {host} is shown")
