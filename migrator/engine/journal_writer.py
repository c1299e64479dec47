"""The journal writer: commits at once what must be on disk before a step, and everything else in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from migrator import logs
from migrator.api.events import Event, EventKind
from migrator.awake import AwakeTimer
from migrator.engine.event_bus import EventBus
from migrator.errors import Fault, JournalError, LeaseLost, MigratorError
from migrator.faults import contained
from migrator.ports import Journal

#: A journal that cannot be written is tried again after so long; writing a document twice does no harm.
_RETRY_SECONDS = 1.0
#: More than this unwritten and the oldest events go; documents are kept, one for each subject.
_EVENTS_WAITING = 50_000
#: Of a backlog so many go into one transaction: what must be there at once shall not wait for all of it.
_EVENTS_AT_ONCE = 1000
#: So many documents that wait are built before others on the event loop have their turn, and so many requests are
#: written together: thousands of either may wait, and guests are steered meanwhile.
_BUILT_AT_ONCE, _REQUESTS_AT_ONCE = 20, 50
#: What leaves the process waits so long for the journal: a true state counts for more than its number.
MAX_EVENT_DELAY_SECONDS = 3.0


#: A document as the journal keeps it, or a function that builds it at the moment at which it is written.
DocumentToSave = Mapping[str, Any] | Callable[[], Mapping[str, Any]]
#: Kind and id of what a document is about.
_Subject = tuple[str, str]


def _built(document: DocumentToSave) -> Mapping[str, Any]:
    return document() if callable(document) else document


class _Built(NamedTuple):
    """A document, and what has built it."""

    by: Callable[[], Mapping[str, Any]]
    document: Mapping[str, Any]


@dataclass(eq=False, kw_only=True)
class _Request:
    """One call of :meth:`JournalWriter.commit`."""

    documents: Sequence[tuple[str, DocumentToSave]]
    then: Callable[[], None]
    #: Documents, as they were built.
    built: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    done: bool = False
    error: MigratorError | None = None

    def build(self) -> None:
        """Build its documents, as they are now.

        :raise Fault: an error of our own, of this request alone.
        """
        with contained("a document for the journal"):
            self.built = [(kind, _built(document)) for kind, document in self.documents]

    @property
    def subjects(self) -> set[_Subject]:
        """Return what its documents are about, once they are built."""
        return {(kind, document["id"]) for kind, document in self.built}


def _payloads(events: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    return [event for _, event in events]


class JournalWriter:
    """Writes documents and events to the journal: in the background, or before :meth:`commit` returns.

    Documents and the events that tell of them go into one transaction: after a crash no document is ahead of its
    events, but for one that was just journalled to be begun.

    :param max_event_delay: seconds that an event which leaves the process waits for the journal. One that is not
        written by then (the disk is full, locked, or does not answer) is delivered all the same, and so is all that
        follows, until the journal is written again. Nothing else ever waits for that. Time in which this process was
        frozen does not count: another controller may act by then, and the journal, which knows, is asked first. What
        the journal refuses because another may act is not delivered.
    """

    def __init__(self, journal: Journal, *, max_event_delay: float = MAX_EVENT_DELAY_SECONDS) -> None:
        self.journal = journal
        self._documents: dict[_Subject, Callable[[], Mapping[str, Any]]] = {}
        #: Each with its place on the bus.
        self._events: list[tuple[int, Mapping[str, Any]]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: One writer at a time, so that an older document never replaces a newer one.
        self._writing = asyncio.Lock()
        #: Asked for and not written; whoever writes takes all of them into one transaction.
        self._requests: list[_Request] = []
        self._max_event_delay = max_event_delay
        self._delay_timer: AwakeTimer | None = None
        #: Events are delivered without waiting for the journal.
        self._bypassing = False
        #: The journal answers that another controller may act: what is said here may be false by now.
        self._refused = False
        self._place = 0
        self._bus: EventBus | None = None
        self._log = logs.logger()

    def follow(self, bus: EventBus) -> None:
        """Journal every event of `bus` from now on, in order, and tell the bus which are on disk."""
        self._place = bus.place
        self._bus = bus
        bus.mark_journalled(self._place)
        bus.subscribe(self._take_event)

    def schedule(self, kind: str, document: Mapping[str, Any]) -> None:
        """Write `document` soon; only the last of several of one subject is written."""
        self.schedule_latest(kind, document["id"], lambda: document)

    def schedule_latest(self, kind: str, identifier: str, document: Callable[[], Mapping[str, Any]]) -> None:
        """Write what `document` returns then, soon: what :meth:`commit` changes meanwhile is in it."""
        self._documents[kind, identifier] = document
        self._wake_up()

    def _take_event(self, event: Event) -> None:
        if event.kind is EventKind.PROGRESS:
            return
        self._place += 1
        self._events.append((self._place, event.payload))
        del self._events[:-_EVENTS_WAITING]
        self._start_delay_timer()
        self._wake_up()

    def _wake_up(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def commit(
        self, *documents: tuple[str, DocumentToSave], then: Callable[[], None] = lambda: None
    ) -> None:
        """Write `documents`, and all that waits; they are on disk when this returns.

        Many who ask at the same time are written in one transaction, and each is answered for its own.

        :param then: called when they are written, before anything else is: there memory takes over what they say. It
            is not called where writing fails.
        :raise JournalError: none of `documents` was written.
        """
        request = _Request(documents=documents, then=then)
        self._requests.append(request)
        try:
            async with self._writing:
                while not request.done:
                    waiting = await self._build_waiting()
                    if requests := self._next_requests():
                        await self._commit(requests, waiting)
        finally:
            if not request.done:
                self._requests.remove(request)  # it was given up
        if request.error is not None:
            raise request.error

    def _next_requests(self) -> list[_Request]:
        """Return the requests to write together, with their documents: no two of them are about the same subject."""
        chosen, subjects = list[_Request](), set[_Subject]()
        for request in self._requests[:_REQUESTS_AT_ONCE]:
            try:
                request.build()  # what is written before may change what this one is made of
            except Fault as fault:
                self._settle([request], fault)
                continue
            if not subjects.isdisjoint(request.subjects):
                break
            subjects |= request.subjects
            chosen.append(request)
        return chosen

    async def _build_waiting(self) -> dict[_Subject, _Built]:
        """Return the documents that wait, as they all are at the moment at which this returns.

        They are built a few at a time. What is scheduled anew meanwhile has changed, and is built again in the end.
        """
        built: dict[_Subject, _Built] = {}
        waiting = [*self._documents.items()]
        for end in range(_BUILT_AT_ONCE, len(waiting), _BUILT_AT_ONCE):
            for subject, build in waiting[end - _BUILT_AT_ONCE : end]:
                self._build(subject, build, built)
            await asyncio.sleep(0)
        for subject, build in [*self._documents.items()]:
            if subject not in built or built[subject].by is not build:
                self._build(subject, build, built)
        return built

    def _build(
        self, subject: _Subject, build: Callable[[], Mapping[str, Any]], built: dict[_Subject, _Built]
    ) -> None:
        """Add a document that waits; one at which this program fails is dropped: it must not hold up all others."""
        try:
            with contained(f"the document of {' '.join(subject)} for the journal"):
                built[subject] = _Built(build, build())
        except MigratorError as error:
            built.pop(subject, None)
            if self._documents.get(subject) is build:
                del self._documents[subject]
            self._log.warning("document not journalled", subject=subject, error=str(error))

    async def _commit(self, requests: Sequence[_Request], waiting: Mapping[_Subject, _Built]) -> None:
        """Write what these ask for, and all that waits; one that the journal refuses is written by itself."""
        try:
            await self._commit_together(requests, waiting)
        except JournalError as error:
            if len(requests) == 1 or self.journal.complaint or isinstance(error, LeaseLost):
                self._settle(requests, error)
                return
            for request in requests:
                waiting = await self._build_waiting()
                try:
                    request.build()
                    await self._commit_together([request], waiting)
                except (JournalError, Fault) as its_own:
                    self._settle([request], its_own)

    async def _commit_together(
        self, requests: Sequence[_Request], waiting: Mapping[_Subject, _Built]
    ) -> None:
        # What waits of the same subjects is older.
        own = {subject for request in requests for subject in request.subjects}
        every = [*((subject[0], each.document) for subject, each in waiting.items() if subject not in own)]
        every += [document for request in requests for document in request.built]
        # Where room is short a backlog must not cost what is asked for now.
        events = [] if self.journal.complaint else self._events[:_EVENTS_AT_ONCE]
        try:
            numbers = await self.journal.save(*every, events=_payloads(events))
        except JournalError:
            if self.journal.complaint or not events:
                raise
            events, numbers = [], []
            await self.journal.save(*every)
        self._settle(requests)
        self._forget(waiting)
        self._written(events, numbers)

    def _settle(self, requests: Sequence[_Request], error: MigratorError | None = None) -> None:
        for request in requests:
            if request not in self._requests:
                continue  # whoever asked for it is gone
            self._requests.remove(request)
            request.done, request.error = True, error
            if error is None:
                try:
                    with contained("what follows a write to the journal"):
                        request.then()
                except MigratorError as failure:
                    request.error = failure

    async def run(self) -> None:
        """Write scheduled documents and the events of the bus, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write()
            except JournalError as error:
                self._refused = isinstance(error, LeaseLost)
                self._log.warning("journal cannot be written", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()

    async def _write(self) -> None:
        async with self._writing:
            waiting = await self._build_waiting()
            events = self._events[:_EVENTS_AT_ONCE]
            documents = [(kind, each.document) for (kind, _), each in waiting.items()]
            try:
                numbers = await self.journal.save(*documents, events=_payloads(events))
            except JournalError:
                if self.journal.complaint or not events:
                    raise
                await self.journal.save(*documents)
                numbers = await self._one_by_one(events)
            self._forget(waiting)
            self._written(events, numbers)
        if self._documents or self._events:
            self._wake.set()
        else:
            self._idle.set()

    async def _one_by_one(self, events: Sequence[tuple[int, Mapping[str, Any]]]) -> list[int]:
        """Drop the events that a working journal refuses: one must not hold up all that follow.

        :return: their numbers, 0 for those that were dropped.
        """
        numbers = []
        for _, event in events:
            try:
                numbers += await self.journal.save(events=[event])
            except JournalError as error:
                if self.journal.complaint:
                    raise
                numbers.append(0)
                about = {"event_id": event["event_id"], "subject": event["subject_id"]}
                self._log.warning("event not journalled", **about, error=str(error))
        return numbers

    def _forget(self, written: Mapping[_Subject, _Built]) -> None:
        for subject, each in written.items():
            if self._documents.get(subject) is each.by:  # what was scheduled since is another one
                del self._documents[subject]

    # --- what the bus is told ----------------------------------------------------------------------------------------

    def _written(self, written: Sequence[tuple[int, Mapping[str, Any]]], numbers: Sequence[int]) -> None:
        """Let the bus deliver events that are on disk, or never will be."""
        self._refused = False
        if not written:
            return
        last = written[-1][0]
        self._events = [(place, event) for place, event in self._events if place > last]
        if self._delay_timer is not None:
            self._delay_timer.cancel()
            self._delay_timer = None
        if self._bypassing:
            self._log.info("events are journalled again before they are told")
        self._bypassing = False
        places = (place for place, _ in written)
        self._mark_journalled(
            self._events[0][0] - 1 if self._events else self._place, dict(zip(places, numbers, strict=True))
        )
        if self._events:
            self._start_delay_timer()

    def _mark_journalled(self, up_to: int | None, numbers: Mapping[int, int]) -> None:
        if self._bus is not None:
            self._bus.mark_journalled(up_to, numbers)

    def _start_delay_timer(self) -> None:
        if self._delay_timer is None and not self._bypassing:
            self._delay_timer = AwakeTimer(self._max_event_delay, self._bypass)

    def _bypass(self) -> None:
        self._delay_timer = None
        if self._refused:
            self._start_delay_timer()
            return
        self._bypassing = True
        self._log.warning("events are told before they are journalled", waiting=len(self._events))
        self._mark_journalled(None, {})

    async def flush(self, timeout: float) -> bool:
        """Wait until everything is written; False when it is not in time.

        Every event has been delivered then, but for what the journal refuses because another controller may act.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            if self._events and not self._bypassing:
                self._bypass()
            return False
        return True
