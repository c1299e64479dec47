"""``migrator doctor`` of a journal on a server."""

from __future__ import annotations

from dataclasses import replace

from migrator.cli.doctor_server import journal_server
from migrator.store import schema
from migrator.store.backend import Server
from migrator.store.journal import SqlJournal
from migrator.testing.postgresql import Postgres
from tests.journals import run_sql


async def test_says_what_it_finds_and_changes_nothing(postgresql: Postgres, postgresql_place: Server) -> None:
    async with await SqlJournal.open(postgresql_place) as journal:
        await journal.save(("migration", {"id": "m1", "state": "precopy"}))
    [found] = await journal_server(postgresql_place)
    assert found.text.endswith(f"schema {schema.HEAD}, 1 migrations not ended")
    try:
        await run_sql(postgresql_place, "UPDATE alembic_version SET version_num = '0999'")
        [found] = await journal_server(postgresql_place)
        assert "its schema is 0999" in found.text
    finally:
        postgresql.sql(
            f"UPDATE alembic_version SET version_num = '{schema.HEAD}'",
            database=_name(postgresql_place),
        )
    empty = postgresql.place(postgresql.create())
    [found] = await journal_server(empty)
    assert found.text == "the database has no journal yet"
    [found] = await journal_server(empty)
    assert found.text == "the database has no journal yet"
    nowhere = replace(empty, url=empty.url.replace("/test", "/no"))
    [found] = await journal_server(nowhere)
    assert "there is no such database: make it (createdb)" in found.text


def _name(place: Server) -> str:
    return place.url.rpartition("@/")[2].partition("?")[0]
