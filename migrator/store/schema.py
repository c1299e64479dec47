"""The journal's tables, and how a database is brought to this version of them.

A document is kept whole, as JSON; the columns beside it are what is asked for.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Index, Integer, MetaData, Table, Text, UniqueConstraint, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from migrator.errors import JournalError

if TYPE_CHECKING:
    from alembic.config import Config

#: The revision in ``alembic/versions`` that the tables below are; a test holds them together.
HEAD = "0003"
SCRIPTS = Path(__file__).parent / "alembic"
#: How long another connection's lock is waited for. Only ``migrator token`` ever holds one, for milliseconds.
BUSY_SECONDS = 5.0

metadata = MetaData()

documents = Table(
    "documents",
    metadata,
    # In the order in which they were first written: a clock that is set back does not disturb it.
    Column("number", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("state", Text),
    Column("guest", Text),
    #: Of a migration its source, of an evacuation or a host that host.
    Column("source", Text),
    Column("destination", Text),
    Column("evacuation", Text),
    #: Key of the command that began it.
    Column("command", Text),
    # Times in microseconds since the epoch: their text does not sort.
    Column("created_at", Integer),
    Column("ended_at", Integer),
    Column("body", Text, nullable=False),
    UniqueConstraint("kind", "id"),
    Index("documents_ended", "kind", "ended_at"),
    Index("documents_state", "kind", "state"),
    Index("documents_guest", "guest"),
    Index("documents_source", "source"),
    Index("documents_destination", "destination"),
    Index("documents_evacuation", "evacuation"),
    Index("documents_command", "command"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("event_id", Integer, primary_key=True),
    Column("sequence", Integer, nullable=False),
    Column("time", Integer, nullable=False),
    Column("subject", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("body", Text, nullable=False),
    Index("events_subject", "subject", "subject_id", "event_id"),
)

commands = Table(
    "commands",
    metadata,
    Column("key", Text, primary_key=True),
    Column("verb", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("body", Text, nullable=False),
    #: Who asked, by which interface, from where, as JSON.
    Column("caller", Text, nullable=False),
    Column("claimed_at", Integer, nullable=False),
    Column("answered_at", Integer),
    #: 1 once nothing more will be said to it.
    Column("settled", Integer, nullable=False),
    #: As JSON; empty while it is being carried out.
    Column("reply", Text),
    Index("commands_claimed", "claimed_at"),
    Index("commands_settled", "settled"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    #: SHA-256 of the secret, in hexadecimal.
    Column("hash", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer),
    Column("revoked_at", Integer),
)

sessions = Table(
    "sessions",
    metadata,
    #: SHA-256 of what the browser has, in hexadecimal.
    Column("hash", Text, primary_key=True),
    #: Id of the token that it was begun with, and ends with.
    Column("token", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("ends_at", Integer, nullable=False),
    #: When it was signed out.
    Column("ended_at", Integer),
)

samples = Table(
    "samples",
    metadata,
    Column("migration", Text, primary_key=True),
    #: Microseconds since the first command that changed anything.
    Column("at", Integer, primary_key=True, autoincrement=False),
    #: The rest of a :class:`migrator.core.migration.downsampling.Point`, as JSON; figures that are 0 are left out.
    Column("body", Text, nullable=False),
    sqlite_with_rowid=False,
)

meta = Table(
    "meta",
    metadata,
    #: ``last_event_id``: the largest that was removed or reserved; ``probe``: when it was last tried to be written;
    #: ``life``: the mark of the last start (:mod:`migrator.store.belonging`).
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


def present(path: Path) -> str | None:
    """The revision of the database there; ``None`` when it is empty.

    :raise sqlite3.Error: it cannot be read.
    """
    with closing(_connect(path)) as connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone():
            return None
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # that one is: no such table
                raise
            row = None
    if row is None:
        raise JournalError(f"{path} is a database, but not a journal of migrator: name another file")
    return str(row[0])


def upgrade(path: Path, *, since: str | None) -> None:
    """Bring the database there from the revision `since` to :data:`HEAD`, whole or not at all.

    Unless it is empty a copy of it is kept beside it, named ``.before-`` and the new revision.

    :raise JournalError: it was written by a newer migrator; nothing was changed.
    :raise sqlite3.Error: it cannot be done; nothing was changed.
    """
    # Only where there is something to do: it takes a while to import.
    from alembic import command  # noqa: PLC0415

    config = _alembic()
    if since is not None:
        if not knows(since):
            raise JournalError(
                f"the journal {path} was written by a newer migrator (its schema is {since}, this one knows {HEAD}): "
                f"install that one again, or go back to the copy {path.name}.before-{since} if you can do without "
                "what was written since"
            )
        keep_copy(path, path.with_name(f"{path.name}.before-{HEAD}"))
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except SQLAlchemyError as error:
        if isinstance(error.__cause__, sqlite3.Error):
            raise error.__cause__ from error
        raise JournalError(f"the journal {path} cannot be brought to schema {HEAD}: {error}") from error
    finally:
        engine.dispose()


def knows(revision: str) -> bool:
    """It is this version's own, or one that this version can bring the database from."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    return revision in {each.revision for each in ScriptDirectory.from_config(_alembic()).walk_revisions()}


def _alembic() -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return config


def keep_copy(path: Path, copy: Path) -> None:
    """A copy of the database at `path`, what is in its write-ahead log included; whole or not there.

    :raise sqlite3.Error: it cannot be made.
    """
    beginning = copy.with_name(f"{copy.name}.new")
    try:
        beginning.unlink(missing_ok=True)
        os.close(os.open(beginning, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with closing(_connect(path)) as connection, closing(_connect(beginning)) as target:
            connection.backup(target)
        with beginning.open("rb") as file:
            os.fsync(file.fileno())
        beginning.replace(copy)
    except OSError as error:
        raise sqlite3.OperationalError(f"cannot copy it to {copy}: {error.strerror}") from error
    finally:
        if beginning.is_file():
            beginning.unlink()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
