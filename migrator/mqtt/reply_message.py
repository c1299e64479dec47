"""Payloads beside :class:`migrator.api.events.EventDocument`."""

from __future__ import annotations

from datetime import datetime

from migrator.api.replies import Reply


class ReplyMessage(Reply):
    """A reply, and how far the events had come when it was given."""

    event_id: int
    #: Of the migration, evacuation or host it is about; 0 where it is about none.
    sequence: int
    time: datetime
