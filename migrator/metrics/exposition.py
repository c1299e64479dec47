"""The answer to a scrape: a snapshot of the service's state, taken on the loop and made into text off it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from prometheus_client.exposition import choose_encoder

from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.core.model import State
from migrator.errors import JournalError
from migrator.faults import keep_going
from migrator.metrics.counters import Counters
from migrator.metrics.elsewhere import Counts, encode
from migrator.metrics.gauges import BrokerGauges, Gauges, GaugeSnapshot
from migrator.metrics.lag import Lag
from migrator.ports.queries import Queries

#: The last line of OpenMetrics.
_END = b"# EOF\n"
#: Ended migrations that are read from the journal at the start, to know of failures that are not mended yet.
_RECALLED = 1000


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Facts that only the service knows. Asked on the loop at every scrape, so each must answer at once."""

    #: ``None``: no broker is configured, or it is another process that is connected.
    broker: Callable[[], BrokerGauges | None] = field(default=lambda: None)
    #: This controller holds the lease to act on its hosts; ``None``: it stands by.
    lease_held: Callable[[], bool | None] = field(default=lambda: True)
    #: Seconds since each lease was renewed, and whether somebody holds the one that plans the site.
    lease_ages: Callable[[], Mapping[str, float]] = field(default=dict)
    planner_present: Callable[[], bool] = field(default=lambda: True)
    #: Migrations that each controller drives, by instance.
    controller_migrations: Callable[[], Mapping[str, int]] = field(default=dict)
    #: See :class:`migrator.engine.look_pace.LookPace`.
    look_stretch: Callable[[], float] = field(default=lambda: 1.0)
    #: Why the journal cannot be written; empty while it can.
    journal_complaint: Callable[[], str] = field(default=lambda: "")


class Metrics:
    """All metrics of one service; it hears every event of `queries` from now on.

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
        queries: Queries,
        version: str,
        probes: Probes | None = None,
        page_url: str = "",
        runbook_url: str = "",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._queries = queries
        self._version = version
        self._page_url, self._runbook_url = page_url, runbook_url
        self._probes = probes or Probes()
        self._lag = Lag()
        self._watch: asyncio.Task[None] | None = None
        self._rendering = asyncio.Lock()
        self._counters = Counters(clock=clock, now=now)
        self.command = self._counters.command
        self.qmp_command = self._counters.qmp_command
        self.qmp_error = self._counters.qmp_error
        self.fault = self._counters.fault
        self.takeover = self._counters.takeover
        self.mqtt_sessions_taken, self.mqtt_dropped = (
            self._counters.mqtt_sessions_taken,
            self._counters.mqtt_dropped,
        )
        self.journal_write = self._counters.journal_write
        self.journal_error = self._counters.journal_error
        self.spans = self._counters.spans
        queries.bus.subscribe(self._counters.event)

    async def start(self) -> None:
        """Begin to measure the loop's lag, and recall what the journal knows of the last day.

        A journal that cannot be read is no error: what it would have told is not shown.
        """
        self._watch = asyncio.create_task(
            keep_going("event loop lag", self._lag.watch), name="event loop lag"
        )
        for migration in self._queries.active_migrations():
            if migration.state is State.HELD:
                self._counters.held_before(migration.id)
        with contextlib.suppress(JournalError):
            self._counters.recall(await self._queries.migrations(limit=_RECALLED))

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

    async def counts(self, accept: str) -> Counts:
        """Return what only this process knows, for a scrape that another one answers; see :mod:`elsewhere`."""
        text, content_type = await encode(self._counters.families, accept)
        return Counts(
            text=text,
            content_type=content_type,
            failures=self._counters.failures(),
            downtimes=self._counters.downtimes(),
            decisions=self._counters.all_decisions(),
            lease_held=self._probes.lease_held(),
            journal_writable=not self._probes.journal_complaint(),
            lag_seconds=self._lag.largest_seconds(),
            look_stretch_ratio=self._probes.look_stretch(),
        )

    async def _look(self) -> GaugeSnapshot:
        """The present state, one kind of thing after the other: with many guests each takes its time on the loop."""
        guests = tuple(self._queries.guests())
        await asyncio.sleep(0)
        hosts = tuple(self._queries.hosts())
        await asyncio.sleep(0)
        return self.snapshot(hosts=hosts, guests=guests)

    def snapshot(
        self, *, hosts: Sequence[HostDocument] | None = None, guests: Sequence[GuestDocument] | None = None
    ) -> GaugeSnapshot:
        """The present state; only on the loop.

        :param hosts: as they were seen a moment ago; else they are read too.
        :param guests: likewise.
        """
        migrations = tuple(self._queries.active_migrations())
        return GaugeSnapshot(
            migrations=migrations,
            evacuations=tuple(self._queries.active_evacuations()),
            hosts=tuple(self._queries.hosts()) if hosts is None else hosts,
            guests=tuple(self._queries.guests()) if guests is None else guests,
            complaints=len(self._queries.complaints()),
            failures=self._counters.failures(),
            downtimes=self._counters.downtimes(),
            decisions=self._counters.decisions(migration.id for migration in migrations),
            broker=self._probes.broker(),
            lease_held=self._probes.lease_held(),
            lease_ages=self._probes.lease_ages(),
            controller_migrations=self._probes.controller_migrations(),
            planner_present=self._probes.planner_present(),
            journal_writable=not self._probes.journal_complaint(),
            lag_seconds=self._lag.largest_seconds(),
            look_stretch_ratio=self._probes.look_stretch(),
            version=self._version,
            page_url=self._page_url,
            runbook_url=self._runbook_url,
        )

    def render(self, snapshot: GaugeSnapshot, accept: str | None) -> tuple[bytes, str]:
        """The text of a scrape and its content type; from any thread."""
        encode, content_type = choose_encoder(accept or "")
        counted = encode(self._counters.registry)
        end = _END if counted.endswith(_END) else b""
        parts = [counted.removesuffix(end)]
        for text in Gauges(snapshot).texts():
            parts.append(text.encode())
            time.sleep(0)  # lets the event loop have its turn
        return b"".join((*parts, end)), content_type
