"""Replies to commands, and their outcomes: when what a command began has ended, its caller is told."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from migrator import logs
from migrator.api.events import Event, MigrationStateChanged, Subject
from migrator.api.replies import Reply
from migrator.api.requests import CommandKey
from migrator.errors import JournalError, Unavailable
from migrator.mqtt.inbound import IncomingCommand, ReplyTo
from migrator.mqtt.outbox import Outbox, Outgoing, Priority
from migrator.mqtt.reply_message import ReplyMessage
from migrator.mqtt.topics import STATEFUL, Topics
from migrator.ports.commands import Commands
from migrator.ports.queries import Queries

#: Ends that nobody waits for; the commands behind the last of them may still be on their way to its handler.
_UNCLAIMED = 1000
_RETRY_SECONDS = 5.0

_log = logs.logger(interface="mqtt")

Key = tuple[Subject, str]


class OutcomeJournal(Protocol):
    """The part of the journal that says who waits for an outcome."""

    async def command_behind(self, kind: str, identifier: str) -> Mapping[str, Any] | None:
        """``key``, ``verb``, ``caller`` and ``settled`` of the command that began a document; ``None``: none did."""

    async def unsettled(self) -> list[tuple[str, str]]:
        """Kind and id of what has ended, and whose commands have not been told."""


@dataclass(frozen=True, kw_only=True)
class _InitiatingCommand:
    """The command by MQTT that began a migration or an evacuation, as the journal has it."""

    key: CommandKey
    verb: str
    reply_to: ReplyTo


@dataclass(frozen=True, kw_only=True)
class _End:
    """A migration or an evacuation has ended."""

    subject: Subject
    subject_id: str
    #: As its last event had it; empty where there was none.
    body: Mapping[str, Any]
    #: Of that event; the bus does not know it any more.
    sequence: int = 0

    @property
    def key(self) -> Key:
        return self.subject, self.subject_id


class Replies:
    """Gives replies, and joins commands with the ends of what they began, whichever comes first.

    An outcome is in the journal before it is told, and the command is settled there once the broker has it: until then
    it is told again after a restart.

    :param max_bytes: of a reply; the document in a larger one is left out.
    """

    def __init__(
        self,
        *,
        commands: Commands,
        queries: Queries,
        journal: OutcomeJournal,
        outbox: Outbox,
        topics: Topics,
        max_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        self._commands = commands
        self._queries = queries
        self._journal = journal
        self._outbox = outbox
        self._topics = topics
        self._max_bytes = max_bytes
        self._now = now
        self._ends: asyncio.Queue[_End] = asyncio.Queue()
        self._unclaimed: OrderedDict[Key, _End] = OrderedDict()
        #: Commands that are on their way to their handler.
        self._executing: set[CommandKey] = set()
        #: Ends that are being told, until the journal has that they were.
        self._telling: set[Key] = set()
        self._told: asyncio.Queue[tuple[Key, CommandKey, Reply]] = asyncio.Queue()

    def give(
        self, reply: Reply, to: ReplyTo, *, then: Callable[[], None] | None = None, sequence: int = 0
    ) -> None:
        """Queue a reply; `then` is called once the broker has it.

        :param sequence: of the last event of its subject, where the bus may have forgotten that.
        """
        bus = self._queries.bus
        subject = Subject(reply.subject) if reply.subject in STATEFUL else None
        message = ReplyMessage(
            **dict(reply),
            event_id=bus.last_event_id,
            sequence=sequence
            or (bus.sequence(subject, reply.subject_id) if subject and reply.subject_id else 0),
            time=self._now(),
        )
        payload = message.model_dump_json().encode()
        if len(payload) > self._max_bytes:
            payload = message.model_copy(update={"body": None, "findings": []}).model_dump_json().encode()
        self._outbox.put(
            Outgoing(
                priority=Priority.REPLY,
                topic=to.topic,
                payload=payload,
                correlation=to.correlation,
                then=then,
            )
        )

    async def execute(self, incoming: IncomingCommand, *, then: Callable[[], None]) -> None:
        """Carry a command out and give its reply."""
        key = CommandKey(incoming.user, incoming.id)
        self._executing.add(key)
        try:
            reply = await self._commands.execute(incoming.envelope)
        finally:
            self._executing.discard(key)
        self.give(reply, incoming.reply_to, then=then)
        if reply.kind == "accepted" and reply.subject in (Subject.MIGRATION, Subject.EVACUATION):
            end = self._unclaimed.pop((Subject(reply.subject), reply.subject_id or ""), None)
            if end is not None:
                self._ends.put_nowait(end)

    def ended(self, event: Event) -> None:
        """Tell the outcome to whoever began what has ended with this state; returns at once."""
        if isinstance(event, MigrationStateChanged) and event.migration.evacuation:
            return  # no command of its own began it
        self._ends.put_nowait(
            _End(
                subject=event.subject,
                subject_id=event.subject_id,
                body=event.payload["body"],
                sequence=event.sequence,
            )
        )

    async def recall(self) -> None:
        """Have the outcomes told that somebody still waits for, from before there was anyone to hear of the ends.

        :raise JournalError: it cannot be read.
        """
        for kind, identifier in await self._journal.unsettled():
            self._ends.put_nowait(_End(subject=Subject(kind), subject_id=identifier, body={}))

    async def tell_outcomes(self) -> None:
        """Give outcomes, until cancelled."""
        while True:
            end = await self._ends.get()
            if end.key in self._telling:
                continue
            try:
                begun = await self._initiating_command(end)
            except JournalError as error:
                _log.warning("outcome not told yet", subject=end.subject_id, error=str(error))
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._ends.put_nowait, end)
                continue
            if begun is None:
                continue
            if begun.key in self._executing:
                self._wait_for_reply(end)  # which goes first
            else:
                await self._tell(end, begun)

    async def settle_told(self) -> None:
        """Have the journal know which outcomes the broker has, until cancelled."""
        while True:
            subject, key, reply = await self._told.get()
            try:
                await self._commands.keep_outcome(key=key, reply=reply)
            except (JournalError, Unavailable) as error:
                _log.warning("outcome is told once more after a restart", command=key.id, error=str(error))
            else:
                self._telling.discard(subject)
            finally:
                self._told.task_done()

    async def all_settled(self) -> None:
        """Wait until the journal has been told of each outcome that the broker has."""
        await self._told.join()

    def _wait_for_reply(self, end: _End) -> None:
        self._unclaimed[end.key] = end
        if len(self._unclaimed) > _UNCLAIMED:
            self._unclaimed.popitem(last=False)

    async def _tell(self, end: _End, begun: _InitiatingCommand) -> None:
        body = await self._document(end)
        if not body:
            return  # the journal has forgotten it
        reply = Reply.model_validate(
            {
                "kind": "outcome",
                "id": begun.key.id,
                "verb": begun.verb,
                "subject": end.subject,
                "subject_id": end.subject_id,
                "body": body,
            }
        )
        try:
            await self._commands.keep_outcome(key=begun.key, reply=reply, told=False)
        except (JournalError, Unavailable) as error:
            _log.warning("outcome not journalled", command=begun.key.id, error=str(error))
        self._telling.add(end.key)
        self.give(
            reply,
            begun.reply_to,
            then=lambda: self._told.put_nowait((end.key, begun.key, reply)),
            sequence=end.sequence,
        )

    async def _initiating_command(self, end: _End) -> _InitiatingCommand | None:
        """Return the command by MQTT whose outcome is to be told."""
        found = await self._journal.command_behind(end.subject, end.subject_id)
        if found is None or found["settled"] or found["caller"].get("interface") != "mqtt":
            return None
        key = CommandKey.read(found["key"])
        to = ReplyTo.of(found["caller"].get("origin", ""), topics=self._topics, user=key.user)
        return _InitiatingCommand(
            key=key,
            verb=found["verb"],
            reply_to=to or ReplyTo(topic=self._topics.reply(key.user, key.id)),
        )

    async def _document(self, end: _End) -> Mapping[str, Any]:
        find = self._queries.migration if end.subject is Subject.MIGRATION else self._queries.evacuation
        try:
            document = await find(end.subject_id)
        except JournalError:
            return end.body
        if document is None or document.ended_at is None:
            return end.body
        return document.model_dump(mode="json")
