"""``migrator doctor`` of a journal on a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from migrator.cli.diagnosis import Level
from migrator.cli.doctor_server import journal_server
from migrator.ports.controllers import ControllerInfo
from migrator.settings.models import SiteSettings
from migrator.store import schema
from migrator.store.backend import Server
from migrator.store.journal import SqlJournal
from migrator.testing.postgresql import Postgres
from tests.journals import run_sql

SITE = SiteSettings(name="here", instance="machine-1")


async def test_says_what_it_finds_and_changes_nothing(postgresql: Postgres, postgresql_place: Server) -> None:
    async with await SqlJournal.open(postgresql_place) as journal:
        await journal.save(("migration", {"id": "m1", "state": "precopy"}))
    [found] = await journal_server(postgresql_place, SITE)
    assert found.text.endswith(f"schema {schema.HEAD}, 1 migrations not ended")
    try:
        await run_sql(postgresql_place, "UPDATE alembic_version SET version_num = '0999'")
        [found] = await journal_server(postgresql_place, SITE)
        assert "its schema is 0999" in found.text
    finally:
        postgresql.sql(
            f"UPDATE alembic_version SET version_num = '{schema.HEAD}'",
            database=_name(postgresql_place),
        )
    empty = postgresql.place(postgresql.create())
    [found] = await journal_server(empty, SITE)
    assert found.text == "the database has no journal yet"
    [found] = await journal_server(empty, SITE)
    assert found.text == "the database has no journal yet"
    nowhere = replace(empty, url=empty.url.replace("/test", "/no"))
    [found] = await journal_server(nowhere, SITE)
    assert "there is no such database: make it (createdb)" in found.text


async def test_names_other_controllers_of_the_same_instance_or_of_another_site(
    postgresql_place: Server, tmp_path: Path
) -> None:
    place = replace(postgresql_place, beside=tmp_path / "journal.db")
    (tmp_path / "controller").write_text("own")
    async with await SqlJournal.open(place, alone=False) as journal:
        for name, instance in (("own", "machine-1"), ("other", "machine-2")):
            info = ControllerInfo(name=name, instance=instance, version="1.0")
            assert await journal.controllers.join(info, seconds=600) is not None
        await journal.keep_meta(schema.SITE_NAME, "here")
    [well] = await journal_server(place, SITE)
    assert well.level is Level.OK
    _, same = await journal_server(place, SITE.model_copy(update={"instance": "machine-2"}))
    assert (same.level, same.about) == (Level.WARN, "controllers")
    assert "another controller on this database has the same [site] instance, machine-2" in same.text
    there = SITE.model_copy(update={"name": "there"})
    _, refused = await journal_server(place, there)
    assert refused.level is Level.FAIL
    assert "in use for the site here (by machine-2), and [site] name is there" in refused.text
    await run_sql(place, "UPDATE leases SET ends_at = 1 WHERE owner = 'other'")
    _, renamed = await journal_server(place, there)
    assert renamed.level is Level.WARN
    assert "was used for the site here, and [site] name is there" in renamed.text


def _name(place: Server) -> str:
    return place.url.rpartition("@/")[2].partition("?")[0]
