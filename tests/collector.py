"""A small collector of traces: OTLP over HTTP, protobuf. It remembers all spans, or is broken in some way."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(kw_only=True)
class Got:
    """One span, as it came."""

    name: str
    trace_id: str
    span_id: str
    #: Empty: none.
    parent_id: str
    state: str
    #: Nanoseconds since the epoch.
    began: int
    ended: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    #: Name, time and attributes of each.
    events: list[tuple[str, int, dict[str, Any]]]
    #: Empty where it is no error.
    error: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended - self.began) / 1e9


@dataclass
class Collector:
    """Listens on a free port as long as the block lasts.

    :param how: ``well``; ``silent``: takes connections and never answers; or a status that it answers with.
    """

    how: str = "well"
    spans: list[Got] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                collector._take(self)

            def log_message(self, *_: object) -> None:
                pass

        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def endpoint(self) -> str:
        """Without OTLP's path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.requests.append({name.lower(): value for name, value in request.headers.items()})
        if self.how == "silent":
            self._over.wait(120)
            return
        status = 200 if self.how == "well" else int(self.how)
        if status == 200:
            assert request.path == "/v1/traces"
            assert request.headers["Content-Type"] == "application/x-protobuf"
            if request.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            self.spans += _spans(body)
        answer = ExportTraceServiceResponse().SerializeToString() if status == 200 else b""
        request.send_response(status)
        request.send_header("Content-Type", "application/x-protobuf")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)

    def named(self, name: str, **attributes: Any) -> list[Got]:
        """Spans of that name with these attributes (``migrator.`` left out, dots as ``__``)."""
        wanted = {f"migrator.{key.replace('__', '.')}": value for key, value in attributes.items()}
        return [
            each for each in self.spans if each.name == name and wanted.items() <= each.attributes.items()
        ]

    def below(self, parent: Got) -> list[Got]:
        """Its children, by their beginning."""
        found = [
            each
            for each in self.spans
            if (each.trace_id, each.parent_id) == (parent.trace_id, parent.span_id)
        ]
        return sorted(found, key=lambda each: (each.began, each.ended))


def _spans(body: bytes) -> list[Got]:
    return [
        Got(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            state=span.trace_state,
            began=span.start_time_unix_nano,
            ended=span.end_time_unix_nano,
            attributes=_attributes(span.attributes),
            resource=_attributes(of_resource.resource.attributes),
            events=[(each.name, each.time_unix_nano, _attributes(each.attributes)) for each in span.events],
            error=(span.status.message or "?") if span.status.code == 2 else "",
        )
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
