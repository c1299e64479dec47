"""One connection that writes to the database: what waits for it, and the transactions in which it is done.

Writes that arrive while the database is busy go into one transaction: a hundred migrations cost hardly more syncs than
one.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Executable
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.awake import timeout_while_awake
from migrator.errors import JournalError, LeaseLost, MigratorError
from migrator.faults import contained
from migrator.ports import Lease
from migrator.store.backend import DATABASE_ERRORS, Backend, Remedy
from migrator.store.leases import holding

#: Writes in one transaction, at most and at least; more would make the first wait for the last. Where they take longer
#: than so much together the next are fewer: a lease is renewed between two transactions.
_BATCH, _LEAST_BATCH, _TRANSACTION_SECONDS = 200, 5, 0.25
#: Those that wait for what another program has, in one batch, before the others are given up: each takes seconds.
_WAITED_FOR_APART = 2
#: Rows that are given to the database before others on the event loop have their turn.
_ROWS_AT_ONCE = 100

T = TypeVar("T")


def parts(rows: Sequence[T], at_once: int = _ROWS_AT_ONCE) -> Iterator[Sequence[T]]:
    """Yield rows in parts that are small enough to be given to the database at once."""
    return (rows[at : at + at_once] for at in range(0, len(rows), at_once))


class Job:
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
        #: See :meth:`migrator.store.database.Database.write`.
        self.order = order
        #: What gives the right to it; once refused it is not done any more.
        self.lease, self.refused = lease, False
        self.work = work
        self.statement = statement
        self.rows = rows
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Whoever asked may have gone away.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def failed(self) -> bool:
        """Tell whether it was not done."""
        return self.done.done() and not self.done.cancelled() and self.done.exception() is not None

    def fail(self, error: JournalError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Writer:
    """Writes on one connection, from when it is made until :meth:`close`.

    :param name: tells it from others of this process.
    :param lost: called when connections that were made are of no use any more, those to read with too.
    :ivar complaint: why it cannot write now, in one line; empty while it can.
    """

    def __init__(self, backend: Backend, *, name: str, lost: Callable[[], Awaitable[None]]) -> None:
        self.complaint = ""
        self._backend, self._name, self._lost = backend, name, lost
        self._engine = backend.engine(connections=1, writer=name)
        self._batches = itertools.count(1)
        #: Writes that are done together.
        self._batch = _BATCH
        self._jobs: deque[Job] = deque()
        #: Those that come before them.
        self._first: deque[Job] = deque()
        self._there = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._write_all(), name=f"journal writer {name} {backend.name}")

    def put(self, job: Job) -> None:
        """Have it done in its turn."""
        if self._closing or self._task.done():
            job.fail(JournalError(f"the journal {self._backend.name} is closed"))
            return
        (self._first if job.first else self._jobs).append(job)
        self._there.set()

    async def do(self, job: Job) -> Any:
        """Return its result, once it is committed; carried on with, also when whoever asked is cancelled.

        :raise JournalError: see :meth:`migrator.store.database.Database.write`.
        """
        self.put(job)
        try:
            async with timeout_while_awake(self._backend.timeout_seconds):
                return await asyncio.shield(job.done)
        except TimeoutError as error:
            waiting = self._first if job.first else self._jobs
            if job in waiting:
                waiting.remove(job)
            self.complaint = self._backend.in_words(error, "written", unsure=True)
            raise JournalError(self.complaint) from error

    async def close(self) -> None:
        """Write what is still to be written, and let go of the connection."""
        self._closing = True
        self._there.set()
        try:
            await self._task
        finally:
            await self._engine.dispose()

    async def _write_all(self) -> None:
        jobs: list[Job] = []
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
                job.fail(JournalError(f"the journal {self._backend.name} is closed"))

    def _note_seconds(self, count: int, seconds: float) -> None:
        """Note what so many writes took: how many are done together next time."""
        if seconds > _TRANSACTION_SECONDS:
            self._batch = max(_LEAST_BATCH, int(count * _TRANSACTION_SECONDS / seconds))
        else:
            self._batch = min(_BATCH, 2 * self._batch)

    async def _commit(self, jobs: list[Job], *, afresh: bool = True) -> None:
        try:
            results = await self._transaction(jobs)
        except JournalError as error:  # nobody knows whether they were
            self._fail(jobs, error, str(error))
        except IntegrityError as error:
            if len(jobs) > 1:  # one of them is wrong; the others shall not suffer for it
                for job in jobs:
                    await self._commit([job])
                return
            jobs[0].fail(
                JournalError(f"the journal {self._backend.name} has another one there already: {error.orig}")
            )
        except DATABASE_ERRORS as error:
            remedy = self._backend.remedy(error)
            if remedy is Remedy.APART and len(jobs) > 1:
                await self._commit_apart(jobs, error)
                return
            if remedy not in (Remedy.WAIT, Remedy.APART):
                await self._reconnect()
            if afresh and remedy is Remedy.RETRY:
                await self._commit(jobs, afresh=False)
                return
            self._fail(jobs, error, self._backend.in_words(error, "written"))
        else:
            self._succeed(jobs, results)

    async def _commit_apart(self, jobs: list[Job], error: BaseException) -> None:
        """Do each by itself, as some wait for what another program has; not many of those are waited for again."""
        waited = 0
        for job in jobs:
            if waited == _WAITED_FOR_APART:
                self._fail([job], error, self._backend.in_words(error, "written"))
                continue
            await self._commit([job])
            waited += job.failed

    async def _reconnect(self) -> None:
        await self._engine.dispose()
        await self._lost()

    def _succeed(self, jobs: list[Job], results: list[Any]) -> None:
        self.complaint = ""
        for job, result in zip(jobs, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)

    def _fail(self, jobs: list[Job], error: BaseException, complaint: str) -> None:
        self.complaint = complaint
        for job in jobs:
            problem = JournalError(complaint)
            problem.__cause__ = error
            job.fail(problem)

    async def _transaction(self, jobs: list[Job]) -> list[Any]:
        batch, results, committing = next(self._batches), [], False
        try:
            async with (
                self._engine.connect() as connection,
                self._backend.bounded(connection),
                connection.begin(),
            ):
                await self._backend.mark(connection, self._name, batch)
                await self._refuse(connection, jobs)
                results = await _done(connection, jobs)
                committing = True
        except DATABASE_ERRORS as error:
            if not committing or self._backend.remedy(error) is not Remedy.RETRY:
                raise
            # The connection was lost over the COMMIT: only the database knows whether it was carried out.
            await self._reconnect()
            try:
                committed = await self._backend.committed(self._engine, self._name, batch)
            except DATABASE_ERRORS as unknown:
                raise JournalError(self._backend.in_words(unknown, "written", unsure=True)) from unknown
            if not committed:
                raise
        return results

    async def _refuse(self, connection: AsyncConnection, jobs: list[Job]) -> None:
        """Refuse the writes whose lease does not hold; the others' leases hold until the transaction has ended."""
        given = {job.lease for job in jobs if job.lease is not None}
        if not given:
            return
        there = await holding(connection, given, await self._backend.now(connection))
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


async def _done(connection: AsyncConnection, jobs: list[Job]) -> list[Any]:
    rows: dict[Executable, list[Mapping[str, Any]]] = {}
    for job in jobs:
        if job.statement is not None and not job.refused:
            rows.setdefault(job.statement, []).extend(job.rows)
    for statement, all_rows in rows.items():
        for some in parts(all_rows):
            await connection.execute(statement, some)
    return [await job.work(connection) if job.work and not job.refused else None for job in jobs]
