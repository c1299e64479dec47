"""The checks of ``migrator doctor`` of a journal on a PostgreSQL server."""

from __future__ import annotations

from migrator.cli.diagnosis import DoctorCheck, fail, ok, warn
from migrator.errors import JournalError
from migrator.store import schema
from migrator.store.backend import Server
from migrator.store.postgresql import PostgresServer

#: What older servers lack was never tried.
_OLDEST = 13


async def journal_server(server: Server) -> list[DoctorCheck]:
    """Return whether it can be reached, and of which version server and journal are; nothing is changed."""
    about = "journal"
    try:
        found = await PostgresServer.examine(server)
    except JournalError as error:
        return [fail(about, str(error))]
    if found.version < _OLDEST:
        return [fail(about, f"the server is PostgreSQL {found.version}", f"use {_OLDEST} or later")]
    if found.schema is None:
        return [warn(about, "the database has no journal yet", "the service makes it at its first start")]
    if found.schema != schema.HEAD:
        text = f"its schema is {found.schema}, this version's is {schema.HEAD}"
        if not schema.knows(found.schema):
            return [fail(about, text, "a newer migrator wrote it: install that one")]
        return [warn(about, text, "the service brings it to this version at its next start")]
    left = f", {found.unfinished} migrations not ended" if found.unfinished else ""
    return [ok(about, f"PostgreSQL {found.version}, schema {found.schema}{left}")]
