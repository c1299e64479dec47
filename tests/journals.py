"""Journals for tests in SQLite and on PostgreSQL: where they are, emptied, and looked into from outside."""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from migrator.store.backend import Place
from migrator.store.database import Database
from migrator.store.schema import metadata
from migrator.testing.postgresql import Postgres, programs

_TABLES = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables if table.name != "meta")


def postgresql_missing() -> str:
    """Why PostgreSQL cannot be used here; empty where it can."""
    if programs() is None:
        return "there is no PostgreSQL server here"
    return "" if importlib.util.find_spec("asyncpg") else "asyncpg is not installed"


def make_schema(place: Place) -> None:
    """What an empty database needs."""

    async def make() -> None:
        await (await Database.open(place)).close()

    # A loop may be running here already.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(make())).result()


def empty(server: Postgres, database: str) -> None:
    """Nothing is left of the test before: it is as its schema made it."""
    server.sql(
        f"TRUNCATE {_TABLES} RESTART IDENTITY",
        "DELETE FROM meta WHERE key <> 'oldest_reader'",
        database=database,
    )


def all_closed(server: Postgres, database: str) -> None:
    """Nobody forgot to close a connection; the server may take a moment to notice."""
    query = f"SELECT application_name FROM pg_stat_activity WHERE datname = '{database}'"
    deadline = time.monotonic() + 20
    while left := server.sql(f"{query} AND backend_type = 'client backend'"):
        assert time.monotonic() < deadline, left


async def run_sql(place: Place, statement: str) -> list[tuple[Any, ...]]:
    """What another program finds or does there."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place)) as connection:
            found = list(connection.execute(statement))
            connection.commit()
            return found
    database = await Database.open(place)
    try:

        async def work(connection: Any) -> list[tuple[Any, ...]]:
            result = await connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []

        return await database.write(work)
    finally:
        await database.close()
