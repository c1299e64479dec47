"""Events: what happened to a migration, an evacuation, a host or a command."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from migrator.api.documents import Document


class EventKind(StrEnum):
    """What an event tells."""

    STATE = "state"
    DECISION = "decision"
    #: Not journalled and not counted in ``sequence``: what comes between two states.
    PROGRESS = "progress"
    COMMAND = "command"


class Subject(StrEnum):
    """What an event is about."""

    MIGRATION = "migration"
    EVACUATION = "evacuation"
    HOST = "host"
    COMMAND = "command"


class EventDocument(Document):
    """Something that happened. Journalled but for progress."""

    #: Grows with every journalled event of this service; progress repeats the last. By one, but after a crash by more.
    event_id: int
    #: Grows by one with every journalled event of this subject: a gap shows that some were not delivered.
    sequence: int
    time: datetime
    kind: EventKind
    subject: Subject
    subject_id: str
    #: The document of the subject without its lists (state, progress), or the decision.
    body: dict[str, Any]
