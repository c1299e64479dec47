"""A journal in a file, brought to a server: all of it, compared row by row, or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Select, Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.errors import JournalError, UsageError
from migrator.store.backend import DATABASE_ERRORS, Server
from migrator.store.postgresql import PostgresServer
from migrator.store.records import Unfinished, unfinished
from migrator.store.schema import (
    CONTROLLER,
    commands,
    documents,
    events,
    meta,
    samples,
    sessions,
    step_records,
    tokens,
)
from migrator.store.sqlite import SqliteFile
from migrator.store.step_records import controller_id

_COPIED = (documents, events, commands, tokens, sessions, samples, meta)
_AT_ONCE = 1000
#: The one row of ``meta`` that a server has with its tables; a file has none of it.
_WITH_TABLES = "oldest_reader"


@dataclass(frozen=True, kw_only=True)
class Copied:
    """One table that is the same in both."""

    table: str
    rows: int
    #: Made of the SHA-256 of each row.
    digest: str


async def copy_journal(path: Path, server: Server) -> list[Copied]:
    """Copy the journal at `path`, and the records of steps beside it, to a server that has none.

    The file stays as it is. Nothing is at the server unless all of it is, and the same.

    :raise UsageError: there is no such file, or the server has a journal already.
    :raise JournalError: a service has it open, or one of the two cannot be used.
    """
    if not await asyncio.to_thread(path.exists):
        raise UsageError(f"there is no journal {path} to copy: see [store] path")
    source = await SqliteFile.prepare(path, alone=True)
    try:
        target = await PostgresServer.prepare(server, alone=False)
        reading, writing = (
            source.engine(connections=1),
            target.engine(connections=1, writer="copy"),
        )
        try:
            steps = await asyncio.to_thread(_steps, path.parent / "steps")
            marks = await asyncio.to_thread(controller_id, path.parent)
            async with reading.begin() as here, writing.begin() as there:
                copied = await _copy(here, there, steps, target.name)
                # QEMUs that were left in the middle of a migration are marked with it: whoever comes is the same.
                await there.execute(insert(meta), {"key": CONTROLLER, "value": marks})
                return copied
        except DATABASE_ERRORS as error:
            raise JournalError(target.in_words(error, "copied")) from error
        finally:
            await reading.dispose()
            await writing.dispose()
            await target.close()
    finally:
        await source.close()


async def _copy(
    here: AsyncConnection, there: AsyncConnection, steps: Sequence[dict[str, Any]], name: str
) -> list[Copied]:
    for table in (documents, events, commands, tokens, step_records):
        # As somebody else could fill it while this one is at it.
        await there.execute(text(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE"))
        if (await there.execute(select(func.count()).select_from(table))).scalar():
            raise UsageError(f"{name} has a journal already: give a database of its own, which is empty")
    if (await there.execute(select(func.count()).where(meta.c.key != _WITH_TABLES))).scalar():
        raise UsageError(
            f"a service has begun a journal at {name}: give a database of its own, which is empty"
        )
    tallies = []
    for table in _COPIED:
        tally = _Tally(table)
        found = await here.stream(_rows(table))
        async for part in found.mappings().partitions(_AT_ONCE):
            rows = [dict(row) for row in part]
            await there.execute(insert(table), rows)
            tally.add(rows)
        tallies.append(tally)
    tally = _Tally(step_records)
    if steps:
        await there.execute(insert(step_records), steps)
        tally.add(steps)
    tallies.append(tally)
    last = select(func.max(documents.c.number)).scalar_subquery()
    number = func.pg_get_serial_sequence("documents", "number")
    await there.execute(select(func.setval(number, func.coalesce(last, 1))))
    for tally in tallies:
        now = _Tally(tally.table)
        found = await there.stream(_rows(tally.table))
        async for part in found.mappings().partitions(_AT_ONCE):
            now.add(part)
        if now.result() != tally.result():
            raise JournalError(
                f"the table {tally.table.name} would not be the same at {name} ({now.rows} rows instead of "
                f"{tally.rows}, or other ones): nothing was copied"
            )
    return [tally.result() for tally in tallies]


def _rows(table: Table) -> Select[Any]:
    """Select what is copied of a table."""
    return select(table).where(meta.c.key != _WITH_TABLES) if table is meta else select(table)


class _Tally:
    """Counts the rows of a table, and adds up their digests: in which order they come makes no difference."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.rows = 0
        self._sum = 0

    def add(self, rows: Iterable[Mapping[Any, Any]]) -> None:
        """Count more rows."""
        for row in rows:
            line = json.dumps([row[column.name] for column in self.table.c]).encode()
            self._sum += int.from_bytes(sha256(line).digest(), "big")
            self.rows += 1

    def result(self) -> Copied:
        """Return what was copied, with its digest."""
        digest = sha256(str(self._sum).encode()).hexdigest()
        return Copied(table=self.table.name, rows=self.rows, digest=digest)


def _steps(directory: Path) -> list[dict[str, Any]]:
    """Return the records of steps as rows.

    :raise RecordError: one that has not ended cannot be read.
    """
    rows = [_row(left) for left in unfinished(directory=directory)]
    going_on = {row["migration"] for row in rows}
    for path in sorted((directory / "ended").glob("*.jsonl")):
        if path.stem in going_on:
            continue  # of an attempt before
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
            first, last = lines[0], lines[-1]
            row = {
                "migration": path.stem,
                "facts": json.dumps(first["facts"]),
                "intent": json.dumps(first["intent"]),
                "begun_at": round(first["time"] * 1e6),
                "noted_at": round(last["time"] * 1e6),
                "exact": 1,
                "outcome": json.dumps(last["end"]),
                "ended_at": round(last["time"] * 1e6),
            }
        except (OSError, ValueError, LookupError, TypeError):
            continue  # it has ended; nobody asks any more
        rows.append(row)
    return rows


def _row(left: Unfinished) -> dict[str, Any]:
    noted_at = round((left.record.noted_at or 0) * 1e6)
    return {
        "migration": left.record.path.stem,
        "facts": json.dumps(left.facts),
        "intent": json.dumps(asdict(left.intent)),
        "begun_at": noted_at,
        "noted_at": noted_at,
        # What a reboot may have cost is in the intent already.
        "exact": 1,
        "outcome": None,
        "ended_at": None,
    }
