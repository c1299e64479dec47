"""Keeps the journal up to date: what must be there before a step is waited for, everything else follows in order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from migrator import logs
from migrator.engine.documents import EventDocument, EventKind
from migrator.errors import JournalError
from migrator.ports import Journal

#: A journal that cannot be written is tried again after so long; writing a document twice does no harm.
_RETRY_SECONDS = 1.0
#: More than this unwritten and the oldest events go; documents are kept, one for each subject.
_EVENTS_WAITING = 50_000


class Keeper:
    """Writes to the journal in the background, and at once where that is asked for."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._documents: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: One writer at a time, so that an older document never replaces a newer one.
        self._writing = asyncio.Lock()
        self._log = logs.logger()

    def later(self, kind: str, document: Mapping[str, Any]) -> None:
        """Write it soon; only the last of several is written."""
        self._documents[kind, document["id"]] = document
        self._stir()

    def hear(self, event: EventDocument) -> None:
        """For the bus: write it soon, in order."""
        if event.kind is not EventKind.PROGRESS:
            self._events.append(event.model_dump(mode="json"))
            del self._events[:-_EVENTS_WAITING]
            self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def now(self, *documents: tuple[str, Mapping[str, Any]]) -> None:
        """Write these, and all that waits; on disk when this returns.

        :raise JournalError: they could not be written, and are not.
        """
        async with self._writing:
            waiting = {**self._documents}
            for kind, document in documents:
                waiting.pop((kind, document["id"]), None)
            await self.journal.save(
                *((kind, document) for (kind, _), document in waiting.items()), *documents
            )
            self._forget(waiting)
            for kind, document in documents:
                self._documents.pop((kind, document["id"]), None)

    async def run(self) -> None:
        """Write what is given to :meth:`later` and :meth:`hear`, until cancelled."""
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
            documents, events = {**self._documents}, list(self._events)
            if documents:
                await self.journal.save(*((kind, document) for (kind, _), document in documents.items()))
                self._forget(documents)
            if events:
                await self._append(events)
                written = {event["event_id"] for event in events}
                self._events = [event for event in self._events if event["event_id"] not in written]
        if not self._documents and not self._events:
            self._idle.set()

    async def _append(self, events: list[dict[str, Any]]) -> None:
        """Those that it refuses, though it can be written, are dropped: one must not hold up all that follow."""
        try:
            await self.journal.append(events)
        except JournalError as error:
            if self.journal.complaint:
                raise
            if len(events) == 1:
                self._log.warning("event not journalled", event_id=events[0]["event_id"], error=str(error))
                return
            for event in events:
                await self._append([event])

    def _forget(self, written: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
        for key, document in written.items():
            if self._documents.get(key) is document:
                del self._documents[key]

    async def flush(self, timeout: float) -> bool:
        """Wait until everything is written; False when it is not in time."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
