"""A journal in a PostgreSQL database, which several may use: reached, upgraded, and its errors in words.

A server that restarts, or that another one takes the place of, is no reason to restart the service: what fails with the
connection is tried once more on a new one. A transaction whose COMMIT nobody answered is looked for by what it wrote.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy import BigInteger, Connection, bindparam, delete, event, inspect, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from migrator.errors import JournalError, UpgradeWaits, UsageError
from migrator.ports.controllers import controller_lease
from migrator.store import schema, server_errors
from migrator.store.backend import DATABASE_ERRORS, LEASES, UNSURE, Remedy, Server, close_what_is_lent
from migrator.store.lock import locked
from migrator.store.schema import writers
from migrator.tls import File, client_context

#: Limit of one read or write: a transaction that fails, a new connection, and the transaction once more.
_TIMEOUT_SECONDS = 12.0
#: Of the seconds in which a server has to answer: so long a lock is waited for, by default and by role. What keeps one
#: lease locked shall not make another end meanwhile; they are asked for again soon.
_LOCK_SHARE, _LOCK_SHARES = 0.6, {"start": 1.0, LEASES: 0.1}
#: One transaction at a time looks at the schema and changes it, whichever process it is of.
_UPGRADING = 0x6D69677261746F72  # "migrator"

#: Of this instant, not of the transaction's beginning.
_NOW = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")
_REVISION = text("SELECT version_num FROM alembic_version")
_OLDEST_READER = text("SELECT value FROM meta WHERE key = 'oldest_reader'")
_KEEP_OLDEST_READER = text(
    "INSERT INTO meta (key, value) VALUES ('oldest_reader', :oldest) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
#: Controllers that live, and the schema that each is written for; a version before 0007 has no row, only its lease.
_LIVES = text(
    "SELECT owner FROM leases WHERE owner <> '' AND ends_at > extract(epoch FROM clock_timestamp()) * 1000000"
)
_SITE_NAME = text("SELECT value FROM meta WHERE key = :key")
_LIVE_CONTROLLERS = text(
    "SELECT c.name, c.instance, c.schema, c.version "
    "FROM controllers c JOIN leases l ON l.name = 'controller/' || c.name "
    "WHERE l.owner <> '' AND l.ends_at > extract(epoch FROM clock_timestamp()) * 1000000 ORDER BY c.instance"
)
_UNFINISHED = "SELECT count(*) FROM documents WHERE kind = 'migration' AND ended_at IS NULL"
_lock_schema = text("SELECT pg_advisory_xact_lock(:key)").bindparams(bindparam("key", type_=BigInteger))
#: What is left of the writer's own connections that were given up: nothing of them is carried out after this.
_end_own = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = :name AND pid <> pg_backend_pid() AND datname = current_database()"
)


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """The state of the journal on a server."""

    #: Of PostgreSQL, as 15.
    version: int
    #: ``None``: it has no journal yet.
    schema: str | None
    #: Migrations that have not ended.
    unfinished: int
    #: ``[site] name`` of the controller that acted last; ``None``: none did.
    site: str | None = None
    #: Instances of the controllers that live, by their names.
    controllers: Mapping[str, str] = field(default_factory=dict)


class PostgresServer:
    """See :class:`migrator.store.backend.Backend`."""

    def __init__(self, server: Server) -> None:
        """:raise JournalError: the address or a file of TLS cannot be used."""
        self._url = _url(server)
        self._connect_args: dict[str, Any] = {
            "timeout": server.connect_seconds,
            "ssl": _tls(server, self._url),
            # Of several hosts in the URL the one that takes writes, whichever that is by now.
            "target_session_attrs": "read-write" if _hosts(self._url) > 1 else "any",
        }
        if server.password:
            self._connect_args["password"] = server.password
        self._answer_seconds = server.answer_seconds
        #: Settings of each connection that depend on the server's own.
        self._settings: dict[str, str] = {}
        self._id = secrets.token_hex(8)
        self._lock = -1

    @classmethod
    async def prepare(cls, server: Server, *, alone: bool) -> Self:
        """Reach it, and bring its schema to this version, whole or not at all.

        :param alone: no other service of this machine has the same state directory, until :meth:`close`.
        :raise JournalError: it cannot be reached, is of a newer version, or a service of another version uses it.
            Nothing was changed.
        """
        backend = cls(server)
        try:
            if alone and server.beside is not None:
                server.beside.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                backend._lock = locked(server.beside)
            await backend._prepare()
        except OSError as error:
            backend._unlock()
            why = error.strerror or str(error)
            raise JournalError(f"the state directory of {backend.name} cannot be used: {why}") from error
        except BaseException:
            backend._unlock()
            raise
        return backend

    @classmethod
    async def examine(cls, server: Server) -> ServerState:
        """Look at it, and change nothing.

        :raise JournalError: it cannot be reached or read.
        """
        backend = cls(server)
        engine = backend._engine(poolclass=NullPool)
        try:
            async with engine.connect() as connection, backend.bounded(connection), connection.begin():
                number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
                there = await connection.run_sync(lambda each: inspect(each).get_table_names())
                if "alembic_version" not in there:
                    return ServerState(version=number // 10000, schema=None, unfinished=0)
                revision = (await connection.execute(_REVISION)).scalar()
                unfinished = await connection.execute(text(_UNFINISHED))
                site = (await connection.execute(_SITE_NAME, {"key": schema.SITE_NAME})).scalar()
                live = await connection.execute(_LIVE_CONTROLLERS) if "controllers" in there else ()
                return ServerState(
                    version=number // 10000,
                    schema=str(revision),
                    unfinished=int(unfinished.scalar_one()),
                    site=site,
                    controllers={row.name: row.instance for row in live},
                )
        except DATABASE_ERRORS as error:
            raise JournalError(backend.in_words(error, "read")) from error
        finally:
            await engine.dispose()

    @classmethod
    async def say_waiting(
        cls, server: Server, *, name: str, instance: str, version: str, detail: str, seconds: float
    ) -> None:
        """Show a controller that waits for older ones to go among those that are there, for so many seconds.

        A help for people: where the older tables have no room for it, or nothing can be written, nothing is said.
        """
        backend = cls(server)
        engine = backend._engine(poolclass=NullPool)
        given = {
            "name": name,
            "instance": instance,
            "version": version,
            "schema": schema.HEAD,
            "detail": detail,
            "lease": controller_lease(name),
            "length": round(seconds * 1e6),
        }
        try:
            async with engine.connect() as connection, backend.bounded(connection), connection.begin():
                await connection.execute(_SAY_WAITING, given)
        except DATABASE_ERRORS:
            pass  # it is in the log, and shown as this service's status
        finally:
            await engine.dispose()

    async def _prepare(self) -> None:
        engine = self._engine(poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                async with connection.begin():
                    current = await connection.run_sync(_is_current)
                if not current:
                    schema.load()  # takes a while, and a transaction that idles meanwhile is ended by the server
                transaction = await connection.begin()
                await connection.execute(_lock_schema, {"key": _UPGRADING})
                if (await connection.execute(text("SHOW synchronous_commit"))).scalar_one() == "off":
                    # What was answered would be forgotten by a server that crashes, and who has which lease.
                    self._settings["synchronous_commit"] = "on"
                await connection.run_sync(self._upgrade)
                await transaction.commit()
        except DATABASE_ERRORS as error:
            raise JournalError(self.in_words(error, "opened")) from error
        finally:
            await engine.dispose()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _upgrade(self, connection: Connection) -> None:
        there = inspect(connection).get_table_names()
        if not there:
            self._migrate(connection)
            return
        if "alembic_version" not in there or "documents" not in there:
            raise JournalError(
                f"{self.name} has tables of another program, and no journal of migrator: name a database of its own"
            )
        revision = str(connection.execute(_REVISION).scalar())
        if revision == schema.HEAD:
            return
        if not schema.knows(revision):
            oldest = connection.execute(_OLDEST_READER).scalar()
            if oldest is not None and str(oldest) <= schema.HEAD:
                return  # what is newer there takes nothing from this version
            raise JournalError(
                f"the journal {self.name} was written by a newer migrator (its schema is {revision}, this one knows "
                f"{schema.HEAD}): install that one here too"
            )
        if older := _older_controllers(connection, there, revision):
            raise UpgradeWaits(
                f"the journal {self.name} has to be migrated from schema {revision} to {schema.HEAD}, and older "
                f"controllers are there that could not read it any more: {', '.join(older)}. Stop them; this one waits"
            )
        self._migrate(connection)

    def _migrate(self, connection: Connection) -> None:
        schema.upgrade(connection)
        connection.execute(_KEEP_OLDEST_READER, {"oldest": schema.OLDEST_READER})

    @property
    def name(self) -> str:
        return self._url.set(drivername="postgresql").render_as_string()

    @property
    def timeout_seconds(self) -> float:
        return _TIMEOUT_SECONDS

    @property
    def writers_go_beside_each_other(self) -> bool:
        return True

    def engine(self, *, connections: int, writer: str = "") -> AsyncEngine:
        if writer:
            return self._engine(
                pool_size=connections, max_overflow=0, role=writer, pool_timeout=_TIMEOUT_SECONDS
            )
        return self._engine(
            pool_size=connections,
            max_overflow=0,
            pool_timeout=100 * _TIMEOUT_SECONDS,  # whoever waits gives up before that
            # A picture of one moment.
            isolation_level="REPEATABLE READ",
            role="reader",
        )

    def _engine(self, *, role: str = "start", **options: Any) -> AsyncEngine:
        answer = str(round(self._answer_seconds * 1000))
        server_settings = {
            "application_name": self._application(role),
            "jit": "off",
            # Before the connection is given up: what was waited for can be told then, and nothing of it was done.
            "lock_timeout": str(round(self._answer_seconds * _LOCK_SHARES.get(role, _LOCK_SHARE) * 1000)),
            # What takes too long is given up by us.
            "statement_timeout": "0",
            # A transaction that nobody goes on with holds its locks no longer than that.
            "idle_in_transaction_session_timeout": answer,
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
            **self._settings,
        }
        engine = create_async_engine(
            self._url, connect_args={**self._connect_args, "server_settings": server_settings}, **options
        )

        @event.listens_for(engine.sync_engine, "close")
        def closes(connection: Any, record: Any) -> None:  # noqa: ARG001 - SQLAlchemy calls it so
            # Nothing is said to the server first: one that is frozen would be waited for without end.
            connection.driver_connection.terminate()

        close_what_is_lent(engine)
        return engine

    def _application(self, role: str) -> str:
        return f"migrator {role} {self._id}"

    @asynccontextmanager
    async def bounded(self, connection: AsyncConnection) -> AsyncIterator[None]:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        # Not cancelled: who is cancelled would wait for the server to say that it has stopped.
        timer = asyncio.get_running_loop().call_later(self._answer_seconds, raw.terminate)
        try:
            yield
        finally:
            timer.cancel()

    async def mark(self, connection: AsyncConnection, writer: str, batch: int) -> None:
        """Mark the transaction before anything else: at this row it waits for an earlier one that still goes on."""
        row = {"id": self._writer_id(writer), "batch": batch, "written_at": time.time_ns() // 1000}
        await connection.execute(_MARK, row)

    def _writer_id(self, writer: str) -> str:
        return f"{self._id} {writer}"

    async def committed(self, engine: AsyncEngine, writer: str, batch: int) -> bool:
        async with engine.connect() as connection, self.bounded(connection), connection.begin():
            await connection.execute(_end_own, {"name": self._application(writer)})
            found = await connection.execute(
                select(writers.c.batch).where(writers.c.id == self._writer_id(writer)).with_for_update()
            )
            return bool(found.scalar() == batch)

    async def now(self, connection: AsyncConnection) -> int:
        return int((await connection.execute(_NOW)).scalar_one())

    def remedy(self, error: BaseException) -> Remedy:
        return server_errors.remedy(error)

    def in_words(self, error: BaseException, what: str, *, unsure: bool = False) -> str:
        why = server_errors.why(error)
        why = f"{why} ({UNSURE})" if unsure else why
        return f"the journal {self.name} cannot be {what}: {' '.join(why.split())}"

    async def close(self) -> None:
        """Forget these writers; those that cannot be forgotten now are later, with what is old."""
        engine = self._engine(poolclass=NullPool)
        try:
            async with engine.connect() as connection, self.bounded(connection), connection.begin():
                await connection.execute(delete(writers).where(writers.c.id.startswith(f"{self._id} ")))
        except DATABASE_ERRORS:
            pass  # a row of a few bytes
        finally:
            await engine.dispose()
            self._unlock()


_insert_writer = insert(writers)
_MARK = _insert_writer.on_conflict_do_update(
    index_elements=["id"],
    set_={"batch": _insert_writer.excluded.batch, "written_at": _insert_writer.excluded.written_at},
)

_SAY_WAITING = text(
    "WITH clock AS (SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) AS now), lease AS ("
    "INSERT INTO leases (name, owner, token, taken_at, ends_at) "
    "SELECT :lease, :name, 1, now, now + :length FROM clock "
    "ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, token = leases.token + 1, ends_at = excluded.ends_at "
    "WHERE leases.owner IN ('', excluded.owner)) "
    "INSERT INTO controllers (name, instance, version, schema, url, role, detail, started_at, seen_at) "
    "SELECT :name, :instance, :version, :schema, '', 'waiting', :detail, now, now FROM clock "
    "ON CONFLICT (name) DO UPDATE SET version = excluded.version, schema = excluded.schema, role = 'waiting', "
    "detail = excluded.detail, seen_at = excluded.seen_at"
).bindparams(bindparam("length", type_=BigInteger))


def _is_current(connection: Connection) -> bool:
    """Tell whether the tables are of this version."""
    if "alembic_version" not in inspect(connection).get_table_names():
        return False
    return connection.execute(_REVISION).scalar() == schema.HEAD


def _older_controllers(connection: Connection, tables: Collection[str], revision: str) -> list[str]:
    """Return the controllers that live and could not go on with this version's tables."""
    if "leases" not in tables:
        return []
    if "controllers" not in tables:
        owners = sorted({str(owner) for owner in connection.execute(_LIVES).scalars()})
        return [f"{owner} (schema {revision})" for owner in owners]
    return [
        f"{row.instance} (version {row.version}, schema {row.schema})"
        for row in connection.execute(_LIVE_CONTROLLERS)
        if str(row.schema) < schema.OLDEST_READER
    ]


def _url(server: Server) -> URL:
    try:
        url = make_url(server.url)
        if url.drivername == "postgresql+asyncpg" and url.database:
            return url
    except (ArgumentError, ValueError):
        pass
    raise JournalError("[store] url is not of the form postgresql+asyncpg://USER@HOST:PORT/DATABASE")


def _hosts(url: URL) -> int:
    hosts = url.query.get("host", ())
    return 1 if isinstance(hosts, str) else max(1, len(hosts))


def _tls(server: Server, url: URL) -> ssl.SSLContext | bool:
    hosts = [url.host or "", *([given] if isinstance(given := url.query.get("host", ()), str) else given)]
    near = all(not each or each.startswith(("/", "127.")) or each in ("localhost", "::1") for each in hosts)
    if server.tls == "off" or (near and server.tls_ca is None and server.tls_certificate is None):
        return False
    try:
        return client_context(
            ca=_file("tls_ca", server.tls_ca),
            certificate=_file("tls_certificate", server.tls_certificate),
            key=_file("tls_key", server.tls_key),
        )
    except UsageError as error:
        raise JournalError(str(error)) from error


def _file(name: str, path: Any) -> File | None:
    return None if path is None else File(name=f"[store] {name}", path=path)
