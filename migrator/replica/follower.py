"""Follows the controller that acts, over the journal they share: its live documents and its events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from migrator import faults, logs
from migrator.api.events import read_event
from migrator.errors import JournalError, MigratorError
from migrator.ports import Signals
from migrator.ports.controllers import EVENTS_CHANNEL, LIVE_CHANNEL, LiveDocument, LiveDocuments
from migrator.replica.state import ReplicaState

#: It is looked without a signal so often: one may be missed.
_POLL_SECONDS = 1.0
#: Signals that come together cost one look.
_PAUSE_SECONDS = 0.02
_EVENTS_AT_ONCE = 1000
#: Of what was removed nothing is left after half a day's batches: after that all is read anew.
_MOST_VERSIONS = 43_200


class FollowedJournal(Protocol):
    """The part of the journal that is read; see :class:`migrator.ports.Journal`."""

    @property
    def signals(self) -> Signals: ...

    @property
    def live(self) -> LiveDocuments: ...

    async def events(self, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]: ...

    async def positions(self) -> tuple[int, Mapping[tuple[str, str], int]]: ...


class JournalFollower:
    """Keeps a :class:`ReplicaState` as another controller has it. A journal that is away leaves it as it was.

    :ivar complaint: why nothing newer is known; empty while all is well.
    """

    def __init__(self, state: ReplicaState, journal: FollowedJournal) -> None:
        self._state, self._journal = state, journal
        self._version = 0
        self._began = False
        self._read_at: float | None = None
        self._dirty = asyncio.Event()
        self.complaint = ""

    def stale_seconds(self) -> float | None:
        """Seconds since the journal was last read; ``None``: it has not been yet."""
        return None if self._read_at is None else time.monotonic() - self._read_at

    async def run(self) -> None:
        """Follow, until cancelled."""
        async with self._journal.signals.listen(
            LIVE_CHANNEL, EVENTS_CHANNEL, poll_seconds=_POLL_SECONDS
        ) as signals:
            reading = asyncio.create_task(faults.keep_going("follow", self._read_all), name="follow")
            try:
                self._dirty.set()
                async for _ in signals:
                    self._dirty.set()
            finally:
                reading.cancel()
                await asyncio.wait({reading})

    async def _read_all(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self.read()
                self.complaint = ""
                self._read_at = time.monotonic()
            except JournalError as error:
                if not self.complaint:
                    logs.logger().warning("the controller that acts cannot be followed", error=str(error))
                self.complaint = str(error)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def read(self) -> None:
        """Take over what is new.

        :raise JournalError: it cannot be read; what was known stays.
        """
        if not self._began:
            # Events first: a document that is read later tells of more of them, not of fewer.
            last, sequences = await self._journal.positions()
            told = [(*key, sequence) for key, sequence in sequences.items()]
            self._state.events.began({"last_event_id": last, "sequences": told})
        if self.complaint or not self._began:
            now = await self._journal.live.version()
            if now < self._version or now - self._version > _MOST_VERSIONS:
                self._version = 0
        whole = self._version == 0
        documents = await self._journal.live.since(self._version)
        if whole:
            self._state.begin()
        self._take(documents)
        if whole:
            self._state.end()
        self._began = True
        await self._read_events()
        self._state.complete.set()

    def _take(self, documents: Sequence[LiveDocument]) -> None:
        for document in documents:
            with suppress(MigratorError), faults.contained("a document of another controller"):
                self._state.take(document)
            self._version = max(self._version, document.version)

    async def _read_events(self) -> None:
        more = True
        while more:
            rows = await self._journal.events(after=self._state.events.last_event_id, limit=_EVENTS_AT_ONCE)
            more = len(rows) == _EVENTS_AT_ONCE
            for row in rows:
                try:
                    self._state.take_event(read_event(row))
                except ValueError as error:  # a newer version's; a stream gives it as text
                    logs.logger().warning("event cannot be read", number=row["event_id"], error=str(error))
                    self._state.events.last_event_id = row["event_id"]
