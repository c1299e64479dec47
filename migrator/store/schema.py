"""The journal's tables, and how a database is brought to this version of them.

A document is kept whole, as JSON; the columns beside it are what is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Dialect,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy import text as sql

if TYPE_CHECKING:
    from alembic.config import Config

#: The revision in ``alembic/versions`` that the tables below are; a test holds them together.
HEAD = "0011"
#: The oldest revision whose controllers may go on while the database is of :data:`HEAD`: what came since then takes
#: nothing from them. A newer version that has to migrate the schema waits until every older one has gone.
OLDEST_READER = "0011"
#: Key in ``meta``: the version of the live documents that were written last.
LIVE_VERSION = "live_version"
#: Key in ``meta``: ``[site] name`` of the controller that acted last.
SITE_NAME = "site name"
#: Of the table `meta`, where several controllers share the journal: what they mark QEMUs with.
CONTROLLER = "controller"
SCRIPTS = Path(__file__).parent / "alembic"

#: 64 bits everywhere: SQLite's INTEGER has them, and only a column declared so counts by itself there.
Number = BigInteger().with_variant(Integer, "sqlite")
#: What a NUL stands as where a text may not have one: no text of anybody's has this character.
_NUL = "\ufdd0"


class Name(TypeDecorator[str]):
    """A text from outside that is looked up: names of guests may have a NUL, which PostgreSQL does not take."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the value as it is written."""
        return value if value is None or dialect.name == "sqlite" else value.replace("\0", _NUL)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the value as it was given."""
        return value if value is None or dialect.name == "sqlite" else value.replace(_NUL, "\0")


metadata = MetaData()

_UNFINISHED = sql("ended_at IS NULL")

documents = Table(
    "documents",
    metadata,
    # In the order in which they were first written: a clock that is set back does not disturb it.
    Column("number", Number, primary_key=True),
    Column("kind", Name, nullable=False),
    Column("id", Name, nullable=False),
    Column("state", Name),
    Column("guest", Name),
    #: Of a migration its source, of an evacuation or a host that host.
    Column("source", Name),
    Column("destination", Name),
    Column("evacuation", Name),
    #: Key of the command that began it.
    Column("command", Name),
    # Times in microseconds since the epoch: their text does not sort.
    Column("created_at", Number),
    Column("ended_at", Number),
    Column("body", Text, nullable=False),
    UniqueConstraint("kind", "id"),
    Index("documents_newest", "kind", "number"),
    Index("documents_ended", "kind", "ended_at"),
    Index("documents_unfinished", "kind", "number", sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED),
    # A page is read from one of these, the newest first.
    Index("documents_state", "state", "kind", "number"),
    Index("documents_guest", "guest", "kind", "number"),
    Index("documents_source", "source", "kind", "number"),
    Index("documents_destination", "destination", "kind", "number"),
    Index("documents_evacuation", "evacuation", "kind", "number"),
    Index("documents_command", "command", "kind", "number"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("event_id", Number, primary_key=True),
    Column("sequence", Number, nullable=False),
    Column("time", Number, nullable=False),
    Column("subject", Name, nullable=False),
    Column("subject_id", Name, nullable=False),
    Column("body", Text, nullable=False),
    Index("events_subject", "subject", "subject_id", "event_id"),
)

_WAITING = sql("waiting = 1")

commands = Table(
    "commands",
    metadata,
    Column("key", Name, primary_key=True),
    Column("verb", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("body", Text, nullable=False),
    #: Who asked, by which interface, from where, as JSON.
    Column("caller", Text, nullable=False),
    Column("claimed_at", Number, nullable=False),
    Column("answered_at", Number),
    #: 1 once nothing more will be said to it.
    Column("settled", Integer, nullable=False),
    #: As JSON; empty while it is being carried out.
    Column("reply", Text),
    #: 1 while whoever acts has not carried it out: another controller received it.
    Column("waiting", Integer, nullable=False, server_default="0"),
    #: As it was received, as JSON; of one that another controller received.
    Column("envelope", Text),
    #: Controller that has begun to carry it out: nobody takes it back any more.
    Column("taken_by", Text),
    Index("commands_claimed", "claimed_at"),
    Index("commands_waiting", "claimed_at", sqlite_where=_WAITING, postgresql_where=_WAITING),
    Index("commands_settled", "settled"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Name, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    #: Patterns of the hosts that it is limited to, as JSON; NULL: it is for all.
    Column("hosts", Text),
    #: SHA-256 of the secret, in hexadecimal.
    Column("hash", Text, nullable=False),
    Column("created_at", Number, nullable=False),
    Column("expires_at", Number),
    Column("revoked_at", Number),
)

sessions = Table(
    "sessions",
    metadata,
    #: SHA-256 of what the browser has, in hexadecimal.
    Column("hash", Text, primary_key=True),
    #: Id of the token that it was begun with, and ends with.
    Column("token", Text, nullable=False),
    Column("created_at", Number, nullable=False),
    Column("ends_at", Number, nullable=False),
    #: When it was signed out.
    Column("ended_at", Number),
)

samples = Table(
    "samples",
    metadata,
    Column("migration", Name, primary_key=True),
    #: Microseconds since the first command that changed anything.
    Column("at", Number, primary_key=True, autoincrement=False),
    #: The rest of a :class:`migrator.core.migration.downsampling.Point`, as JSON; figures that are 0 are left out.
    Column("body", Text, nullable=False),
    sqlite_with_rowid=False,
)

meta = Table(
    "meta",
    metadata,
    #: ``last_event_id``: the largest that was removed, reserved or given; ``live_version``: of the last live documents;
    #: ``oldest_reader``: the oldest revision whose controllers may use it; ``probe``: when it was last tried to be
    #: written; ``life``: the mark of the last start (:mod:`migrator.store.belonging`).
    Column("key", Name, primary_key=True),
    Column("value", Text, nullable=False),
)

writers = Table(
    "writers",
    metadata,
    #: Of one that writes, from its start to its end.
    Column("id", Text, primary_key=True),
    #: Its last transaction that was committed: by it one is found again whose COMMIT nobody answered.
    Column("batch", Number, nullable=False),
    Column("written_at", Number, nullable=False),
)

step_records = Table(
    "step_records",
    metadata,
    Column("migration", Name, primary_key=True),
    # As JSON: how things were, what is meant to be done next, how it ended.
    Column("facts", Text, nullable=False),
    Column("intent", Text, nullable=False),
    Column("begun_at", Number, nullable=False),
    Column("noted_at", Number, nullable=False),
    #: 1 once its controller has let go of it: nothing is missing then.
    Column("exact", Integer, nullable=False),
    Column("outcome", Text),
    Column("ended_at", Number),
    Index("step_records_ended", "ended_at"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Name, primary_key=True),
    #: Empty once it was given back.
    Column("owner", Text, nullable=False),
    #: Grows with every owner, and never shrinks: the row stays for that.
    Column("token", Number, nullable=False),
    #: By the database's clock, like what it is compared with.
    Column("taken_at", Number, nullable=False),
    Column("ends_at", Number, nullable=False),
)


controllers = Table(
    "controllers",
    metadata,
    #: Of its lease ``controller/<name>`` too.
    Column("name", Name, primary_key=True),
    Column("instance", Text, nullable=False),
    Column("version", Text, nullable=False),
    #: Revision of the tables that it is written for.
    Column("schema", Text, nullable=False),
    #: Where it answers, or empty.
    Column("url", Text, nullable=False),
    Column("role", Text, nullable=False),
    #: What it waits for, or has to complain of; in one line.
    Column("detail", Text, nullable=False),
    # By the database's clock.
    Column("started_at", Number, nullable=False),
    Column("seen_at", Number, nullable=False),
    #: How long its leases hold without being renewed, in microseconds; a version before 0009 does not say.
    Column("lease_length", Number),
    #: Names of the hosts in its configuration, as JSON; a version before 0009 does not say.
    Column("hosts", Text),
    #: How many it drives.
    Column("migrations", Number),
)

assignments = Table(
    "assignments",
    metadata,
    Column("migration", Name, primary_key=True),
    #: Name of the controller that drives it, and the token of its lease when it was given.
    Column("driver", Text, nullable=False),
    Column("driver_token", Number, nullable=False),
    #: Of its lease ``migration/<id>`` too.
    Column("number", Number, nullable=False),
    # As JSON: what was given, what is wanted of it, what its driver said last.
    Column("given", Text, nullable=False),
    Column("requests", Text, nullable=False),
    Column("report", Text),
    #: 1 once its driver has let go of it, 2 once it was taken from its driver.
    Column("released", Integer, nullable=False),
    Index("assignments_driver", "driver"),
)

live_documents = Table(
    "live_documents",
    metadata,
    Column("kind", Name, primary_key=True),
    Column("id", Name, primary_key=True),
    #: Name of the controller that wrote it.
    Column("writer", Text, nullable=False),
    #: Larger than that of everything written before it, whoever wrote that.
    Column("version", Number, nullable=False),
    #: Of the last event that it takes into account.
    Column("sequence", Number, nullable=False),
    #: Empty: there is no such document any more.
    Column("body", Text),
    Index("live_documents_version", "version"),
)


def load() -> None:
    """Import what :func:`upgrade` takes, which may be done before it."""
    from alembic import command  # noqa: F401, PLC0415


def upgrade(connection: Connection) -> None:
    """Bring the database to :data:`HEAD`, in the transaction that is open on `connection`."""
    # Only where there is something to do: it takes a while to import.
    from alembic import command  # noqa: PLC0415

    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def knows(revision: str) -> bool:
    """Tell whether a revision is this version's own, or one that this version can bring the database from."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    return revision in {each.revision for each in ScriptDirectory.from_config(_alembic()).walk_revisions()}


def _alembic() -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return config
