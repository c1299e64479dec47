"""Sends spans from a thread of its own, so that whatever becomes of the collector nobody else waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from migrator import logs
from migrator.tracing.spans import Span

#: Migrations that wait to be sent, of some ten spans each; further ones are dropped.
MOST_WAITING = 2_000
#: Of one message.
_MOST_AT_ONCE = 64
#: So long others are waited for that may go with the first.
_GATHER_SECONDS = 0.5

Batch = tuple[Span, ...]


class Exporter(Protocol):
    """Makes messages of spans and delivers them; only the thread calls it, but for :meth:`abort`."""

    def export(self, spans: Sequence[Span]) -> str:
        """Deliver them within its time-out: empty once the collector has them, else why it has not."""

    def abort(self) -> None:
        """Give up soon, and close."""


class Sender:
    """A bounded queue, and the thread that empties it.

    :param make: makes the exporter, within the thread: libraries that take long to load hold nobody up.
    :param counted: is told how many spans were ``sent`` or ``dropped``; from any thread.
    :param where: the collector, for a person.
    """

    def __init__(
        self,
        make: Callable[[], Exporter],
        *,
        where: str,
        counted: Callable[[str, int], None] = lambda result, spans: None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._make = make
        self._counted = counted
        self._waiting: queue.Queue[Batch | None] = queue.Queue(most_waiting)
        self._closing = threading.Event()
        self._exporter: Exporter | None = None
        self._complained = False
        self._thread = threading.Thread(target=self._work, name="traces", daemon=True)
        self._log = logs.logger(collector=where)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, spans: Batch) -> None:
        """Send them soon, or drop them where too many wait; returns at once and never raises."""
        try:
            if not self._closing.is_set():
                self._waiting.put_nowait(spans)
                return
        except queue.Full:
            self._complain("more wait than are kept")
        self._counted("dropped", len(spans))

    def close(self, timeout: float) -> None:
        """Send what waits, within `timeout` seconds; what is left then is dropped. Blocks as long."""
        self._closing.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            pass  # the thread looks at whether we close, too
        self._thread.join(timeout)
        if self._thread.is_alive() and self._exporter is not None:
            self._exporter.abort()
        left = sum(len(batch) for batch in self._rest())
        if left:
            self._counted("dropped", left)
            self._complain("the service has stopped")

    def _work(self) -> None:
        self._exporter = self._make()
        while True:
            spans, more = self._gather()
            if spans:
                self._send(spans)
            if not more:
                self._exporter.abort()
                return

    def _gather(self) -> tuple[list[Span], bool]:
        """What goes into the next message, and whether there may be another."""
        spans: list[Span] = []
        until: float | None = None
        for _ in range(_MOST_AT_ONCE):
            try:
                if self._closing.is_set():
                    batch = self._waiting.get_nowait()
                else:
                    batch = self._waiting.get(
                        timeout=None if until is None else max(0.0, until - time.monotonic())
                    )
            except queue.Empty:
                return spans, not self._closing.is_set()
            if batch is None:
                continue  # that we close shows below
            spans += batch
            until = until or time.monotonic() + _GATHER_SECONDS
        return spans, True

    def _send(self, spans: Sequence[Span]) -> None:
        assert self._exporter is not None
        failure = self._exporter.export(spans)
        if failure:
            self._counted("dropped", len(spans))
            self._complain(failure)
            return
        self._counted("sent", len(spans))
        if self._complained:
            self._complained = False
            self._log.info("traces are taken again")

    def _complain(self, reason: str) -> None:
        """Of a collector that stays away one line is enough."""
        if not self._complained:
            self._complained = True
            self._log.warning("traces are not taken", reason=reason)

    def _rest(self) -> list[Batch]:
        found: list[Batch] = []
        while True:
            try:
                batch = self._waiting.get_nowait()
            except queue.Empty:
                return found
            if batch is not None:
                found.append(batch)
