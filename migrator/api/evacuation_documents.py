"""Documents of evacuations, and of what is shown like them: restores, groups and rolls.

See :mod:`migrator.api.documents` for their units.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from migrator.api.documents import Document
from migrator.core.drain.roll import RollStage
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.drain.window import WindowFit


class EvacuationGuest(Document):
    """One guest of an evacuation."""

    guest: str
    guest_name: str = ""
    standing: GuestStanding
    target: str | None = None
    #: Why there, or why not, in one sentence.
    reason: str = ""
    attempts: int = 0
    #: Of the present or last attempt.
    migration: str | None = None
    #: In that it certainly stood still for longer than its policy allows.
    ceiling_exceeded: bool = False
    #: Seconds from now, p50, as predicted.
    starts_in_seconds: float | None = None
    takes_seconds: float | None = None
    downtime_seconds: float | None = None
    #: Why its migration is not expected to end under its policy, in one sentence; empty where it is.
    doubt: str = ""


class RolledHost(Document):
    """One host of a rolling evacuation."""

    host: str
    stage: RollStage
    #: What it waits for, or why it is not well, in one sentence.
    reason: str = ""
    #: When it came to that stage.
    since: datetime | None = None
    #: The ids of its evacuation and of its restore, once they are begun.
    evacuation: str | None = None
    restore: str | None = None


class EvacuationDocument(Document):
    """A set of migrations that empties a host, or brings its guests home, or moves the guests of a group together; or a
    rolling evacuation, which empties hosts one after the other, hands them over, and fills them again.
    """

    id: str
    kind: Literal["evacuate", "restore", "group", "roll"] = "evacuate"
    #: With ``group`` and ``roll`` empty.
    host: str
    #: With ``group``: its name, and the host that its guests go to; empty: where there is room for each.
    group: str = ""
    target: str = ""
    state: EvacuationState
    policy: str = ""
    requested_by: str = ""
    #: The W3C trace context that came with the command.
    traceparent: str | None = None
    tracestate: str | None = None
    created_at: datetime
    ended_at: datetime | None = None
    deadline: datetime | None = None
    on_deadline: Literal["continue", "stop"] = "continue"
    #: Its window, where it has one: ``scheduled`` until it begins; nothing of it is begun after the window's end.
    starts_at: datetime | None = None
    window_ends_at: datetime | None = None
    #: What is remarkable about the local times that were given: a change of clocks.
    window_note: str = ""
    #: While it is scheduled: whether the window is expected to do, and why, in one sentence.
    window_fit: WindowFit | None = None
    window_forecast: str = ""
    #: It begins within ten minutes.
    begins_soon: bool = False
    #: Whether it may be cancelled, as of now.
    can_cancel: bool = False
    #: The deadline has passed with guests still there.
    late: bool = False
    #: The forecast says that the deadline will be missed (its p50), or may be (its p90), or that a guest will stay.
    at_risk: bool = False
    #: Without the guests that are not expected to leave; ``null`` where nobody is, or where it has proved wrong.
    forecast_end_at: datetime | None = None
    forecast_end_p10_at: datetime | None = None
    forecast_end_p90_at: datetime | None = None
    guests: list[EvacuationGuest] = Field(default_factory=list)
    guests_left: int = 0
    #: With ``evacuate``: guests that the host's libvirt had shut off when this ended: they are none of ``guests``, and
    #: stay on a host that is empty. ``null``: its libvirt could not be asked.
    guests_shut_off: int | None = 0
    #: With ``roll``: its hosts, in their order, and how many of them may be away from use at a time.
    hosts: list[RolledHost] = Field(default_factory=list)
    max_unavailable: int | None = None
    error: str | None = None
