"""``python -m bench.store``: what queries of a journal with a million ended migrations take, and writes a second.

In either database; PostgreSQL is started for it, with its files synced to disk as in production (``fsync=on``).
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.figures import ms, paragraphs, table
from bench.journal import document, event
from migrator.core.migration.situation import Intent, Milestone
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.store.records import FileRecord
from migrator.testing.postgresql import Postgres, programs

_RUNS = 30
_TOGETHER, _SECONDS = 100, 5.0
MIGRATIONS = 1_000_000
#: Aim: of each query that an interface makes.
_QUERY_SECONDS = 0.050
#: Rows of ended migrations, with two events each and a command; n numbers them from 1, SERIES is where it comes from.
_DOCUMENTS = """
INSERT INTO documents
    (kind, id, state, guest, source, destination, evacuation, command, created_at, ended_at, body)
SELECT 'migration', 'z' || n, CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'completed' END, 'guest' || (n % 50000),
    'h' || (n % 1000), 'h' || ((n + 7) % 1000), 'e' || (n / 20), 'ann' || n, 1700000000000000 + n,
    1700000001000000 + n, '{"id": "z' || n || '", "state": "completed", "text": "TEXT"}'
FROM SERIES
"""
_EVENTS = """
INSERT INTO events (event_id, sequence, time, subject, subject_id, body)
SELECT n, n % 2 + 1, 1700000000000000 + n, 'migration', 'z' || (n / 2),
    '{"event_id": ' || n || ', "subject": "migration", "subject_id": "z' || (n / 2) || '", "text": "TEXT"}'
FROM SERIES
"""
_COMMANDS = """
INSERT INTO commands ("key", verb, body_hash, body, caller, claimed_at, settled, reply)
SELECT 'ann' || n, 'migrate', 'h', '{}', '{"user": "ann"}', 1700000000000000, 1, '{"kind": "outcome"}'
FROM SERIES
"""
_SERIES = {
    "sqlite": "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < COUNT) SELECT n FROM c)",
    "postgresql": "generate_series(1, COUNT) AS n",
}


def filling(dialect: str, migrations: int) -> list[str]:
    """Statements that write so many ended migrations."""
    given = ((_DOCUMENTS, migrations), (_EVENTS, 2 * migrations), (_COMMANDS, migrations))
    return [
        text.replace("SERIES", _SERIES[dialect].replace("COUNT", str(count))).replace("TEXT", "x" * 400)
        for text, count in given
    ]


def queries(journal: SqlJournal, migrations: int) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Queries that pages, commands and streams make."""
    middle, last = f"z{migrations // 2}", 2 * migrations

    def page(**where: str) -> Callable[[], Awaitable[Any]]:
        return lambda: journal.page("migration", limit=50, where=where)

    return {
        "a page, the newest": page(),
        "a page, from the middle": lambda: journal.page("migration", limit=50, before=middle),
        "a page of a state that most have": page(state="completed"),
        "a page of a state that few have": page(state="failed"),
        "a page of a state that none has": page(state="held"),
        "a page of a guest": page(guest="guest77"),
        "a page of a host": page(host="h77"),
        "a page of a host and a state": page(host="h77", state="failed"),
        "a page of an evacuation": page(evacuation="e77"),
        "a page of a command": page(command="ann77"),
        "a page of evacuations": lambda: journal.page("evacuation", limit=50),
        "one migration": lambda: journal.find("migration", middle),
        "(start) unfinished migrations": lambda: journal.unfinished("migration"),
        "(start) hosts": lambda: journal.unfinished("host"),
        "events after the last seen": lambda: journal.event_texts(after=last - 1000),
        "events from the beginning": lambda: journal.event_texts(after=0),
        "events of a migration": lambda: journal.event_texts(subject="migration", subject_id=middle),
        "curve of a migration": lambda: journal.samples.of(middle),
        "command behind a migration": lambda: journal.command_behind("migration", middle),
        "commands that are open": journal.unsettled,
        "(start) positions": journal.positions,
    }


#: Name, median and most or p99, in seconds.
_Timed = tuple[str, float, float]


@dataclass
class Found:
    """The figures of one database."""

    name: str
    writes: list[_Timed] = field(default_factory=list)
    #: A hundred migrations, each of which writes as soon as its last is written.
    writes_a_second: float = 0.0
    together: _Timed = ("", 0.0, 0.0)
    queries: list[_Timed] = field(default_factory=list)
    #: What writing those migrations took.
    filled_seconds: float = 0.0


async def ask(journal: SqlJournal, migrations: int) -> list[_Timed]:
    """Return what each query takes: median and most."""
    found = []
    for name, query in queries(journal, migrations).items():
        times = []
        for _ in range(_RUNS):
            began = time.perf_counter()
            await query()
            times.append(time.perf_counter() - began)
        found.append((name, median(times), max(times)))
    return found


async def write(journal: SqlJournal, directory: Path, found: Found) -> None:
    """Measure what writes take, one after the other and together."""
    record = journal.steps.create("steps")
    await record.begin({}, Intent())
    step = Intent(milestone=Milestone.MIGRATING)
    file = FileRecord(f"bench{time.time_ns()}", directory=directory)
    await file.begin({}, Intent())

    async def behind(_: int) -> None:
        record.note_behind(step)

    calls: dict[str, Callable[[int], Awaitable[Any]]] = {
        "save a migration": lambda n: journal.save(("migration", document(n))),
        "commit a step in the database": lambda n: record.note(step),
        "note a step in a file": lambda n: file.note(step),
        "note a step behind": behind,
    }
    found.writes = [await one_by_one(name, call) for name, call in calls.items()]
    file.close()
    written, latencies = 0, []
    began = time.perf_counter()

    async def go(number: int) -> None:
        nonlocal written
        while time.perf_counter() - began < _SECONDS:
            started = time.perf_counter()
            written += 1
            told = event(10_000_000 + written) | {"time": datetime.now(UTC).isoformat()}
            await journal.save(("migration", document(number)), events=[told])
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(go(number) for number in range(_TOGETHER)))
    found.writes_a_second = written / (time.perf_counter() - began)
    found.together = (f"{_TOGETHER} at once", median(latencies), quantiles(latencies, n=100)[98])


async def one_by_one(name: str, call: Callable[[int], Awaitable[Any]]) -> _Timed:
    """Return what a call takes, one after the other: median and p99."""
    times = []
    for number in range(10 * _RUNS):
        began = time.perf_counter()
        await call(number)
        times.append(time.perf_counter() - began)
    return name, median(times), quantiles(times, n=100)[98]


async def measure(
    name: str, place: Place, directory: Path, fill: Callable[[], None], migrations: int
) -> Found:
    """Return the figures of one database."""
    found = Found(name)
    async with await SqlJournal.open(place) as journal:
        await write(journal, directory, found)
    began = time.perf_counter()
    await asyncio.to_thread(fill)
    found.filled_seconds = time.perf_counter() - began
    async with await SqlJournal.open(place) as journal:
        found.queries = await ask(journal, migrations)
    return found


def fill_file(path: Path, migrations: int) -> None:
    """See :func:`filling`."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in filling("sqlite", migrations):
            connection.execute(statement)
        connection.commit()


def fill_server(server: Postgres, database: str, migrations: int) -> None:
    """See :func:`filling`; and as its own housekeeping does before long."""
    for statement in (*filling("postgresql", migrations), "VACUUM ANALYZE"):
        server.sql(statement, database=database, within=900)


async def measure_both(
    migrations: int = MIGRATIONS, *, directory: str | None = None, only: str = ""
) -> list[Found]:
    """Return the figures of either database, where there are the programs for it.

    :param directory: where the databases are made; a disk like that of a service.
    :param only: ``sqlite`` or ``postgresql``.
    """
    found = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-store-") as name:
        own = Path(name)
        if only != "postgresql":
            path = own / "journal.db"
            found.append(await measure("SQLite", path, own, lambda: fill_file(path, migrations), migrations))
        if only != "sqlite" and programs() is not None:
            tempfile.tempdir = directory
            with Postgres("bench", fsync="on", full_page_writes="on", shared_buffers="128MB") as server:
                database = server.create()
                place = server.place(database)

                def fill() -> None:
                    fill_server(server, database, migrations)

                found.append(await measure("PostgreSQL", place, own, fill, migrations))
    return found


def report(found: list[Found], migrations: int) -> str:
    """Return the section's text."""
    rows = []
    for each in found:
        rows += [
            [each.name, "documents with an event, a second", f"{each.writes_a_second:.0f}", ""],
            *(
                [each.name, name, ms(middle), ms(most)]
                for name, middle, most in (each.together, *each.writes)
            ),
        ]
    slow = [
        name
        for each in found
        for name, middle, _ in each.queries
        if middle > _QUERY_SECONDS and _of_interfaces(name)
    ]
    asked = [
        [name, *(ms(value) for each in found for value in each.queries[number][1:])]
        for number, (name, _, _) in enumerate(found[0].queries)
    ]
    heads = [f"{each.name} {what}" for each in found for what in ("median ms", "most ms")]
    return paragraphs(
        "Writes, one after the other, and of a hundred migrations that each write as soon as their last is written:",
        table(["store", "what", "median ms", "p99 ms"], rows),
        f"Queries of the interfaces on {migrations:,} ended migrations, {2 * migrations:,} events and "
        f"{migrations:,} commands:",
        table(["query", *heads], asked),
        f"Aim: each that an interface makes takes at most {ms(_QUERY_SECONDS)} ms in the median. "
        + (f"**Not met by: {', '.join(slow)}.**" if slow else "Aim met."),
    )


def _of_interfaces(name: str) -> bool:
    return not name.startswith("(start)")


async def main() -> None:
    """Print the figures of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--migrations", type=int, default=MIGRATIONS)
    parser.add_argument("--directory", help="where the databases are made; a disk like that of a service")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], default="")
    given = parser.parse_args()
    found = await measure_both(given.migrations, directory=given.directory, only=given.only)
    print(report(found, given.migrations))


if __name__ == "__main__":
    asyncio.run(main())
