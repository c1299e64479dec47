"""Keeps the journal up to date: what must be there before a step is waited for, everything else follows in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from migrator import logs
from migrator.api.events import EventDocument, EventKind
from migrator.engine.bus import Bus
from migrator.errors import JournalError
from migrator.ports import Journal

#: A journal that cannot be written is tried again after so long; writing a document twice does no harm.
_RETRY_SECONDS = 1.0
#: More than this unwritten and the oldest events go; documents are kept, one for each subject.
_EVENTS_WAITING = 50_000
#: Of a backlog so many go into one transaction: what must be there at once shall not wait for all of it.
_EVENTS_AT_ONCE = 1000
#: What leaves the process waits so long for the journal: state that is true counts for more than its number.
_PATIENCE_SECONDS = 3.0


#: A document, or what makes it at the moment at which it is written.
Document = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class _Waiting:
    """One document that is to be written; a newer one of its subject is another object."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def made(self) -> Mapping[str, Any]:
        """As it is now."""
        return _made(self._document)


def _made(document: Document) -> Mapping[str, Any]:
    return document() if callable(document) else document


class Keeper:
    """Writes to the journal in the background, and at once where that is asked for.

    Documents and the events that tell of them go into one transaction: after a crash no document is ahead of what
    was said of it, but for one that was just journalled to be begun.

    :param patience: seconds that an event which leaves the process waits for the journal. One that is not written by
        then (the disk is full, locked, or does not answer) is told all the same, and so is all that follows, until
        the journal is written again. Nothing else ever waits for that.
    """

    def __init__(self, journal: Journal, *, patience: float = _PATIENCE_SECONDS) -> None:
        self.journal = journal
        self._documents: dict[tuple[str, str], _Waiting] = {}
        self._events: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: One writer at a time, so that an older document never replaces a newer one.
        self._writing = asyncio.Lock()
        self._patience = patience
        self._impatient: asyncio.TimerHandle | None = None
        #: Events are told without waiting.
        self._passing = False
        self._heard = 0
        self._journalled: Callable[[int | None], None] = lambda upto: None
        self._log = logs.logger()

    def keep(self, bus: Bus) -> None:
        """Journal every event of `bus` from now on, in order, and tell it what is on disk."""
        self._heard = bus.last_event_id
        self._journalled = bus.journalled
        bus.journalled(self._heard)
        bus.call(self._hear)

    def later(self, kind: str, document: Mapping[str, Any]) -> None:
        """Write it soon; only the last of several is written."""
        self.afresh(kind, document["id"], lambda: document)

    def afresh(self, kind: str, identifier: str, document: Callable[[], Mapping[str, Any]]) -> None:
        """Write it soon, as it is then: what is changed meanwhile by :meth:`now` is in it."""
        self._documents[kind, identifier] = _Waiting(document)
        self._stir()

    def _hear(self, event: EventDocument) -> None:
        if event.kind is EventKind.PROGRESS:
            return
        self._heard = event.event_id
        self._events.append(event.model_dump(mode="json"))
        del self._events[:-_EVENTS_WAITING]
        self._be_patient()
        self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def now(self, *documents: tuple[str, Document], then: Callable[[], None] = lambda: None) -> None:
        """Write these, and all that waits; on disk when this returns.

        :param then: called at once when they are written, before anything else is: there memory takes over what they
            say. Until then nobody acts upon it, and where it fails nobody ever does.
        :raise JournalError: they could not be written, and are not.
        """
        async with self._writing:
            waiting = {**self._documents}
            asked = [(kind, _made(document)) for kind, document in documents]
            # What waits of the same subjects is older.
            own = {(kind, document["id"]) for kind, document in asked}
            every = [
                *((kind, each.made()) for (kind, name), each in waiting.items() if (kind, name) not in own)
            ]
            every += asked
            # Where room is short a backlog must not cost what is asked for now.
            events = [] if self.journal.complaint else self._events[:_EVENTS_AT_ONCE]
            try:
                await self.journal.save(*every, events=events)
            except JournalError:
                if self.journal.complaint or not events:
                    raise
                events = []
                await self.journal.save(*every)
            then()
            self._forget(waiting)
            self._told(events)

    async def run(self) -> None:
        """Write what is given to :meth:`later` and said on the bus, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write()
            except JournalError as error:
                self._log.warning("journal cannot be written", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()

    async def _write(self) -> None:
        async with self._writing:
            waiting, events = {**self._documents}, self._events[:_EVENTS_AT_ONCE]
            documents = [(kind, each.made()) for (kind, _), each in waiting.items()]
            try:
                await self.journal.save(*documents, events=events)
            except JournalError:
                if self.journal.complaint or not events:
                    raise
                await self.journal.save(*documents)
                await self._one_by_one(events)
            self._forget(waiting)
            self._told(events)
        if self._documents or self._events:
            self._wake.set()
        else:
            self._idle.set()

    async def _one_by_one(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Those that it refuses, though it can be written, are dropped: one must not hold up all that follow."""
        for event in events:
            try:
                await self.journal.save(events=[event])
            except JournalError as error:
                if self.journal.complaint:
                    raise
                self._log.warning("event not journalled", event_id=event["event_id"], error=str(error))

    def _forget(self, written: Mapping[tuple[str, str], _Waiting]) -> None:
        for key, each in written.items():
            if self._documents.get(key) is each:
                del self._documents[key]

    # --- what the bus is told ----------------------------------------------------------------------------------------

    def _told(self, written: Sequence[Mapping[str, Any]]) -> None:
        """These are on disk, or will never be: whoever waits for that may hear them."""
        if not written:
            return
        last = written[-1]["event_id"]
        self._events = [event for event in self._events if event["event_id"] > last]
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None
        if self._passing:
            self._log.info("events are journalled again before they are told")
        self._passing = False
        self._journalled(self._events[0]["event_id"] - 1 if self._events else self._heard)
        if self._events:
            self._be_patient()

    def _be_patient(self) -> None:
        if self._impatient is None and not self._passing:
            self._impatient = asyncio.get_running_loop().call_later(self._patience, self._pass)

    def _pass(self) -> None:
        self._impatient = None
        self._passing = True
        self._log.warning("events are told before they are journalled", waiting=len(self._events))
        self._journalled(None)

    async def flush(self, timeout: float) -> bool:
        """Wait until everything is written; False when it is not in time. Whoever listens has heard all then."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            if self._events and not self._passing:
                self._pass()
            return False
        return True
