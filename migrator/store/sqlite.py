"""A journal in one file of SQLite: made, upgraded, kept to one service, and its errors in words.

What was written is on disk when its transaction has ended (write-ahead log, full sync).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from migrator.errors import JournalError
from migrator.store import schema
from migrator.store.backend import UNSURE, Remedy, cause, close_what_is_lent
from migrator.store.lock import locked, owned

#: How long another connection's lock is waited for. Only ``migrator token`` ever holds one, for milliseconds.
BUSY_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class FileTimeouts:
    """How long a journal in a file is waited for."""

    #: A disk that does not answer for so long is said to have failed.
    answer_seconds: float = 30.0
    #: Another connection's lock.
    lock_seconds: float = BUSY_SECONDS


FILE_TIMEOUTS = FileTimeouts()


class SqliteFile:
    """See :class:`migrator.store.backend.Backend`."""

    def __init__(self, path: Path, lock: int, timeouts: FileTimeouts) -> None:
        self._path = path
        self._lock = lock
        self._timeouts = timeouts

    @classmethod
    async def prepare(cls, path: Path, *, alone: bool, timeouts: FileTimeouts = FILE_TIMEOUTS) -> Self:
        """Open or make it, and bring its schema to this version.

        :param alone: keep every other service away from it, until :meth:`close`.
        :raise JournalError: it cannot be read, another service has it, or it is of a newer version. Nothing was
            changed.
        """
        try:
            return cls(path, await asyncio.to_thread(_prepare, path, alone=alone), timeouts)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(_in_words(path, error, "opened", waited=timeouts.answer_seconds)) from error

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def timeout_seconds(self) -> float:
        return self._timeouts.answer_seconds

    @property
    def writers_go_beside_each_other(self) -> bool:
        return False

    def engine(self, *, connections: int, writer: str = "") -> AsyncEngine:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{self._path}",
            # Transactions begin as we say, below.
            connect_args={"timeout": self._timeouts.lock_seconds, "isolation_level": None},
            pool_size=connections,
            max_overflow=0,
            pool_timeout=100 * self.timeout_seconds,  # whoever waits gives up before that
        )

        @event.listens_for(engine.sync_engine, "connect")
        def settings(connection: Any, record: Any) -> None:  # noqa: ARG001 - SQLAlchemy calls it so
            cursor = connection.cursor()
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA journal_size_limit = 67108864")
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def begins(connection: Any) -> None:
            # A reader that turned writer could fail with the lock held by another; a writer says so at once.
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")

        close_what_is_lent(engine)
        return engine

    @asynccontextmanager
    async def bounded(self, connection: AsyncConnection) -> AsyncIterator[None]:  # noqa: ARG002 - the port's
        yield  # a disk that hangs lets nobody go

    async def mark(self, connection: AsyncConnection, writer: str, batch: int) -> None:
        """Do nothing: what became of a COMMIT is always heard, or the process hangs with it."""

    async def committed(self, engine: AsyncEngine, writer: str, batch: int) -> bool:  # noqa: ARG002 - the port's
        return False

    async def now(self, connection: AsyncConnection) -> int:  # noqa: ARG002 - the port's
        return time.time_ns() // 1000  # all who use it are on this machine

    def remedy(self, error: BaseException) -> Remedy:
        code = _code(error)
        if code in _PASSING:
            return Remedy.WAIT
        # What was opened while it was read-only remains so as long as one connection is left.
        return Remedy.RETRY if code == sqlite3.SQLITE_READONLY else Remedy.RECONNECT

    def in_words(self, error: BaseException, what: str, *, unsure: bool = False) -> str:
        more = f"; {UNSURE}" if unsure else ""
        return _in_words(self._path, error, what, more, waited=self.timeout_seconds)

    async def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _prepare(path: Path, *, alone: bool) -> int:
    """Make the database ready; the file descriptor that keeps other services away, or -1."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = locked(path) if alone else -1
    try:
        if not path.exists():
            os.close(owned(path, os.O_WRONLY))
        revision = present(path)
        if revision != schema.HEAD:
            # Never under a service that runs.
            meanwhile = -1 if alone else locked(path, revision)
            try:
                if revision is None:
                    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as fresh:
                        fresh.execute("PRAGMA journal_mode = WAL")
                upgrade(path, since=revision)
            finally:
                if meanwhile >= 0:
                    os.close(meanwhile)
    except BaseException:
        if lock >= 0:
            os.close(lock)
        raise
    return lock


#: Opening it afresh would help none of these, and a full disk may have no room for that.
_PASSING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

#: By SQLite's result code, or the primary one it belongs to: what is wrong, and what to do.
_WORDS = {
    sqlite3.SQLITE_FULL: "the disk is full: make room there",
    sqlite3.SQLITE_READONLY: "it is read-only: look at its owner, its mode, and whether its file system is",
    sqlite3.SQLITE_BUSY: "another program has locked it: see who has it open (fuser)",
    sqlite3.SQLITE_LOCKED: "another program has locked it: see who has it open (fuser)",
    sqlite3.SQLITE_CORRUPT: "it is damaged: stop the service, move it away, put the last backup in its place",
    sqlite3.SQLITE_NOTADB: "it is no database: move it away, put the last backup in its place",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: look at the rights and the room in its directory",
    sqlite3.SQLITE_PERM: "it cannot be opened: look at the rights in its directory",
    # The file that readers and writers share beside the journal cannot be made larger.
    sqlite3.SQLITE_IOERR_SHMSIZE: "the disk is full: make room there",
    sqlite3.SQLITE_IOERR: "the disk does not do what it should: look at the kernel's log",
}


def _code(error: BaseException) -> int | None:
    """Return SQLite's primary result code."""
    code: int | None = getattr(cause(error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _in_words(path: Path, error: BaseException, what: str, more: str = "", *, waited: float) -> str:
    found = cause(error)
    if isinstance(found, sqlite3.Error):
        why = _WORDS.get(getattr(found, "sqlite_errorcode", -1)) or _WORDS.get(_code(found) or -1)
        why = f"{why} ({found})" if why else str(found)
    elif isinstance(found, TimeoutError):
        why = f"the disk does not answer (waited {waited:g} s{more})"
    elif isinstance(found, OSError):
        why = f"{found.strerror or found}{_what_to_do(path, found)}"
    else:
        why = str(found)
    return f"the journal {path} cannot be {what}: {' '.join(why.split())}"


def _what_to_do(path: Path, error: OSError) -> str:
    match error:
        case PermissionError():
            return (
                f": the service's user must be able to write {path.parent}, and what is to use the journal beside the "
                "service has to be run as that user"
            )
        case FileExistsError() | NotADirectoryError():
            return f": {path.parent} has to be a directory, and so has all above it; move away what is there"
    return ""


def present(path: Path) -> str | None:
    """Return the revision of the database there; ``None`` when it is empty.

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
    """Bring the database there from the revision `since` to :data:`migrator.store.schema.HEAD`, whole or not at all.

    Unless it is empty a copy of it is kept beside it, named ``.before-`` and the new revision.

    :raise JournalError: it was written by a newer migrator; nothing was changed.
    :raise sqlite3.Error: it cannot be done; nothing was changed.
    """
    if since is not None:
        if not schema.knows(since):
            raise JournalError(
                f"the journal {path} was written by a newer migrator (its schema is {since}, this one knows "
                f"{schema.HEAD}): install that one again, or go back to the copy {path.name}.before-{since} if you "
                "can do without what was written since"
            )
        keep_copy(path, path.with_name(f"{path.name}.before-{schema.HEAD}"))
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            schema.upgrade(connection)
            connection.commit()
    except SQLAlchemyError as error:
        if isinstance(error.__cause__, sqlite3.Error):
            raise error.__cause__ from error
        raise JournalError(
            f"the journal {path} cannot be brought to schema {schema.HEAD}: {error}"
        ) from error
    finally:
        engine.dispose()


def keep_copy(path: Path, copy: Path) -> None:
    """Keep a copy of the database at `path`, what is in its write-ahead log included; whole or not there.

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
