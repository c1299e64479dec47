"""The database of the journal: many readers, one writer, and errors in words, whichever database it is.

What was written is committed when a call returns, and on disk. Leases of a server are written on a connection of their
own: nothing that is written beside them, however much it is and whatever it waits for, ends them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from sqlalchemy import Dialect, Executable
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from migrator.awake import timeout_while_awake
from migrator.errors import JournalError
from migrator.ports import Lease
from migrator.store.backend import DATABASE_ERRORS, LEASES, Backend, Place, Remedy, Server
from migrator.store.sqlite import FILE_TIMEOUTS, FileTimeouts, SqliteFile
from migrator.store.writer import Job, Writer

#: Those who read at once.
_READERS = 4
T = TypeVar("T")


class Database:
    """A database that is open. Use :meth:`open`; :meth:`close` must be called, or the process does not end.

    :ivar lease: gives the right to every write that belongs to no other, where only one service may use it.
    :ivar on_write: told the seconds of every write that is on disk; must return at once.
    :ivar on_error: told ``write`` of every write that failed; likewise.
    """

    def __init__(self, backend: Backend) -> None:
        self.lease: Lease | None = None
        self.on_write: Callable[[float], None] = lambda seconds: None
        self.on_error: Callable[[str], None] = lambda operation: None
        self._backend = backend
        self._readers = backend.engine(connections=_READERS)
        #: Taken before a connection is, so that who waits for others is told from who waits for the database.
        self._turns = asyncio.Semaphore(_READERS)
        self._closing = False
        self._writer = Writer(backend, name="writer", lost=self._readers.dispose)
        self._lease_writer = self._writer
        if backend.writers_go_beside_each_other:
            self._lease_writer = Writer(backend, name=LEASES, lost=self._readers.dispose)

    @classmethod
    async def open(
        cls, place: Place, *, alone: bool = True, timeouts: FileTimeouts = FILE_TIMEOUTS
    ) -> Database:
        """Open or make it, and bring its schema to this version.

        A disk that is full or cannot be written is no reason not to open what is there: :attr:`complaint` says so then.

        :param alone: keep every other service away, for as long as it is open: from a file, or of a server from the
            state directory.
        :param timeouts: of a file; a server's are in its :class:`~migrator.store.backend.Server`.
        :raise JournalError: it cannot be read, another service has it, or it is of a newer version. Nothing was
            changed.
        """
        if isinstance(place, Server):
            # Only where one is used: its client takes a while to import.
            from migrator.store.postgresql import PostgresServer  # noqa: PLC0415

            return cls(await PostgresServer.prepare(place, alone=alone))
        return cls(await SqliteFile.prepare(place, alone=alone, timeouts=timeouts))

    @property
    def name(self) -> str:
        """Return where it is, as messages say it."""
        return self._backend.name

    @property
    def complaint(self) -> str:
        """Return why it cannot be written now, in one line; empty while it can."""
        return self._writer.complaint or self._lease_writer.complaint

    @property
    def dialect(self) -> Dialect:
        """Return the dialect of SQL that the database speaks."""
        return self._readers.dialect

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Return the result of `work`, read from one moment. It may be called a second time, on another connection.

        :raise JournalError: it cannot be read.
        """
        if self._closing:
            raise JournalError(f"the journal {self.name} is closed")
        try:
            async with timeout_while_awake(self._backend.timeout_seconds):
                await self._turns.acquire()
        except TimeoutError as error:
            raise JournalError(
                f"the journal {self.name} is asked for more than it can answer: others have read it for "
                f"{self._backend.timeout_seconds:g} s; try again in a while"
            ) from error
        try:
            try:
                return await self._found(work)
            except DATABASE_ERRORS as error:
                if self._backend.remedy(error) is not Remedy.RETRY:
                    raise
                await self._readers.dispose()
                return await self._found(work)
        except DATABASE_ERRORS as error:
            raise JournalError(self._backend.in_words(error, "read")) from error
        finally:
            self._turns.release()

    async def _found(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with (
            timeout_while_awake(self._backend.timeout_seconds),
            self._readers.connect() as connection,
            self._backend.bounded(connection),
            connection.begin(),
        ):
            return await work(connection)

    def listening_engine(self) -> AsyncEngine:
        """Return an engine of its own for whoever listens; the caller disposes of it."""
        return self._backend.engine(connections=1)

    def bounded(self, connection: AsyncConnection) -> AbstractAsyncContextManager[None]:
        """See :meth:`migrator.store.backend.Backend.bounded`."""
        return self._backend.bounded(connection)

    async def now(self, connection: AsyncConnection) -> int:
        """Return the microseconds since the epoch by the clock that all who use the database share."""
        return await self._backend.now(connection)

    async def write_unleased(
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, first: bool = False
    ) -> T:
        """Write like :meth:`write`, for what gives leases or ends them: it belongs to none.

        :param first: beside all that is or waits to be written, however much that is; of a file before what waits.
        """
        result: T = await self._do(Job(work, first=first), self._lease_writer if first else self._writer)
        return result

    async def write(
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        *,
        lease: Lease | None = None,
        order: str = "",
    ) -> T:
        """Do `work`; committed and on disk when this returns.

        Once begun it is carried on with, also when whoever asked is cancelled.

        :param order: of those that are done in one transaction it comes behind what has a smaller one: two controllers
            that lock rows of several subjects then never wait for each other.
        :raise JournalError: it cannot be written; nothing of it was. (Of a disk or a server that does not answer at
            all nobody can know; the error says so.)
        :raise LeaseLost: `lease`, which gives the right to it, does not hold any more; nothing was written.
        """
        result: T = await self._do(Job(work, lease=lease or self.lease, order=order))
        return result

    async def write_rows(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]], *, lease: Lease | None = None
    ) -> None:
        """Execute `statement` for each of `rows`, as :meth:`write` does; cheaper where many do the same.

        :param statement: always the same object; in which order several of them are executed is left open.
        """
        await self._do(Job(statement=statement, rows=rows, lease=lease or self.lease))

    def queue(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]], *, lease: Lease | None = None
    ) -> asyncio.Future[Any]:
        """Write like :meth:`write_rows`, in turn behind what was asked for before, without waiting for anything.

        :return: done when it is committed, or with the error that :meth:`write_rows` would have raised; nobody has to
            look.
        """
        job = Job(statement=statement, rows=rows, lease=lease or self.lease)
        self._writer.put(job)
        return job.done

    async def _do(self, job: Job, writer: Writer | None = None) -> Any:
        began = time.monotonic()
        try:
            result = await (writer or self._writer).do(job)
            self.on_write(time.monotonic() - began)
            return result
        except JournalError:
            self.on_error("write")
            raise

    async def close(self) -> None:
        """Write what is still to be written, and let go of it."""
        if self._closing:
            return
        self._closing = True
        try:
            await self._writer.close()
            if self._lease_writer is not self._writer:
                await self._lease_writer.close()
        finally:
            await self._readers.dispose()
            await self._backend.close()
