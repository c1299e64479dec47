"""Replies to commands, and their outcomes: when what a command began has ended, its caller is told."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from migrator import logs
from migrator.api.commands import CommandKey, Reply
from migrator.api.events import Event, MigrationStateChanged, Subject
from migrator.errors import JournalError
from migrator.mqtt.inbound import IncomingCommand, ReplyTo
from migrator.mqtt.outbox import Outbox, Outgoing, Priority
from migrator.mqtt.reply_message import ReplyMessage
from migrator.mqtt.topics import STATEFUL, Topics
from migrator.ports.commands import Commands
from migrator.ports.queries import Queries

#: CommandHandlers that begin what ends later: the others are done when they are answered.
BEGINNING = ("migrate", "evacuate", "restore")

#: Ends that nobody waits for; the commands behind the last of them may still be on their way to its handler.
_UNCLAIMED = 1000

_log = logs.logger(interface="mqtt")

Key = tuple[Subject, str]


@dataclass(frozen=True, kw_only=True)
class InitiatingCommand:
    """The command that began a migration or an evacuation, as the journal has it."""

    user: str
    id: str
    verb: str
    #: :attr:`migrator.api.commands.Caller.origin`, in which the reply's topic is written down.
    origin: str = ""


#: Asks the journal which command by MQTT began this; ``None``: none did.
FindInitiator = Callable[[Subject, str], Awaitable[InitiatingCommand | None]]


async def no_initiator(subject: Subject, subject_id: str) -> InitiatingCommand | None:  # noqa: ARG001 - a FindInitiator
    """For a service that remembers nothing."""
    return None


class Replies:
    """Gives replies, and joins commands with the ends of what they began, whichever comes first.

    :param max_bytes: of a reply; the document in a larger one is left out.
    """

    def __init__(
        self,
        *,
        commands: Commands,
        queries: Queries,
        outbox: Outbox,
        topics: Topics,
        max_bytes: int,
        find_initiator: FindInitiator,
        now: Callable[[], datetime],
    ) -> None:
        self._commands = commands
        self._queries = queries
        self._outbox = outbox
        self._topics = topics
        self._max_bytes = max_bytes
        self._find_initiator = find_initiator
        self._now = now
        self._ends: asyncio.Queue[Event] = asyncio.Queue()
        self._waiting: dict[Key, tuple[InitiatingCommand, ReplyTo]] = {}
        self._unclaimed: OrderedDict[Key, Event] = OrderedDict()
        #: User and id of what is on its way to its handler.
        self._executing: set[tuple[str, str]] = set()

    def give(self, reply: Reply, to: ReplyTo, *, then: Callable[[], None] | None = None) -> None:
        """Queue a reply; `then` is called once the broker has it."""
        bus = self._queries.bus
        subject = Subject(reply.subject) if reply.subject in STATEFUL else None
        message = ReplyMessage(
            **dict(reply),
            event_id=bus.last_event_id,
            sequence=bus.sequence(subject, reply.subject_id) if subject and reply.subject_id else 0,
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
        caller = (incoming.user, incoming.id)
        self._executing.add(caller)
        try:
            reply = await self._commands.execute(incoming.envelope)
        finally:
            self._executing.discard(caller)
        self.give(reply, incoming.reply_to, then=then)
        if reply.kind != "accepted" or reply.verb not in BEGINNING or not reply.subject_id:
            return
        if reply.subject in (Subject.MIGRATION, Subject.EVACUATION):
            key = (Subject(reply.subject), reply.subject_id)
            begun = InitiatingCommand(user=incoming.user, id=incoming.id, verb=reply.verb)
            self._waiting[key] = (begun, incoming.reply_to)
            if event := self._unclaimed.pop(key, None):
                self.ended(event)

    def ended(self, event: Event) -> None:
        """The state with which a migration or an evacuation ended."""
        self._ends.put_nowait(event)

    async def tell_outcomes(self) -> None:
        """Give outcomes, until cancelled."""
        while True:
            event = await self._ends.get()
            found = await self._who_waits(event)
            if found is None:
                self._unclaimed[event.subject, event.subject_id] = event
                if len(self._unclaimed) > _UNCLAIMED:
                    self._unclaimed.popitem(last=False)
                continue
            await self._tell(event, *found)

    async def _tell(self, event: Event, begun: InitiatingCommand, to: ReplyTo) -> None:
        reply = Reply.model_validate(
            {
                "kind": "outcome",
                "id": begun.id,
                "verb": begun.verb,
                "subject": event.subject,
                "subject_id": event.subject_id,
                "body": await self._document(event),
            }
        )
        try:
            await self._commands.keep_outcome(key=CommandKey(begun.user, begun.id), reply=reply)
        except JournalError as error:
            _log.warning("outcome not journalled", command=begun.id, error=str(error))
        self.give(reply, to)

    async def _who_waits(self, event: Event) -> tuple[InitiatingCommand, ReplyTo] | None:
        found = self._waiting.pop((event.subject, event.subject_id), None)
        if found is not None or (isinstance(event, MigrationStateChanged) and event.migration.evacuation):
            return found
        try:
            begun = await self._find_initiator(event.subject, event.subject_id)
        except JournalError as error:
            _log.warning("outcome not told", subject=event.subject_id, error=str(error))
            return None
        found = self._waiting.pop((event.subject, event.subject_id), None)
        # While the command is on its way to its handler, its reply goes first.
        if found is not None or begun is None or (begun.user, begun.id) in self._executing:
            return found
        to = ReplyTo.of(begun.origin, topics=self._topics, user=begun.user)
        return begun, to or ReplyTo(topic=self._topics.reply(begun.user, begun.id))

    async def _document(self, event: Event) -> Mapping[str, Any]:
        find = self._queries.migration if event.subject is Subject.MIGRATION else self._queries.evacuation
        told: Mapping[str, Any] = event.payload["body"]
        try:
            document = await find(event.subject_id)
        except JournalError:
            return told
        if document is None or document.ended_at is None:
            return told
        return document.model_dump(mode="json")
