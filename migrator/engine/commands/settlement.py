"""Joins what has ended with the command that began it: from then on the same id gets the outcome.

MQTT tells outcomes by itself, and settles its commands when it does; this is for everybody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from typing import Any, Protocol

from migrator import logs
from migrator.api.events import EvacuationStateChanged, Event, MigrationStateChanged
from migrator.api.replies import Reply
from migrator.api.requests import CommandKey
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.engine.event_bus import EventBus
from migrator.errors import JournalError

_RETRY_SECONDS = 5.0


class CommandJournal(Protocol):
    """The part of the journal that this needs."""

    async def command_behind(self, kind: str, identifier: str) -> Mapping[str, Any] | None:
        """Return ``key``, ``verb`` and ``caller`` of the command that began a document; ``None`` where none did."""

    async def find(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """Return one document, ended or not."""

    async def unsettled(self) -> list[tuple[str, str]]:
        """Return kind and id of each document that has ended and whose command has not been told."""


class Settlement:
    """Settles commands from its making on, once it runs.

    :param elsewhere: interfaces whose commands are settled by them.
    """

    def __init__(
        self,
        *,
        bus: EventBus,
        journal: CommandJournal,
        dispatcher: Dispatcher,
        elsewhere: Container[str] = (),
    ) -> None:
        self._journal, self._dispatcher, self._elsewhere = journal, dispatcher, elsewhere
        self._ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._log = logs.logger()
        bus.subscribe(self._on_event, journalled=True)

    def _on_event(self, event: Event) -> None:
        match event:
            case MigrationStateChanged(migration=begun) | EvacuationStateChanged(evacuation=begun):
                if begun.ended_at is not None:
                    self._ended.put_nowait((event.subject, event.subject_id))

    async def run(self) -> None:
        """Settle what ended before a restart, then what ends, until cancelled."""
        while True:
            try:
                for kind, identifier in await self._journal.unsettled():
                    await self._settle(kind, identifier)
                break
            except JournalError as error:
                self._log.warning("commands not settled", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
        while True:
            kind, identifier = await self._ended.get()
            try:
                await self._settle(kind, identifier)
            except JournalError as error:
                self._log.warning("command not settled", subject=identifier, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                self._ended.put_nowait((kind, identifier))

    async def _settle(self, kind: str, identifier: str) -> None:
        behind = await self._journal.command_behind(kind, identifier)
        if behind is None or behind["caller"].get("interface") in self._elsewhere:
            return
        document = await self._journal.find(kind, identifier)
        if document is None or not document.get("ended_at"):
            return
        key = CommandKey.read(behind["key"])
        reply = Reply.model_validate(
            {
                "kind": "outcome",
                "id": key.id,
                "verb": behind["verb"],
                "subject": kind,
                "subject_id": identifier,
                "body": {name: each for name, each in document.items() if name != "_private"},
            }
        )
        await self._dispatcher.keep_outcome(key=key, reply=reply)
