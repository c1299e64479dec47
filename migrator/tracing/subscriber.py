"""Subscribes to the events of the service, and sends a trace of each migration and evacuation that ends."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from migrator import logs
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    MigrationStateChanged,
    Subject,
)
from migrator.errors import Fault, JournalError
from migrator.faults import contained
from migrator.ports.queries import Queries
from migrator.tracing import spans
from migrator.tracing.collector_settings import Collector

if TYPE_CHECKING:
    from migrator.tracing.batches import Batch, Exporter, Sender  # with what may not be there

#: Events that are read from the journal at a time.
_PAGE = 1000
#: Ended ones that are not sent again.
_MOST_REMEMBERED = 10_000
#: Migrations that may end while the libraries are loaded.
_MOST_UNSENT = 2_000
#: For what waits to be sent when the service stops.
_CLOSING_SECONDS = 2.0


class Tracing:
    """Traces of one service; it hears every event of `queries` from its making on.

    ``async with`` around the service's life. What another process has begun is read from the journal, so that a
    migration is one trace however often its controller died. A migration is sent once it has ended, as a whole: what
    was not sent before a crash is made anew, and nothing is sent twice.

    :param site: tells this service's migrations from those of other sites.
    :param instance: of this service.
    :param counted: see :class:`migrator.tracing.batches.Sender`.
    :param make: makes the exporter; only tests need another.
    """

    def __init__(
        self,
        *,
        queries: Queries,
        collector: Collector,
        site: str,
        instance: str,
        version: str,
        counted: Callable[[str, int], None] = lambda result, number: None,
        make: Callable[[], Exporter] | None = None,
    ) -> None:
        self._queries = queries
        self._site = site
        self._collector = collector
        self._version = version
        self._resource = {
            "service.name": "migrator",
            "service.namespace": site,
            "service.instance.id": instance,
            "service.version": version,
        }
        self._counted = counted
        self._make = make or self._open_telemetry
        #: ``None`` until the libraries are loaded, which takes a while.
        self._sender: Sender | None = None
        self._traces: dict[str, spans.MigrationTrace] = {}
        #: Of migrations and evacuations: none is sent twice, whatever is still said of it.
        self._ended: OrderedDict[str, None] = OrderedDict()
        #: What ended before there was a sender; bounded, for there may never be one.
        self._unsent: deque[Batch] = deque(maxlen=_MOST_UNSENT)
        #: What was heard while the journal is being read; ``None`` once that is done.
        self._early: list[Event] | None = []
        self._beginning: asyncio.Task[None] | None = None
        self._log = logs.logger()
        # Only what a restart would know too: what ends is told once.
        queries.bus.subscribe(self._on_event, journalled=True)

    def _open_telemetry(self) -> Exporter:
        from migrator.tracing.export import OpenTelemetry  # noqa: PLC0415 - it may not be there

        return OpenTelemetry(self._collector, version=self._version, resource=self._resource)

    def _make_sender(self) -> Sender:
        from migrator.tracing.batches import Sender  # noqa: PLC0415 - it may not be there

        return Sender(self._make(), where=self._collector.endpoint, counted=self._counted)

    async def __aenter__(self) -> Self:
        self._beginning = asyncio.create_task(self._begin(), name="traces begin")
        return self

    async def _begin(self) -> None:
        await asyncio.gather(self._begin_to_send(), self._recall())

    async def _begin_to_send(self) -> None:
        try:
            with contained("sending traces"):
                self._sender = await asyncio.to_thread(self._make_sender)
        except Fault:
            return  # it is in the log; there are no traces
        for ended in self._unsent:
            self._sender.put(ended)
        self._unsent.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what waits within two seconds, or drop it."""
        if self._beginning is not None:
            await asyncio.wait({self._beginning}, timeout=_CLOSING_SECONDS)
            self._beginning.cancel()
        if self._sender is not None:
            await self._sender.close(_CLOSING_SECONDS)

    # --- what happens ------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        """Take an event of the bus; returns at once and never raises."""
        match event:
            case EvacuationStateChanged(evacuation=evacuation):
                whole = spans.of_evacuation(evacuation, self._site)
                if whole is not None and self._first_end(evacuation.id):
                    self._send((whole,))
            case MigrationStateChanged() | DecisionTaken():
                if self._early is not None:
                    self._early.append(event)
                elif (ended := self._take_in(event)) is not None:
                    self._send(ended)

    def _send(self, ended: Batch) -> None:
        if spans.recorded(ended[0], self._collector.sample_ratio):
            if self._sender is None:
                self._unsent.append(ended)
            else:
                self._sender.put(ended)

    def _first_end(self, identifier: str) -> bool:
        if identifier in self._ended:
            return False
        self._ended[identifier] = None
        while len(self._ended) > _MOST_REMEMBERED:
            self._ended.popitem(last=False)
        return True

    def _take_in(self, event: Event) -> Batch | None:
        identifier = event.subject_id
        trace = self._traces.get(identifier)
        if trace is None:
            if identifier in self._ended or not isinstance(event, MigrationStateChanged):
                return None
            trace = self._traces[identifier] = spans.MigrationTrace(identifier, self._site)
        ended = trace.take_in(event)
        if ended is not None:
            del self._traces[identifier]
            self._first_end(identifier)
        return ended

    async def _recall(self) -> None:
        """Take in what the journal holds of migrations that go on, then what was heard meanwhile."""
        early = self._early
        if early is None:
            return
        known = {migration.id for migration in self._queries.active_migrations()}
        for identifier in known | {event.subject_id for event in early}:
            try:
                await self._read(identifier)
            except JournalError as error:
                self._log.warning("trace begins late", migration=identifier, error=str(error))
        self._early = None
        for event in early:
            if (ended := self._take_in(event)) is not None:
                self._send(ended)

    async def _read(self, identifier: str) -> None:
        """Up to its end, which is heard, too: who has ended before is told by nobody, and sent by whoever heard it."""
        after, more = 0, True
        while more:
            page = await self._queries.events(
                after=after, limit=_PAGE, subject=Subject.MIGRATION, subject_id=identifier
            )
            for event in page.items:
                if isinstance(event, MigrationStateChanged) and event.migration.ended_at is not None:
                    return
                self._take_in(event)
            after, more = page.last, page.more
