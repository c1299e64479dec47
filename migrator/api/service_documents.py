"""Documents of the service itself: its controllers, and the leases by which they share a journal.

See :mod:`migrator.api.documents` for their units.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from migrator.api.documents import Document


class ControllerDocument(Document):
    """One of the controllers that share a journal, as it says itself; times are by the database's clock."""

    #: Stays the same for as long as its state directory.
    name: str
    instance: str
    #: Of migrator.
    version: str
    #: Of the journal's tables that it is written for.
    schema_revision: str
    #: Where it answers; empty where nobody else can reach it.
    url: str = ""
    #: ``acting``, ``standby``, ``stopping``, ``replaced`` (it acted, and another has the lease by now), or ``waiting``
    #: for older controllers to go.
    role: str
    #: How many migrations it drives, as of its last heartbeat.
    migrations: int = 0
    #: What it waits for, or complains of.
    detail: str = ""
    #: Its lease holds.
    present: bool
    started_at: datetime
    #: Its last heartbeat, and how long ago that was.
    seen_at: datetime
    age_seconds: float


class LeaseDocument(Document):
    """The right to do something alone: ``site`` to plan, ``controller/NAME`` to drive migrations."""

    name: str
    #: Name of a controller.
    owner: str
    #: Larger than that of everyone who had it before.
    token: int
    taken_at: datetime
    #: Until it ends unless it is renewed; of one that has ended less than 0.
    left_seconds: float
    #: Since it was renewed.
    age_seconds: float


class ServiceDocument(Document):
    """The controller that answers, and those that it shares the journal with."""

    instance: str
    version: str
    #: By the clock of the machine that answers.
    now: datetime | None = None
    #: ``alone`` (the journal is its own), ``acting``, ``standby``, or ``replaced``: it acted, and another has the lease
    #: by now.
    role: str
    #: Instance of the controller that acts, and where it answers; ``null``: nobody acts.
    acting: str | None = None
    acting_url: str = ""
    #: How old what a controller that stands by shows may be; ``null``: it is this one's own.
    stale_seconds: float | None = None
    #: Whether the controller that answers is connected to the MQTT broker; ``null``: none is configured.
    broker_connected: bool | None = None
    #: Hosts of the site, and by user how many of them are being emptied because he asked, or will be within minutes: by
    #: these, whoever may not see other hosts knows whether everything goes down at once.
    hosts: int = 0
    emptied_by: dict[str, int] = Field(default_factory=dict)
    controllers: list[ControllerDocument] = Field(default_factory=list)
    leases: list[LeaseDocument] = Field(default_factory=list)
    #: Why new work is not taken, or nothing newer is known.
    complaints: list[str] = Field(default_factory=list)
