"""The checks of ``migrator doctor`` of a journal on a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.cli.diagnosis import DoctorCheck, fail, ok, warn
from migrator.errors import JournalError
from migrator.settings.models import SiteSettings
from migrator.store import schema
from migrator.store.backend import Server
from migrator.store.postgresql import PostgresServer, ServerState

#: What older servers lack was never tried.
_OLDEST = 13


async def journal_server(server: Server, site: SiteSettings) -> list[DoctorCheck]:
    """Return whether it can be reached, of which version it is, and whether others there are of this site.

    Nothing is changed.

    :param site: as this controller's configuration has it.
    """
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
        return [
            warn(about, text, "the service brings it to this version at its next start"),
            *_controllers(found, server, site),
        ]
    left = f", {found.unfinished} migrations not ended" if found.unfinished else ""
    well = ok(about, f"PostgreSQL {found.version}, schema {found.schema}{left}")
    return [well, *_controllers(found, server, site)]


def _controllers(found: ServerState, server: Server, site: SiteSettings) -> Iterator[DoctorCheck]:
    """Compare this controller's names with those of the others that use the database."""
    about, own = "controllers", _own_name(server)
    others = {name: instance for name, instance in found.controllers.items() if name != own}
    if site.instance in others.values():
        text = f"another controller on this database has the same [site] instance, {site.instance}"
        yield warn(about, text, "give each its own: at the broker both write the same topics")
    if found.site in (None, site.name):
        return
    if others:
        text = (
            f"the database is in use for the site {found.site} (by {', '.join(sorted(others.values()))}), "
            f"and [site] name is {site.name}: this controller would not start"
        )
        remedy = "give all its controllers the same name, or this one a database of its own ([store] url)"
        yield fail(about, text, remedy)
    else:
        text = f"the database was used for the site {found.site}, and [site] name is {site.name}"
        yield warn(about, text, "the next start renames the site; or is it the wrong database ([store] url)?")


def _own_name(server: Server) -> str:
    """Return what this controller's state directory says it is called; empty where it was never started."""
    if server.beside is None:
        return ""
    try:
        return (server.beside.parent / "controller").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""
