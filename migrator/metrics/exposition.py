"""What answers a scrape: a look at the service's state on the loop, made into text off it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from prometheus_client.exposition import choose_encoder

from migrator.api.documents import GuestDocument, HostDocument
from migrator.core.model import State
from migrator.errors import JournalError
from migrator.faults import keep_going
from migrator.metrics.counted import Counted
from migrator.metrics.lag import Lag
from migrator.metrics.shown import Shown, Snapshot
from migrator.ports.queries import Queries

#: The last line of OpenMetrics.
_END = b"# EOF\n"
#: Ended migrations that are read from the journal at the start, to know of failures that are not mended yet.
_RECALLED = 1000


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What only the service knows. Asked on the loop at every scrape, so each must answer at once."""

    #: ``None``: no broker is configured.
    mqtt_connected: Callable[[], bool | None] = field(default=lambda: None)
    #: This controller holds the lease to act on its hosts.
    lease_held: Callable[[], bool] = field(default=lambda: True)
    #: Why the journal cannot be written; empty while it can.
    journal_complaint: Callable[[], str] = field(default=lambda: "")


class Metrics:
    """All metrics of one service; it hears every event of `reading` from now on.

    ``async with`` (or :meth:`start` and :meth:`close`) around the time that it shall measure the event loop's lag.
    Whoever has something to count calls the plain functions :attr:`command` (the dispatcher's ``heard``),
    :attr:`qmp_command`, :attr:`qmp_error`, :attr:`journal_write`, :attr:`journal_error` and :attr:`spans`; they return
    at once and never raise.

    :param version: of migrator.
    :param clock: monotonic seconds; only tests need another.
    :param now: seconds since the epoch; only tests need another.
    """

    def __init__(
        self,
        *,
        reading: Queries,
        version: str,
        probes: Probes | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reading = reading
        self._version = version
        self._probes = probes or Probes()
        self._lag = Lag()
        self._watch: asyncio.Task[None] | None = None
        self._rendering = asyncio.Lock()
        self._counted = Counted(clock=clock, now=now)
        self.command = self._counted.command
        self.qmp_command = self._counted.qmp_command
        self.qmp_error = self._counted.qmp_error
        self.fault = self._counted.fault
        self.mqtt_session_taken = self._counted.mqtt_session_taken
        self.journal_write = self._counted.journal_write
        self.journal_error = self._counted.journal_error
        self.spans = self._counted.spans
        reading.bus.subscribe(self._counted.event)

    async def start(self) -> None:
        """Begin to measure the loop's lag, and recall what the journal knows of the last day.

        A journal that cannot be read is no error: what it would have told is not shown.
        """
        self._watch = asyncio.create_task(
            keep_going("event loop lag", self._lag.watch), name="event loop lag"
        )
        for migration in self._reading.active_migrations():
            if migration.state is State.HELD:
                self._counted.held_before(migration.id)
        with contextlib.suppress(JournalError):
            self._counted.recall(await self._reading.migrations(limit=_RECALLED))

    async def close(self) -> None:
        """Stop measuring."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def scrape(self, accept: str | None) -> tuple[bytes, str]:
        """Answer one scrape: the text, and its content type.

        Asks nobody but the memory of this process. The text is made in a thread, one at a time.

        :param accept: the request's header; OpenMetrics, with exemplars, when it asks for that.
        """
        async with self._rendering:
            snapshot = await self._look()
            return await asyncio.to_thread(self.render, snapshot, accept)

    async def _look(self) -> Snapshot:
        """The present state, one kind of thing after the other: with many guests each takes its time on the loop."""
        guests = tuple(self._reading.guests())
        await asyncio.sleep(0)
        hosts = tuple(self._reading.hosts())
        await asyncio.sleep(0)
        return self.snapshot(hosts=hosts, guests=guests)

    def snapshot(
        self, *, hosts: Sequence[HostDocument] | None = None, guests: Sequence[GuestDocument] | None = None
    ) -> Snapshot:
        """The present state; only on the loop.

        :param hosts: as they were seen a moment ago; else they are read too.
        :param guests: likewise.
        """
        migrations = tuple(self._reading.active_migrations())
        return Snapshot(
            migrations=migrations,
            evacuations=tuple(self._reading.active_evacuations()),
            hosts=tuple(self._reading.hosts()) if hosts is None else hosts,
            guests=tuple(self._reading.guests()) if guests is None else guests,
            complaints=len(self._reading.complaints()),
            failures=self._counted.failures(),
            downtimes=self._counted.downtimes(),
            decisions=self._counted.decisions(migration.id for migration in migrations),
            mqtt_connected=self._probes.mqtt_connected(),
            lease_held=self._probes.lease_held(),
            journal_writable=not self._probes.journal_complaint(),
            lag_seconds=self._lag.largest_seconds(),
            version=self._version,
        )

    def render(self, snapshot: Snapshot, accept: str | None) -> tuple[bytes, str]:
        """The text of a scrape and its content type; from any thread."""
        encode, content_type = choose_encoder(accept or "")
        counted = encode(self._counted.registry)
        end = _END if counted.endswith(_END) else b""
        parts = [counted.removesuffix(end)]
        for text in Shown(snapshot).texts():
            parts.append(text.encode())
            time.sleep(0)  # lets the event loop have its turn
        return b"".join((*parts, end)), content_type
