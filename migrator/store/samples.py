"""The figures of migrations in the journal: a help for people, so that nothing ever waits for them.

They are kept in memory while a migration runs, and written together once a second. What a disk does not take is tried
again with the next; what a killed service had not written yet, a second's worth, is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator import logs
from migrator.core.migration.downsampling import Point, Series
from migrator.core.model import Sample, State
from migrator.errors import JournalError
from migrator.store.database import Database
from migrator.store.rows import statements
from migrator.store.schema import samples

#: Between two writes.
_PAUSE_SECONDS = 1.0
#: A migration that says nothing for so many writes leaves memory.
_QUIET_WRITES = 10
#: Migrations in memory; more than these cannot be under way, so a disk has refused them for long.
_MOST = 2000
#: So many are made into rows, and given to the database, before others on the event loop have their turn.
_AT_ONCE = 100
_NAMES = {field.name for field in fields(Sample)} - {"at_seconds"}


@dataclass(kw_only=True)
class _Kept:
    series: Series = field(default_factory=Series)
    #: What another service may have stored is in it too.
    whole: bool = False
    #: To be written, and to be removed, by time.
    new: dict[int, Point] = field(default_factory=dict)
    old: set[int] = field(default_factory=set)
    #: Their write failed, as far as anybody can tell of a disk that does not answer.
    unsure: set[int] = field(default_factory=set)
    quiet: int = 0

    def add(self, point: Point) -> bool:
        """Keep it if it tells enough."""
        if not self.series.add(point):
            return False
        self.new[_time(point)] = point
        for dropped in self.series.dropped:
            if self.new.pop(_time(dropped), None) is None or _time(dropped) in self.unsure:
                self.old.add(_time(dropped))
        self.series.dropped.clear()
        return True

    def complete(self, stored: list[Point]) -> None:
        """Put what is on disk before what was added."""
        self.series = Series([*stored, *self.series.points])
        self.series.dropped.clear()
        there = {_time(point) for point in stored}
        now = {_time(point): point for point in self.series.points}
        self.new = {at: point for at, point in now.items() if at not in there}
        self.old = there - now.keys()
        self.whole = True

    def again(self, new: Mapping[int, Point], old: set[int]) -> None:
        """Keep samples once more that could not be written, or so it seemed; to write them twice does no harm."""
        self.unsure |= new.keys()
        self.new = {at: point for at, point in new.items() if at not in self.old} | self.new
        self.old |= old


class SqlSamples:
    """See :class:`migrator.ports.Samples`. Written by :meth:`run`, and by :meth:`flush` at the end."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, _Kept] = {}
        self._there = asyncio.Event()
        self._flushing = asyncio.Lock()
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
        if kept.add(point):
            self._there.set()

    async def of(self, migration: str) -> list[Point]:
        """See :meth:`migrator.ports.Samples.of`.

        :raise JournalError: it cannot be read.
        """
        kept = self._kept.get(migration)
        if kept is not None and kept.whole:
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
        """Write what was added until now, if that can be done; on disk when this returns."""
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        self._there.clear()
        try:
            await self._write({key: kept for key, kept in self._kept.items() if kept.new or kept.old})
            self._failing = False
        except JournalError as error:
            if not self._failing:
                self._log.warning("samples not journalled", error=str(error))
            self._failing = True
        for migration, kept in list(self._kept.items()):
            kept.quiet += 1
            if kept.quiet > _QUIET_WRITES and not kept.new and not kept.old:
                del self._kept[migration]
        if self._kept:
            self._there.set()

    async def _write(self, changed: Mapping[str, _Kept]) -> None:
        for migration, kept in changed.items():
            if not kept.whole:
                kept.complete(await self._read(migration))
        new: list[dict[str, Any]] = []
        old: list[dict[str, Any]] = []
        taken = []

        async def write(connection: AsyncConnection) -> None:
            for at in range(0, len(new), _AT_ONCE):
                rows = new[at : at + _AT_ONCE]
                await connection.execute(statements(connection.dialect).insert_sample, rows)
            for at in range(0, len(old), _AT_ONCE):
                await connection.execute(_DELETE, old[at : at + _AT_ONCE])

        written = False
        try:
            for number, (migration, kept) in enumerate(changed.items()):
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
                taken.append((kept, kept.new, kept.old))
                kept.new, kept.old = {}, set()
                _, its_new, its_old = taken[-1]
                new += [_row(migration, at, point) for at, point in its_new.items()]
                old += [{"its": migration, "time": at} for at in its_old]
            if new or old:
                await self._database.write(write)
            written = True
        finally:
            for kept, its_new, its_old in taken:
                if written:
                    kept.unsure.clear()
                else:
                    kept.again(its_new, its_old)

    async def _read(self, migration: str) -> list[Point]:
        query = select(samples.c.at, samples.c.body).where(samples.c.migration == migration)

        async def read(connection: AsyncConnection) -> list[Any]:
            return list(await connection.execute(query.order_by(samples.c.at)))

        return [_point(at, json.loads(body)) for at, body in await self._database.read(read)]


def _time(point: Point) -> int:
    return round(point.sample.at_seconds * 1e6)


def _row(migration: str, at: int, point: Point) -> dict[str, Any]:
    figures = vars(point.sample)
    body = {name: figures[name] for name in _NAMES if figures[name]}
    body |= {"state": point.state, "limit_seconds": point.limit_seconds}
    return {"migration": migration, "at": at, "body": json.dumps(body)}


def _point(at: int, body: Mapping[str, Any]) -> Point:
    return Point(
        sample=Sample(at_seconds=at / 1e6, **{name: body[name] for name in _NAMES if name in body}),
        state=State(body["state"]),
        limit_seconds=body["limit_seconds"],
    )


_DELETE = delete(samples).where(samples.c.migration == bindparam("its"), samples.c.at == bindparam("time"))
