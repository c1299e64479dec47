"""The database of the journal: many readers, one writer, and errors in words, whichever database it is.

What was written is committed when a call returns, and on disk. Writes that arrive while the database is busy go into
one transaction: a hundred migrations cost hardly more syncs than one.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from sqlalchemy import Dialect, Executable
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from migrator.awake import timeout_while_awake
from migrator.errors import JournalError, LeaseLost, MigratorError
from migrator.faults import contained
from migrator.ports import Lease
from migrator.store.backend import DATABASE_ERRORS, Backend, Place, Remedy, Server
from migrator.store.leases import holding
from migrator.store.sqlite import FILE_TIMEOUTS, FileTimeouts, SqliteFile

#: Those who read at once.
_READERS = 4
#: Writes in one transaction, at most and at least; more would make the first wait for the last. Where they take longer
#: than so much together the next are fewer: a lease is renewed between two transactions.
_BATCH, _LEAST_BATCH, _TRANSACTION_SECONDS = 200, 5, 0.25
#: Rows that are given to the database before others on the event loop have their turn.
_ROWS_AT_ONCE = 100

T = TypeVar("T")


def parts(rows: Sequence[T], at_once: int = _ROWS_AT_ONCE) -> Iterator[Sequence[T]]:
    """Yield rows in parts that are small enough to be given to the database at once."""
    return (rows[at : at + at_once] for at in range(0, len(rows), at_once))


class _Job:
    """Something to write: either `work`, or rows for a statement."""

    def __init__(
        self,
        work: Callable[[AsyncConnection], Awaitable[Any]] | None = None,
        *,
        statement: Executable | None = None,
        rows: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
        order: str = "",
        first: bool = False,
    ) -> None:
        #: Before all others that wait, in a transaction of its own.
        self.first = first
        #: See :meth:`Database.write`.
        self.order = order
        #: What gives the right to it; once refused it is not done any more.
        self.lease, self.refused = lease, False
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
    :ivar lease: gives the right to every write that belongs to no other, where only one service may use it.
    :ivar on_write: told the seconds of every write that is on disk; must return at once.
    :ivar on_error: told ``write`` of every write that failed; likewise.
    """

    def __init__(self, backend: Backend) -> None:
        self.complaint = ""
        self.lease: Lease | None = None
        self.on_write: Callable[[float], None] = lambda seconds: None
        self.on_error: Callable[[str], None] = lambda operation: None
        self._backend = backend
        self._readers = backend.engine(connections=_READERS, writing=False)
        #: Taken before a connection is, so that who waits for others is told from who waits for the database.
        self._turns = asyncio.Semaphore(_READERS)
        self._writing = backend.engine(connections=1, writing=True)
        self._batches = itertools.count(1)
        #: Writes that are done together.
        self._batch = _BATCH
        self._jobs: deque[_Job] = deque()
        #: Those that come before them.
        self._first: deque[_Job] = deque()
        self._there = asyncio.Event()
        self._closing = False
        self._writer = asyncio.create_task(self._write_all(), name=f"journal writer {backend.name}")

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
        return self._backend.engine(connections=1, writing=False)

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

        :param first: before all that waits to be written, however much that is.
        """
        result: T = await self._do(_Job(work, first=first))
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
        result: T = await self._do(_Job(work, lease=lease or self.lease, order=order))
        return result

    async def write_rows(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]], *, lease: Lease | None = None
    ) -> None:
        """Execute `statement` for each of `rows`, as :meth:`write` does; cheaper where many do the same.

        :param statement: always the same object; in which order several of them are executed is left open.
        """
        await self._do(_Job(statement=statement, rows=rows, lease=lease or self.lease))

    def queue(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]], *, lease: Lease | None = None
    ) -> asyncio.Future[Any]:
        """Write like :meth:`write_rows`, in turn behind what was asked for before, without waiting for anything.

        :return: done when it is committed, or with the error that :meth:`write_rows` would have raised; nobody has to
            look.
        """
        job = _Job(statement=statement, rows=rows, lease=lease or self.lease)
        if self._closing or self._writer.done():
            job.fail(JournalError(f"the journal {self.name} is closed"))
        else:
            self._jobs.append(job)
            self._there.set()
        return job.done

    async def _do(self, job: _Job) -> Any:
        if self._closing or self._writer.done():
            raise JournalError(f"the journal {self.name} is closed")
        waiting = self._first if job.first else self._jobs
        waiting.append(job)
        self._there.set()
        began = time.monotonic()
        try:
            async with timeout_while_awake(self._backend.timeout_seconds):
                result = await asyncio.shield(job.done)
            self.on_write(time.monotonic() - began)
            return result
        except JournalError:
            self.on_error("write")
            raise
        except TimeoutError as error:
            self.on_error("write")
            if job in waiting:
                waiting.remove(job)
            self.complaint = self._backend.in_words(error, "written", unsure=True)
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
            await self._backend.close()

    async def _write_all(self) -> None:
        jobs: list[_Job] = []
        try:
            while True:
                await self._there.wait()
                self._there.clear()
                while waiting := self._first or self._jobs:
                    jobs = [waiting.popleft() for _ in range(min(self._batch, len(waiting)))]
                    jobs.sort(key=lambda job: job.order)
                    began = time.monotonic()
                    try:
                        with contained("the writer of the journal"):
                            await self._commit(jobs)
                    except MigratorError as error:
                        for job in jobs:
                            job.fail(JournalError(str(error)))
                    self._note_seconds(len(jobs), time.monotonic() - began)
                if self._closing:
                    return
        finally:
            for job in (*jobs, *self._first, *self._jobs):
                job.fail(JournalError(f"the journal {self.name} is closed"))

    def _note_seconds(self, count: int, seconds: float) -> None:
        """Note what so many writes took: how many are done together next time."""
        if seconds > _TRANSACTION_SECONDS:
            self._batch = max(_LEAST_BATCH, int(count * _TRANSACTION_SECONDS / seconds))
        else:
            self._batch = min(_BATCH, 2 * self._batch)

    async def _commit(self, jobs: list[_Job], *, afresh: bool = True) -> None:
        try:
            results = await self._transaction(jobs)
        except JournalError as error:  # nobody knows whether they were
            self._fail(jobs, error, str(error))
        except IntegrityError as error:
            if len(jobs) > 1:  # one of them is wrong; the others shall not suffer for it
                for job in jobs:
                    await self._commit([job])
                return
            jobs[0].fail(JournalError(f"the journal {self.name} has another one there already: {error.orig}"))
        except DATABASE_ERRORS as error:
            remedy = self._backend.remedy(error)
            if remedy is not Remedy.WAIT:
                await self._reconnect()
            if afresh and remedy is Remedy.RETRY:
                await self._commit(jobs, afresh=False)
                return
            self._fail(jobs, error, self._backend.in_words(error, "written"))
        else:
            self._succeed(jobs, results)

    async def _reconnect(self) -> None:
        await self._writing.dispose()
        await self._readers.dispose()

    def _succeed(self, jobs: list[_Job], results: list[Any]) -> None:
        self.complaint = ""
        for job, result in zip(jobs, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)

    def _fail(self, jobs: list[_Job], error: BaseException, complaint: str) -> None:
        self.complaint = complaint
        for job in jobs:
            problem = JournalError(complaint)
            problem.__cause__ = error
            job.fail(problem)

    async def _transaction(self, jobs: list[_Job]) -> list[Any]:
        batch, results, committing = next(self._batches), [], False
        try:
            async with (
                self._writing.connect() as connection,
                self._backend.bounded(connection),
                connection.begin(),
            ):
                await self._backend.mark(connection, batch)
                await self._refuse(connection, jobs)
                results = await _done(connection, jobs)
                committing = True
        except DATABASE_ERRORS as error:
            if not committing or self._backend.remedy(error) is not Remedy.RETRY:
                raise
            # The connection was lost over the COMMIT: only the database knows whether it was carried out.
            await self._reconnect()
            try:
                committed = await self._backend.committed(self._writing, batch)
            except DATABASE_ERRORS as unknown:
                raise JournalError(self._backend.in_words(unknown, "written", unsure=True)) from unknown
            if not committed:
                raise
        return results

    async def _refuse(self, connection: AsyncConnection, jobs: list[_Job]) -> None:
        """Refuse the writes whose lease does not hold; the others' leases hold until the transaction has ended."""
        given = {job.lease for job in jobs if job.lease is not None}
        if not given:
            return
        there = await holding(connection, given, await self.now(connection))
        for job in jobs:
            if (lease := job.lease) is None or (lease.name, lease.owner, lease.token) in there:
                continue
            job.refused = True
            job.fail(
                LeaseLost(
                    f"the lease {lease.name} of {lease.owner} does not hold any more: another may have it; "
                    "nothing was written"
                )
            )


async def _done(connection: AsyncConnection, jobs: list[_Job]) -> list[Any]:
    rows: dict[Executable, list[Mapping[str, Any]]] = {}
    for job in jobs:
        if job.statement is not None and not job.refused:
            rows.setdefault(job.statement, []).extend(job.rows)
    for statement, all_rows in rows.items():
        for some in parts(all_rows):
            await connection.execute(statement, some)
    return [await job.work(connection) if job.work and not job.refused else None for job in jobs]
