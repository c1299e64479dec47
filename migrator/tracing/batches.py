"""Sends spans by the library's batch processor: from a bounded queue, by a thread that nobody waits for.

Imported with OpenTelemetry only, so not before traces are begun.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from migrator import logs
from migrator.tracing.spans import Span

#: Migrations that wait to be sent, of some ten spans each; further ones are dropped.
MOST_WAITING = 2_000
#: Migrations of one message.
_MOST_AT_ONCE = 64
#: A migration waits so long at most for others that go into the same message.
_GATHER_SECONDS = 0.5

#: An item is never sent as it is; to find out about this process takes milliseconds.
_NO_RESOURCE = Resource.get_empty()

Batch = tuple[Span, ...]


class Exporter(Protocol):
    """Makes messages of spans and delivers them; only the thread calls it, but for :meth:`abort`."""

    def export(self, spans: Sequence[Span]) -> str:
        """Deliver them within its time-out: empty once the collector has them, else why it has not."""

    def abort(self) -> None:
        """Give up soon, and close."""


class _Item(ReadableSpan):
    """An item of the processor's queue: all spans of a migration, or that of an evacuation.

    So none is sent or dropped in part; the library's own spans are made of it in the thread, which takes its time.
    """

    def __init__(self, spans: Batch) -> None:
        root = spans[0]
        flags = TraceFlags(TraceFlags.SAMPLED)
        context = SpanContext(root.trace_id, root.span_id, is_remote=False, trace_flags=flags)
        super().__init__(root.name, context, resource=_NO_RESOURCE)
        self.spans = spans


class _Delivery(SpanExporter):
    """The exporter of the processor's thread: delivers, counts, and logs when a collector is lost or back."""

    def __init__(self, exporter: Exporter, *, where: str, counted: Callable[[str, int], None]) -> None:
        self._exporter = exporter
        self._counted = counted
        self._log = logs.logger(collector=where)
        self._complained = False
        self._lock = threading.Lock()
        #: Items and spans that have been taken and are in no message yet.
        self.items = 0
        self._spans = 0
        self._closed = False

    def expect(self, item: _Item) -> None:
        """An item is about to be queued."""
        with self._lock:
            self.items += 1
            self._spans += len(item.spans)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Deliver items of the queue; from the processor's thread."""
        batch = [span for item in spans if isinstance(item, _Item) for span in item.spans]
        with self._lock:
            if self._closed:
                return SpanExportResult.FAILURE  # they are counted already
            self.items -= len(spans)
            self._spans -= len(batch)
        if failure := self._exporter.export(batch):
            self.drop(len(batch), failure)
            return SpanExportResult.FAILURE
        self._counted("sent", len(batch))
        if self._complained:
            self._complained = False
            self._log.info("traces are taken again")
        return SpanExportResult.SUCCESS

    def drop(self, spans: int, reason: str) -> None:
        """Count spans that nobody gets; of a collector that stays away one line in the log is enough."""
        self._counted("dropped", spans)
        if not self._complained:
            self._complained = True
            self._log.warning("traces are not taken", reason=reason)

    def shutdown(self) -> None:
        """Give up what is being delivered, and drop what waits; again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            left = self._spans
        if left:
            self.drop(left, "the service has stopped")
        self._exporter.abort()


class Sender:
    """Sends whole migrations.

    :param counted: is told how many spans were ``sent`` or ``dropped``; from any thread.
    :param where: the collector, for a person.
    """

    def __init__(
        self,
        exporter: Exporter,
        *,
        where: str,
        counted: Callable[[str, int], None] = lambda result, spans: None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._most_waiting = most_waiting
        self._delivery = _Delivery(exporter, where=where, counted=counted)
        self._processor = BatchSpanProcessor(
            self._delivery,
            max_queue_size=most_waiting,
            schedule_delay_millis=_GATHER_SECONDS * 1000,
            max_export_batch_size=min(_MOST_AT_ONCE, most_waiting),
        )
        self._closed = False

    def put(self, spans: Batch) -> None:
        """Send them soon, or drop them where too many wait; returns at once and never raises."""
        if self._closed:
            self._delivery.drop(len(spans), "the service has stopped")
        elif self._delivery.items >= self._most_waiting:
            # The processor would drop the oldest, and count nothing.
            self._delivery.drop(len(spans), "more wait than are kept")
        else:
            item = _Item(spans)
            self._delivery.expect(item)
            self._processor.on_end(item)

    async def close(self, timeout: float) -> None:
        """Send what waits, within `timeout` seconds; what is left then is dropped."""
        self._closed = True
        # The processor's own shutdown waits for up to half a minute, and takes no other limit.
        flushing = threading.Thread(target=self._processor.shutdown, name="traces' last", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, timeout)
        self._delivery.shutdown()
