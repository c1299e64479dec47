"""Writes the state of a service for other controllers: the documents that have changed, in one batch a second at most.

Runs in the process that answers, which has all of them and has time: the process that drives migrations takes no part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from migrator import logs
from migrator.errors import JournalError, LeaseLost
from migrator.ports import Lease
from migrator.ports.controllers import LiveDocument, LiveDocuments
from migrator.replica.state import DocumentKey, ReplicaState

#: From the beginning of one batch to that of the next.
_INTERVAL_SECONDS = 1.0
#: Documents in one batch, and those that are made into text before others have their turn.
_BATCH, _AT_ONCE = 2000, 25


class LiveDocumentWriter:
    """Writes them for as long as somebody may read them.

    :param name: of this controller.
    :param right: the lease that gives the right to write; ``None``: nobody needs to be told.
    """

    def __init__(
        self, state: ReplicaState, live: LiveDocuments, *, name: str, right: Callable[[], Lease | None]
    ) -> None:
        self._state, self._live = state, live
        self._name, self._right = name, right
        #: The token under which everything was written once; what changes is written since.
        self._token: int | None = None
        self._failing = False

    async def run(self) -> None:
        """Write what changes, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self.write()
            await asyncio.sleep(max(0.0, began + _INTERVAL_SECONDS - loop.time()))

    async def write(self) -> None:
        """Write one batch, if there is something to write and somebody to read it."""
        lease = self._right()
        if lease is None or not self._state.complete.is_set():
            self._token = None
            self._state.changed = None  # nobody counts them
            return
        changed: dict[DocumentKey, None] = {}
        try:
            if self._token != lease.token:
                self._state.changed = self._state.all_keys()
                # What is there and not ours has been left by another.
                left = {(each.kind, each.id) for each in await self._live.since(0) if each.text is not None}
                self._state.changed.update(dict.fromkeys(left - self._state.changed.keys()))
                self._token = lease.token
            if not self._state.changed:
                return
            changed = dict(list(self._state.changed.items())[:_BATCH])
            for key in changed:
                del self._state.changed[key]
            await self._live.write(await self._documents(changed), writer=self._name, lease=lease)
            self._failing = False
        except LeaseLost:
            self._token = None
        except JournalError as error:
            if not self._failing:
                logs.logger().warning("other controllers are not told of changes now", error=str(error))
            self._failing = True
            if self._state.changed is not None:
                self._state.changed = {**changed, **self._state.changed}

    async def _documents(self, changed: dict[DocumentKey, None]) -> list[LiveDocument]:
        documents = []
        for number, (kind, identifier) in enumerate(changed):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            text, sequence = self._state.text(kind, identifier)
            documents.append(LiveDocument(kind=kind, id=identifier, text=text, sequence=sequence))
        return documents
