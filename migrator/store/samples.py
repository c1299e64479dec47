"""The figures of migrations in the journal: a help for people, so that nothing ever waits for them.

They are kept in memory while a migration runs, and written together once a second. What a disk does not take is tried
again with the next; what a killed service had not written yet, a second's worth, is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator import logs
from migrator.core.model import Sample, State
from migrator.core.thinning import Point, Series
from migrator.errors import JournalError
from migrator.store.database import Database
from migrator.store.schema import samples

#: Between two writes.
_PAUSE_SECONDS = 1.0
#: A migration that says nothing for so many writes leaves memory.
_QUIET_WRITES = 10
#: Migrations in memory; more than these cannot be under way, so a disk has refused them for long.
_MOST = 2000
_NAMES = {field.name for field in fields(Sample)} - {"at_seconds"}


@dataclass(kw_only=True)
class _Kept:
    series: Series = field(default_factory=Series)
    #: Times of what is on disk; ``None`` while it was not looked at.
    stored: set[int] | None = None
    changed: bool = False
    quiet: int = 0


class SqlSamples:
    """See :class:`migrator.ports.Samples`. Written by :meth:`run`, and by :meth:`flush` at the end."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, _Kept] = {}
        self._there = asyncio.Event()
        self._failing = False
        self._log = logs.logger()

    def add(self, migration: str, point: Point) -> None:
        """See :meth:`migrator.ports.Samples.add`."""
        kept = self._kept.get(migration)
        if kept is None:
            while len(self._kept) >= _MOST:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[migration] = _Kept()
        kept.quiet = 0
        if kept.series.add(point):
            kept.changed = True
            self._there.set()

    async def of(self, migration: str) -> list[Point]:
        """See :meth:`migrator.ports.Samples.of`.

        :raise JournalError: it cannot be read.
        """
        kept = self._kept.get(migration)
        if kept is not None and kept.stored is not None:
            return kept.series.points
        stored = await self._read(migration)
        kept = self._kept.get(migration)
        return Series([*stored, *(kept.series.points if kept else ())]).points

    async def run(self) -> None:
        """Write what was added, until cancelled."""
        while True:
            await self._there.wait()
            await asyncio.sleep(_PAUSE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write what was added until now, if that can be done."""
        self._there.clear()
        try:
            await self._write({key: kept for key, kept in self._kept.items() if kept.changed})
            self._failing = False
        except JournalError as error:
            if not self._failing:
                self._log.warning("samples not journalled", error=str(error))
            self._failing = True
        for migration, kept in list(self._kept.items()):
            kept.quiet += 1
            if kept.quiet > _QUIET_WRITES and not kept.changed:
                del self._kept[migration]
        if self._kept:
            self._there.set()

    async def _write(self, changed: Mapping[str, _Kept]) -> None:
        new: list[dict[str, Any]] = []
        old: list[dict[str, Any]] = []
        for migration, kept in changed.items():
            if kept.stored is None:
                stored = await self._read(migration)
                kept.stored = {_time(point) for point in stored}
                kept.series = Series([*stored, *kept.series.points])
            kept.changed = False
            there = {_time(point): point for point in kept.series.points}
            new += [_row(migration, at, point) for at, point in there.items() if at not in kept.stored]
            old += [{"its": migration, "time": at} for at in kept.stored - there.keys()]
            kept.stored = set(there)

        async def write(connection: AsyncConnection) -> None:
            if new:
                await connection.execute(_INSERT, new)
            if old:
                await connection.execute(_DELETE, old)

        if not new and not old:
            return
        try:
            await self._database.write(write)
        except JournalError:
            for kept in changed.values():  # whatever is on disk: it is looked at again
                kept.stored, kept.changed = None, True
            raise

    async def _read(self, migration: str) -> list[Point]:
        query = select(samples.c.at, samples.c.body).where(samples.c.migration == migration)

        async def read(connection: AsyncConnection) -> list[Any]:
            return list(await connection.execute(query.order_by(samples.c.at)))

        return [_point(at, json.loads(body)) for at, body in await self._database.read(read)]


def _time(point: Point) -> int:
    return round(point.sample.at_seconds * 1e6)


def _row(migration: str, at: int, point: Point) -> dict[str, Any]:
    figures = asdict(point.sample)
    body = {name: figures[name] for name in _NAMES if figures[name]}
    body |= {"state": point.state, "limit_seconds": point.limit_seconds}
    return {"migration": migration, "at": at, "body": json.dumps(body)}


def _point(at: int, body: Mapping[str, Any]) -> Point:
    return Point(
        sample=Sample(at_seconds=at / 1e6, **{name: body[name] for name in _NAMES if name in body}),
        state=State(body["state"]),
        limit_seconds=body["limit_seconds"],
    )


_INSERT = insert(samples).on_conflict_do_nothing()
_DELETE = delete(samples).where(samples.c.migration == bindparam("its"), samples.c.at == bindparam("time"))
