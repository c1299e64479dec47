"""Events: what happened to a migration, an evacuation, a host or a command, each kind as a class of its own.

The engine publishes them on its bus, which numbers them; whoever subscribes takes them by their type. They become
JSON only where they leave the process or go into the journal: :attr:`Event.payload`, :attr:`Event.text`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic_core import to_json

from migrator.api.documents import CommandDocument, DecisionDocument, Document, MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.inventory_documents import HostDocument
from migrator.text import writable

_NOT_PUBLISHED = datetime.min.replace(tzinfo=UTC)


class EventKind(StrEnum):
    """The kind of an event."""

    STATE = "state"
    DECISION = "decision"
    #: Not journalled and not counted in ``sequence``: what comes between two states.
    PROGRESS = "progress"
    COMMAND = "command"


class Subject(StrEnum):
    """The kind of thing that an event is about."""

    MIGRATION = "migration"
    EVACUATION = "evacuation"
    HOST = "host"
    COMMAND = "command"


class EventDocument(Document):
    """Something that happened. Journalled but for progress."""

    #: Grows with every journalled event of this service, whichever of its controllers; progress repeats the last, and
    #: so does what had to be told while the journal on a server was away. By one, but after a crash by more.
    event_id: int
    #: Grows by one with every journalled event of this subject: a gap shows that some were not delivered.
    sequence: int
    time: datetime
    kind: EventKind
    subject: Subject
    subject_id: str
    #: The document of the subject without its lists (state, progress), or the decision.
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Event(ABC):
    """Base class of all events. The bus that publishes one gives it its numbers; see :class:`EventDocument`."""

    kind: ClassVar[EventKind]
    subject: ClassVar[Subject]
    event_id: int = 0
    sequence: int = 0
    time: datetime = _NOT_PUBLISHED
    #: Whoever comes again with the number before it is given it then. Progress is not, nor what had to be told before
    #: a journal that gives the numbers could be written; such an event repeats the number of the one before it.
    has_number: bool = True

    @property
    @abstractmethod
    def subject_id(self) -> str:
        """Id of the migration, evacuation or command; name of the host."""

    @abstractmethod
    def _body(self) -> dict[str, Any]:
        """Return the body of the event as JSON has it."""

    def published(self, *, event_id: int, sequence: int, time: datetime) -> Self:
        """Return a copy with its numbers."""
        has_number = bool(event_id) and self.kind is not EventKind.PROGRESS
        return replace(self, event_id=event_id, sequence=sequence, time=time, has_number=has_number)

    def with_number(self, number: int, *, after: int) -> Self:
        """Return a copy with the number that the journal gave it, or that of the last one before it where it has none.

        :param number: 0 where it has none.
        """
        copy = replace(self, event_id=number or after, has_number=bool(number))
        # What was made of it once is not made again.
        if (payload := self.__dict__.get("payload")) is not None:
            copy.__dict__["payload"] = {**payload, "event_id": copy.event_id}
        if (text := self.__dict__.get("text")) is not None:
            copy.__dict__["text"] = f'{{"event_id":{copy.event_id}{text[text.index(",") :]}'
        return copy

    @property
    def identity(self) -> tuple[str, str, str, int, datetime]:
        """Return the event as it is told, with a number or without."""
        return self.kind, self.subject, self.subject_id, self.sequence, self.time

    @cached_property
    def payload(self) -> Mapping[str, Any]:
        """The fields of :class:`EventDocument` as JSON has them; made when they are first asked for, then kept."""
        return {
            "event_id": self.event_id,
            "sequence": self.sequence,
            "time": self.time.isoformat().replace("+00:00", "Z"),
            "kind": str(self.kind),
            "subject": str(self.subject),
            "subject_id": writable(self.subject_id),
            "body": self._body(),
        }

    @cached_property
    def text(self) -> str:
        """:attr:`payload` as JSON text; made once, for however many readers."""
        return to_json(self.payload).decode()


@dataclass(frozen=True, kw_only=True, eq=False)
class MigrationStateChanged(Event):
    """A migration entered a state, or something else of its document changed that does not change often.

    Its decisions need not be there: each has an event of its own.
    """

    kind = EventKind.STATE
    subject = Subject.MIGRATION
    migration: MigrationDocument

    @property
    def subject_id(self) -> str:
        return self.migration.id

    def _body(self) -> dict[str, Any]:
        return self.migration.model_dump(mode="json", exclude={"decisions"})


@dataclass(frozen=True, kw_only=True, eq=False)
class MigrationProgressed(Event):
    """New figures of a migration. Published a few times a second, never journalled, lost without harm."""

    kind = EventKind.PROGRESS
    subject = Subject.MIGRATION
    migration: MigrationDocument

    @property
    def subject_id(self) -> str:
        return self.migration.id

    def _body(self) -> dict[str, Any]:
        return self.migration.model_dump(mode="json", exclude={"decisions", "findings"})


@dataclass(frozen=True, kw_only=True, eq=False)
class DecisionTaken(Event):
    """The controller took a decision on a migration."""

    kind = EventKind.DECISION
    subject = Subject.MIGRATION
    #: Id of the migration.
    migration: str
    decision: DecisionDocument

    @property
    def subject_id(self) -> str:
        return self.migration

    def _body(self) -> dict[str, Any]:
        return self.decision.model_dump(mode="json")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvacuationStateChanged(Event):
    """An evacuation or restore entered a state, or one of its guests did."""

    kind = EventKind.STATE
    subject = Subject.EVACUATION
    evacuation: EvacuationDocument

    @property
    def subject_id(self) -> str:
        return self.evacuation.id

    def _body(self) -> dict[str, Any]:
        return self.evacuation.model_dump(mode="json")


@dataclass(frozen=True, kw_only=True, eq=False)
class HostStateChanged(Event):
    """A host changed: its state, whether it answers, or how many guests it has."""

    kind = EventKind.STATE
    subject = Subject.HOST
    host: HostDocument

    @property
    def subject_id(self) -> str:
        return self.host.host

    def _body(self) -> dict[str, Any]:
        return self.host.model_dump(mode="json")


@dataclass(frozen=True, kw_only=True, eq=False)
class CommandAnswered(Event):
    """A command got its first answer: an entry of the audit."""

    kind = EventKind.COMMAND
    subject = Subject.COMMAND
    #: The command's key as text.
    key: str
    command: CommandDocument

    @property
    def subject_id(self) -> str:
        return self.key

    def _body(self) -> dict[str, Any]:
        return self.command.model_dump(mode="json")


def read_event(row: Mapping[str, Any]) -> Event:
    """Read an event back from the journal. Its :attr:`Event.payload` is what the journal has, field by field.

    :raise ValueError: it is none that this version knows.
    """
    document = EventDocument.model_validate(row)
    event = _event(document).published(
        event_id=document.event_id, sequence=document.sequence, time=document.time
    )
    event.__dict__["payload"] = document.model_dump(mode="json")
    return event


def _event(document: EventDocument) -> Event:
    body = document.body
    match document.subject, document.kind:
        case Subject.MIGRATION, EventKind.STATE:
            return MigrationStateChanged(migration=MigrationDocument.model_validate(body))
        case Subject.MIGRATION, EventKind.PROGRESS:
            return MigrationProgressed(migration=MigrationDocument.model_validate(body))
        case Subject.MIGRATION, EventKind.DECISION:
            decision = DecisionDocument.model_validate(body)
            return DecisionTaken(migration=document.subject_id, decision=decision)
        case Subject.EVACUATION, EventKind.STATE:
            return EvacuationStateChanged(evacuation=EvacuationDocument.model_validate(body))
        case Subject.HOST, EventKind.STATE:
            return HostStateChanged(host=HostDocument.model_validate(body))
        case Subject.COMMAND, EventKind.COMMAND:
            return CommandAnswered(key=document.subject_id, command=CommandDocument.model_validate(body))
    raise ValueError(f"there are no events {document.kind} of a {document.subject}")
