"""Hears what the engine says and has a trace made of whatever ends."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from migrator import logs
from migrator.errors import JournalError
from migrator.tracing import spans
from migrator.tracing.seen import Seen, SeenEvent
from migrator.tracing.sending import Batch, Exporter, Sender
from migrator.tracing.where import Collector

#: Events that are read from the journal at a time.
_PAGE = 1000
#: Ended ones that are not sent again.
_MOST_REMEMBERED = 10_000
#: For what waits to be sent when the service stops.
_CLOSING_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """An event of a migration."""

    migration: str
    event_id: int
    time: datetime
    kind: str
    body: Mapping[str, Any]


class Tracing:
    """Traces of one service; it hears every event of `reading` from its making on.

    ``async with`` around the service's life. What another process has begun is read from the journal, so that a
    migration is one trace however often its controller died. A migration is sent once it has ended, as a whole: what
    was not sent before a crash is made anew, and nothing is sent twice.

    :param site: tells this service's migrations from those of other sites.
    :param instance: of this service.
    :param counted: see :class:`migrator.tracing.sending.Sender`.
    :param make: makes the exporter; only tests need another.
    """

    def __init__(
        self,
        *,
        reading: Seen,
        collector: Collector,
        site: str,
        instance: str,
        version: str,
        counted: Callable[[str, int], None] = lambda result, number: None,
        make: Callable[[], Exporter] | None = None,
    ) -> None:
        self._reading = reading
        self._site = site
        self._collector = collector
        self._version = version
        self._resource = {
            "service.name": "migrator",
            "service.namespace": site,
            "service.instance.id": instance,
            "service.version": version,
        }
        self._sender = Sender(make or self._make, where=collector.endpoint, counted=counted)
        self._courses: dict[str, spans.Course] = {}
        #: Of migrations and evacuations: none is sent twice, whatever is still said of it.
        self._ended: OrderedDict[str, None] = OrderedDict()
        #: What was heard while the journal is being read; ``None`` once that is done.
        self._early: list[_Heard] | None = []
        self._recalling: asyncio.Task[None] | None = None
        self._log = logs.logger()
        # Only what a restart would know too: what ends is told once.
        reading.bus.subscribe(self._hear, journalled=True)

    def _make(self) -> Exporter:
        from migrator.tracing.export import OpenTelemetry  # noqa: PLC0415 - it may not be there

        return OpenTelemetry(self._collector, version=self._version, resource=self._resource)

    async def __aenter__(self) -> Self:
        self._sender.start()
        self._recalling = asyncio.create_task(self._recall(), name="traces from the journal")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What waits is sent within two seconds, or dropped."""
        if self._recalling is not None:
            await asyncio.wait({self._recalling}, timeout=_CLOSING_SECONDS)
            self._recalling.cancel()
        await asyncio.to_thread(self._sender.close, _CLOSING_SECONDS)

    # --- what happens ------------------------------------------------------------------------------------------------

    def _hear(self, event: SeenEvent) -> None:
        """For the bus: returns at once and never raises."""
        if event.kind not in ("state", "decision"):
            return
        if event.subject == "evacuation" and event.kind == "state":
            whole = spans.of_evacuation(event.subject_id, self._site, event.body)
            if whole is not None and self._first_end(event.subject_id):
                self._send((whole,))
        elif event.subject == "migration":
            heard = _Heard(
                migration=event.subject_id,
                event_id=event.event_id,
                time=event.time,
                kind=event.kind,
                body=event.body,
            )
            if self._early is not None:
                self._early.append(heard)
            elif (ended := self._take_in(heard)) is not None:
                self._send(ended)

    def _send(self, ended: Batch) -> None:
        if spans.recorded(ended[0], self._collector.sample_ratio):
            self._sender.put(ended)

    def _first_end(self, identifier: str) -> bool:
        if identifier in self._ended:
            return False
        self._ended[identifier] = None
        while len(self._ended) > _MOST_REMEMBERED:
            self._ended.popitem(last=False)
        return True

    def _take_in(self, heard: _Heard) -> Batch | None:
        course = self._courses.get(heard.migration)
        if course is None:
            if heard.migration in self._ended or heard.kind != "state":
                return None
            course = self._courses[heard.migration] = spans.Course(heard.migration, self._site)
        ended = course.hear(heard.event_id, heard.time, heard.kind, heard.body)
        if ended is not None:
            del self._courses[heard.migration]
            self._first_end(heard.migration)
        return ended

    async def _recall(self) -> None:
        """Take in what the journal holds of migrations that go on, then what was heard meanwhile."""
        early = self._early
        if early is None:
            return
        known = {migration.id for migration in self._reading.active_migrations()}
        for identifier in known | {heard.migration for heard in early}:
            try:
                await self._read(identifier)
            except JournalError as error:
                self._log.warning("trace begins late", migration=identifier, error=str(error))
        self._early = None
        for heard in early:
            if (ended := self._take_in(heard)) is not None:
                self._send(ended)

    async def _read(self, identifier: str) -> None:
        """Up to its end, which is heard, too: who has ended before is told by nobody, and sent by whoever heard it."""
        after = 0
        while True:
            page = await self._reading.events(
                after=after, limit=_PAGE, subject="migration", subject_id=identifier
            )
            for event in page:
                if event["body"].get("ended_at"):
                    return
                self._take_in(
                    _Heard(
                        migration=identifier,
                        event_id=event["event_id"],
                        time=datetime.fromisoformat(event["time"]),
                        kind=event["kind"],
                        body=event["body"],
                    )
                )
            if len(page) < _PAGE:
                return
            after = page[-1]["event_id"]
