"""Spans of OpenTelemetry, and their way to a collector; imported only where traces are configured.

No provider is made the global one: libraries that would trace by themselves find none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from migrator.tracing.collector_settings import Collector
from migrator.tracing.spans import MOST_DECISIONS, Span

_LONGEST_TEXT = 4096
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class OpenTelemetry:
    """See :class:`migrator.tracing.batches.Exporter`.

    :param resource: what the service says of itself.
    """

    def __init__(self, collector: Collector, *, version: str, resource: Mapping[str, str]) -> None:
        self._reasons = _Reasons()
        self._otlp: SpanExporter = OTLPSpanExporter(
            endpoint=collector.endpoint,
            headers=dict(collector.headers),
            certificate_file=str(collector.ca_file) if collector.ca_file else None,
            timeout=collector.timeout_seconds,
            compression=Compression.Gzip,
        )
        self._ids = _Ids()
        self._made = _Made()
        provider = TracerProvider(
            sampler=ALWAYS_ON,  # whoever gets here is recorded
            resource=Resource.create(dict(resource)),
            id_generator=self._ids,
            span_limits=SpanLimits(max_events=MOST_DECISIONS, max_attribute_length=_LONGEST_TEXT),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._made)
        self._tracer = provider.get_tracer("migrator", version)

    def export(self, spans: Sequence[Span]) -> str:
        """Deliver them: empty once the collector has them, else why it has not."""
        for span in spans:
            self._make(span)
        self._reasons.last = ""
        if self._otlp.export(self._made.take()) is not SpanExportResult.SUCCESS:
            return self._reasons.last or "not delivered"
        return ""

    def abort(self) -> None:
        """An attempt under way ends at its time-out at the latest; another is not made."""
        self._otlp.shutdown()

    def _make(self, span: Span) -> None:
        self._ids.next = (span.trace_id, span.span_id)
        made = self._tracer.start_span(
            span.name, context=_around(span), attributes=span.attributes, start_time=_nanoseconds(span.began)
        )
        for event in span.events:
            made.add_event(event.name, event.attributes, timestamp=_nanoseconds(event.at))
        if span.error:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(_nanoseconds(span.ended))


def _around(span: Span) -> Context:
    """The context with the span's parent, which was made elsewhere or before."""
    if span.parent_id is None:
        return Context()
    parent = SpanContext(
        trace_id=span.trace_id,
        span_id=span.parent_id,
        is_remote=span.remote,
        trace_flags=TraceFlags((span.caller.flags if span.caller else 0) | TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([span.caller.state] if span.caller else []),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


def _nanoseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


class _Ids(IdGenerator):
    """Gives the ids that a span has already."""

    def __init__(self) -> None:
        self.next = (0, 0)

    def generate_trace_id(self) -> int:
        return self.next[0]

    def generate_span_id(self) -> int:
        return self.next[1]


class _Made(SpanProcessor):
    """Keeps what has ended until it is taken."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        """All since the last time."""
        spans, self._spans = self._spans, []
        return spans


class _Reasons(logging.Handler):
    """The library says why in its own log only; ours gets one line of it."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.last = ""
        library = logging.getLogger("opentelemetry")
        library.propagate = False
        library.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage().splitlines()
        # The last of them is that it gave up; the ones before say why.
        if said and not (self.last and "max retries" in said[0]):
            self.last = said[0][:500]
