"""A journal in memory as one of several controllers sees it: over a network, and under its lease.

What all of them share is a :class:`~migrator.testing.shared_store.SharedStore`; each has a :class:`JournalView` of it,
which keeps the order of what it writes, checks its lease at the journal, and fails as a server does that is away.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrator.errors import JournalError
from migrator.ports import HeldLease, Lease, lease_margin
from migrator.ports.assignments import Assignment
from migrator.ports.controllers import ControllerInfo, PresentController
from migrator.testing.memory_step_records import MemoryStepRecords
from migrator.testing.shared_store import PLACE, SharedStore
from migrator.testing.wire import Lost, Wire

#: As the client of a server: an answer that did not come by then is not waited for any more.
_SECONDS = 5.0
_AWAY = "the journal does not answer"


class JournalView:
    """See :class:`migrator.ports.Journal` and :class:`migrator.ports.CommandLog`.

    :ivar lease: what gives the right to every write of this controller.
    """

    name = "memory"

    def __init__(self, store: SharedStore, wire: Wire) -> None:
        self.shared, self.wire = store, wire
        self.lease: Lease | None = None
        self.complaint = ""
        self.leases = _Leases(self)
        self.steps = MemoryStepRecords(self)
        self.controllers = _Controllers(self)
        self.assignments = _Assignments(self)
        self.signals = store.signals.view(wire)
        self.others = False
        self._jobs: deque[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._writing = False

    @property
    def rights(self) -> dict[str, Lease]:
        """See :attr:`migrator.store.journal.SqlJournal.rights`."""
        return self.steps.leases

    async def read(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer of a read.

        :raise JournalError: it does not come.
        """
        try:
            return await self.wire.call(PLACE, work, seconds=_SECONDS)
        except Lost as error:
            raise JournalError(_AWAY) from error

    def queue(self, work: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        """Write in turn; nothing has to be awaited."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._jobs.append((work, done))
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().create_task(self._write(), name="journal writer")
        return done

    async def _write(self) -> None:
        try:
            while self._jobs:
                work, done = self._jobs.popleft()
                try:
                    result = await self.wire.call(PLACE, work, seconds=_SECONDS)
                except Lost:
                    self.complaint = _AWAY
                    _fail(done, JournalError(_AWAY))
                except JournalError as error:
                    _fail(done, error)
                else:
                    self.complaint = ""
                    if not done.done():
                        done.set_result(result)
        finally:
            self._writing = False

    async def write(self, work: Callable[[], Awaitable[Any]], lease: Lease | None = None) -> Any:
        """Write in turn.

        :raise LeaseLost: its lease does not hold.
        :raise JournalError: it was not written, or nobody knows.
        """
        return await asyncio.shield(self.queue(self.checked(work, lease or self.lease)))

    def checked(
        self, work: Callable[[], Awaitable[Any]], lease: Lease | None
    ) -> Callable[[], Awaitable[Any]]:
        """Return the work with the check of its lease in the same transaction."""

        async def transaction() -> Any:
            self.shared.check(lease)
            return await work()

        return transaction

    # --- as the journal ----------------------------------------------------------------------------------------------

    async def probe(self) -> str:
        """See :meth:`migrator.store.journal.SqlJournal.probe`."""
        try:
            await self.write(self.shared.journal.probe)
        except JournalError:
            pass  # the complaint says so
        return self.complaint

    async def save(
        self,
        *documents: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        """See :meth:`migrator.ports.Journal.save`."""
        copied = [(kind, json.loads(json.dumps(document))) for kind, document in documents]
        its = lease or self.lease

        async def work() -> list[int]:
            for kind, document in copied:
                before = await self.shared.journal.find(kind, document["id"])
                self.shared.written(its, kind, before, document)
            return await self.shared.journal.save(*copied, events=events)

        numbers: list[int] = await self.write(work, lease)
        return numbers

    async def claim_command(
        self, *documents: tuple[str, Mapping[str, Any]], lease: Lease | None = None, **how: Any
    ) -> Any:
        """See :meth:`migrator.ports.CommandLog.claim_command`."""
        return await self.write(lambda: self.shared.journal.claim_command(*documents, **how), lease)

    async def answer_command(self, *, key: str, reply: Mapping[str, Any]) -> None:
        """See :meth:`migrator.ports.CommandLog.answer_command`."""
        await self.write(lambda: self.shared.journal.answer_command(key=key, reply=reply))

    async def meta(self, name: str) -> str | None:
        """See :meth:`migrator.store.journal.SqlJournal.meta`."""

        async def work() -> str | None:
            return self.shared.meta.get(name)

        found: str | None = await self.read(work)
        return found

    async def metas(self, prefix: str) -> dict[str, str]:
        """See :meth:`migrator.store.journal.SqlJournal.metas`."""

        async def work() -> dict[str, str]:
            return {name: value for name, value in self.shared.meta.items() if name.startswith(prefix)}

        found: dict[str, str] = await self.read(work)
        return found

    async def keep_meta(self, name: str, value: str) -> None:
        """See :meth:`migrator.store.journal.SqlJournal.keep_meta`."""

        async def work() -> None:
            self.shared.meta[name] = value

        await self.write(work)

    def __getattr__(self, name: str) -> Any:
        """Return a read of the journal."""
        found = getattr(self.shared.journal, name)

        async def ask(*args: Any, **kwargs: Any) -> Any:
            return await self.read(lambda: found(*args, **kwargs))

        return ask


class _Leases:
    """See :class:`migrator.ports.Leases`."""

    def __init__(self, view: JournalView) -> None:
        self._view = view
        self._leases = view.shared.journal.leases

    async def acquire(
        self, name: str, *, owner: str, seconds: float, known: int | None = None
    ) -> Lease | None:
        asked_at = self._leases.clock()
        lease: Lease | None = await self._view.queue(
            lambda: self._leases.acquire(name, owner=owner, seconds=seconds, known=known)
        )
        return lease and _counted_from(asked_at, lease, seconds)

    async def renew(self, held: Sequence[Lease], *, seconds: float) -> list[Lease | None]:
        asked_at = self._leases.clock()
        renewed: list[Lease | None] = await self._view.queue(
            lambda: self._leases.renew(held, seconds=seconds)
        )
        return [lease and _counted_from(asked_at, lease, seconds) for lease in renewed]

    async def release(self, lease: Lease) -> None:
        await self._view.queue(lambda: self._leases.release(lease))

    async def all(self) -> list[HeldLease]:
        found: list[HeldLease] = await self._view.read(self._leases.all)
        return found

    async def end_stuck(self) -> None:
        # Nothing is written, nor waited for, where there is none: the simulated clock that all share is not set back.
        await self._leases.end_stuck()


class _Controllers:
    """See :class:`migrator.ports.controllers.Controllers`."""

    def __init__(self, view: JournalView) -> None:
        self._view = view
        self._controllers, self._clock = view.shared.journal.controllers, view.shared.journal.leases
        self.complaint = ""

    async def join(self, info: ControllerInfo, *, seconds: float, known: int | None = None) -> Lease | None:
        asked_at = self._clock.clock()
        lease: Lease | None = await self._view.queue(
            lambda: self._controllers.join(info, seconds=seconds, known=known)
        )
        return lease and _counted_from(asked_at, lease, seconds)

    async def beat(self, info: ControllerInfo, lease: Lease, *, seconds: float) -> Lease | None:
        asked_at = self._clock.clock()
        work = lambda: self._controllers.beat(info, lease, seconds=seconds)  # noqa: E731 - it is awaited elsewhere
        renewed: Lease | None = await self._view.queue(work)
        return renewed and _counted_from(asked_at, renewed, seconds)

    async def leave(self, lease: Lease) -> None:
        await self._view.queue(lambda: self._controllers.leave(lease))

    async def all(self) -> list[PresentController]:
        found: list[PresentController] = await self._view.read(self._controllers.all)
        return found


class _Assignments:
    """See :class:`migrator.ports.assignments.Assignments`."""

    def __init__(self, view: JournalView) -> None:
        self._view, self._assignments = view, view.shared.journal.assignments

    async def give(self, assignment: Assignment) -> bool:
        given: bool = await self._view.write(lambda: self._assignments.give(assignment))
        return given

    async def fence(self, migration: str, number: int) -> Assignment | None:
        last: Assignment | None = await self._view.write(lambda: self._assignments.fence(migration, number))
        return last

    async def remove(self, migration: str, number: int) -> None:
        await self._view.write(lambda: self._assignments.remove(migration, number))

    async def request(self, migration: str, number: int, requests: Mapping[str, Any]) -> None:
        await self._view.write(lambda: self._assignments.request(migration, number, dict(requests)))

    async def report(
        self, assignment: Assignment, report: Mapping[str, Any] | None, *, released: bool
    ) -> None:
        said = json.loads(json.dumps(report))
        shared = self._view.shared
        fenced = shared.fenced and shared.fences_drivers
        write = self._assignments.report if fenced else self._assignments.overwrite
        right = assignment.right(lambda: True)
        await self._view.write(lambda: write(assignment, said, released=released), right)

    async def find(self, migrations: Collection[str] | None = None) -> Sequence[Assignment]:
        wanted = None if migrations is None else set(migrations)
        found: Sequence[Assignment] = await self._view.read(lambda: self._assignments.find(wanted))
        return found

    async def of(self, driver: str, numbers: Collection[int] | None = None) -> Sequence[Assignment]:
        asked = None if numbers is None else set(numbers)
        found: Sequence[Assignment] = await self._view.read(lambda: self._assignments.of(driver, asked))
        return found

    async def requests_of(self, driver: str) -> Mapping[int, Mapping[str, Any]]:
        found: Mapping[int, Mapping[str, Any]]
        found = await self._view.read(lambda: self._assignments.requests_of(driver))
        return found


def _counted_from(asked_at: float, lease: Lease, seconds: float) -> Lease:
    return replace(lease, until=asked_at + seconds - lease_margin(seconds))


def _fail(done: asyncio.Future[Any], error: JournalError) -> None:
    if not done.done():
        done.set_exception(error)
