"""One SQLite database: opened, upgraded, locked; many readers, one writer, and errors in words.

What was written is on disk when a call returns (write-ahead log, full sync). Writes that arrive while the disk is
busy go into one transaction: a hundred migrations cost hardly more syncs than one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Executable, event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from migrator.awake import patience
from migrator.errors import JournalError, MigratorError
from migrator.faults import contained
from migrator.store import schema

#: A disk that does not answer for so long is said to have failed.
_PATIENCE_SECONDS = 30.0
#: Those who read at once.
_READERS = 4
#: Writes in one transaction; more would make the first wait for the last.
_BATCH = 200

T = TypeVar("T")


class _Job:
    """Something to write: either `work`, or rows for a statement."""

    def __init__(
        self,
        work: Callable[[AsyncConnection], Awaitable[Any]] | None = None,
        *,
        statement: Executable | None = None,
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.work = work
        self.statement = statement
        self.rows = rows
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Whoever asked may have gone away.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())

    def fail(self, error: JournalError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Database:
    """A database that is open. Use :meth:`open`; :meth:`close` must be called, or the process does not end.

    :ivar complaint: why it cannot be written now, in one line; empty while it can.
    :ivar on_write: told the seconds of every write that is on disk; must return at once.
    :ivar on_error: told ``write`` of every write that failed; likewise.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.complaint = ""
        self.on_write: Callable[[float], None] = lambda seconds: None
        self.on_error: Callable[[str], None] = lambda operation: None
        self._lock = lock
        self._readers = _engine(path, connections=_READERS, begin="BEGIN")
        #: Taken before a connection is, so that who waits for others is told from who waits for the disk.
        self._turns = asyncio.Semaphore(_READERS)
        # A reader that turned writer could fail with the lock held by another; a writer says so at once.
        self._writing = _engine(path, connections=1, begin="BEGIN IMMEDIATE")
        self._jobs: deque[_Job] = deque()
        self._there = asyncio.Event()
        self._closing = False
        self._writer = asyncio.create_task(self._write_all(), name=f"journal writer {path}")

    @classmethod
    async def open(cls, path: Path, *, alone: bool = True) -> Database:
        """Open or make it, and bring its schema to this version.

        A disk that is full or cannot be written is no reason not to open what is there: :attr:`complaint` says so then.

        :param alone: keep every other service away from it, for as long as it is open.
        :raise JournalError: it cannot be read, another service has it, or it is of a newer version. Nothing was
            changed.
        """
        try:
            lock = await asyncio.to_thread(_prepare, path, alone=alone)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(_in_words(path, error, "opened")) from error
        return cls(path, lock)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What `work` finds, all of it of one moment.

        :raise JournalError: it cannot be read.
        """
        if self._closing:
            raise JournalError(f"the journal {self.path} is closed")
        try:
            async with patience(_PATIENCE_SECONDS):
                await self._turns.acquire()
        except TimeoutError as error:
            raise JournalError(
                f"the journal {self.path} is asked for more than it can answer: others have read it for "
                f"{_PATIENCE_SECONDS:g} s; try again in a while"
            ) from error
        try:
            async with patience(_PATIENCE_SECONDS), self._readers.begin() as connection:
                return await work(connection)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:  # a time-out is an OSError
            raise JournalError(_in_words(self.path, error, "read")) from error
        finally:
            self._turns.release()

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Do `work`; committed and on disk when this returns.

        Once begun it is carried on with, also when whoever asked is cancelled.

        :raise JournalError: it cannot be written; nothing of it was. (Of a disk that does not answer at all nobody can
            know; the error says so.)
        """
        result: T = await self._do(_Job(work))
        return result

    async def write_rows(self, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute `statement` for each of `rows`, as :meth:`write` does; cheaper where many do the same.

        :param statement: always the same object; in which order several of them are executed is left open.
        """
        await self._do(_Job(statement=statement, rows=rows))

    async def _do(self, job: _Job) -> Any:
        if self._closing or self._writer.done():
            raise JournalError(f"the journal {self.path} is closed")
        self._jobs.append(job)
        self._there.set()
        began = time.monotonic()
        try:
            async with patience(_PATIENCE_SECONDS):
                result = await asyncio.shield(job.done)
            self.on_write(time.monotonic() - began)
            return result
        except JournalError:
            self.on_error("write")
            raise
        except TimeoutError as error:
            self.on_error("write")
            if job in self._jobs:
                self._jobs.remove(job)
            self.complaint = (
                f"the journal {self.path} cannot be written: the disk does not answer (waited {_PATIENCE_SECONDS:g} s; "
                "what was asked for last may still be written)"
            )
            raise JournalError(self.complaint) from error

    async def close(self) -> None:
        """Write what is still to be written, and let go of it."""
        if self._closing:
            return
        self._closing = True
        self._there.set()
        try:
            await self._writer
        finally:
            await self._writing.dispose()
            await self._readers.dispose()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    async def _write_all(self) -> None:
        jobs: list[_Job] = []
        try:
            while True:
                await self._there.wait()
                self._there.clear()
                while self._jobs:
                    jobs = [self._jobs.popleft() for _ in range(min(_BATCH, len(self._jobs)))]
                    try:
                        with contained("the writer of the journal"):
                            await self._commit(jobs)
                    except MigratorError as error:
                        for job in jobs:
                            job.fail(JournalError(str(error)))
                if self._closing:
                    return
        finally:
            for job in (*jobs, *self._jobs):
                job.fail(JournalError(f"the journal {self.path} is closed"))

    async def _commit(self, jobs: list[_Job], *, afresh: bool = True) -> None:
        try:
            results = await self._transaction(jobs)
        except IntegrityError as error:
            if len(jobs) > 1:  # one of them is wrong; the others shall not suffer for it
                for job in jobs:
                    await self._commit([job])
                return
            jobs[0].fail(JournalError(f"the journal {self.path} has another one there already: {error.orig}"))
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            if _code(error) not in _PASSING:
                # What was opened while it was read-only remains so as long as one connection is left.
                await self._writing.dispose()
                await self._readers.dispose()
                if afresh and _code(error) == sqlite3.SQLITE_READONLY:
                    await self._commit(jobs, afresh=False)
                    return
            self.complaint = _in_words(self.path, error, "written")
            for job in jobs:
                problem = JournalError(self.complaint)
                problem.__cause__ = error
                job.fail(problem)
        else:
            self.complaint = ""
            for job, result in zip(jobs, results, strict=True):
                if not job.done.done():
                    job.done.set_result(result)

    async def _transaction(self, jobs: list[_Job]) -> list[Any]:
        rows: dict[Executable, list[Mapping[str, Any]]] = {}
        for job in jobs:
            if job.statement is not None:
                rows.setdefault(job.statement, []).extend(job.rows)
        async with self._writing.begin() as connection:
            for statement, all_rows in rows.items():
                await connection.execute(statement, all_rows)
            return [await job.work(connection) if job.work else None for job in jobs]


def _engine(path: Path, *, connections: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        # Transactions begin as we say, below.
        connect_args={"timeout": schema.BUSY_SECONDS, "isolation_level": None},
        pool_size=connections,
        max_overflow=0,
        pool_timeout=100 * _PATIENCE_SECONDS,  # whoever waits gives up before that
    )

    @event.listens_for(engine.sync_engine, "connect")
    def settings(connection: Any, record: Any) -> None:  # noqa: ARG001 - SQLAlchemy calls it so
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA journal_size_limit = 67108864")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begins(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _prepare(path: Path, *, alone: bool) -> int:
    """Make the database ready; the file descriptor that keeps other services away, or -1."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _locked(path) if alone else -1
    try:
        if not path.exists():
            os.close(_owned(path, os.O_WRONLY))
        revision = schema.present(path)
        if revision != schema.HEAD:
            # Never under a service that runs.
            meanwhile = -1 if alone else _locked(path, revision)
            try:
                if revision is None:
                    with contextlib.closing(sqlite3.connect(path, timeout=schema.BUSY_SECONDS)) as fresh:
                        fresh.execute("PRAGMA journal_mode = WAL")
                schema.upgrade(path, since=revision)
            finally:
                if meanwhile >= 0:
                    os.close(meanwhile)
    except BaseException:
        if lock >= 0:
            os.close(lock)
        raise
    return lock


def _locked(path: Path, revision: str | None = None) -> int:
    """Keep every service away from it.

    :param revision: what it is to be upgraded from, where that is why.
    """
    # A file of its own: closing any descriptor of the database would drop SQLite's locks on it.
    lock = _owned(path.with_name(f"{path.name}.lock"), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        if revision is None:
            raise JournalError(
                f"the journal {path} is in use by another service: there can be one; stop it first"
            ) from None
        what_to_do = (
            "restart that service with this version"
            if schema.knows(revision)
            else "use the migrator of that version, which is newer"
        )
        raise JournalError(
            f"the service that runs is of another version (the schema of its journal {path} is {revision}, this "
            f"version's is {schema.HEAD}): {what_to_do}"
        ) from None
    return lock


def _owned(path: Path, flags: int) -> int:
    """Open a file, made where there is none; root makes it for whom the directory belongs to: the service."""
    new = not path.exists()
    file = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if new and os.geteuid() == 0:
        directory = path.parent.stat()
        os.fchown(file, directory.st_uid, directory.st_gid)
    return file


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


def _cause(error: BaseException) -> BaseException:
    """What SQLAlchemy has wrapped."""
    wrapped = getattr(error, "orig", None) or error.__cause__ if isinstance(error, SQLAlchemyError) else None
    return wrapped or error


def _code(error: BaseException) -> int | None:
    """SQLite's primary result code."""
    code: int | None = getattr(_cause(error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _in_words(path: Path, error: BaseException, what: str) -> str:
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        why = _WORDS.get(getattr(cause, "sqlite_errorcode", -1)) or _WORDS.get(_code(cause) or -1)
        why = f"{why} ({cause})" if why else str(cause)
    elif isinstance(cause, TimeoutError):
        why = f"the disk does not answer (waited {_PATIENCE_SECONDS:g} s)"
    elif isinstance(cause, OSError):
        why = f"{cause.strerror or cause}{_remedy(path, cause)}"
    else:
        why = str(cause)
    return f"the journal {path} cannot be {what}: {' '.join(why.split())}"


def _remedy(path: Path, error: OSError) -> str:
    match error:
        case PermissionError():
            return (
                f": the service's user must be able to write {path.parent}, and what is to use the journal beside the "
                "service has to be run as that user"
            )
        case FileExistsError() | NotADirectoryError():
            return f": {path.parent} has to be a directory, and so has all above it; move away what is there"
    return ""
