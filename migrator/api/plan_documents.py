"""Documents of a plan: what an evacuation would do, before the act.

See :mod:`migrator.api.documents` for their units.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from migrator.api.documents import Document, FindingDocument


class PlannedGuestExperience(Document):
    """Experience with a guest from its earlier migrations, and from measurements of its write rate."""

    #: When its last migration ended that brought it to another host; ``null``: none did, or it was too long ago.
    last_moved_at: datetime | None = None
    #: How long that took, and how long the guest stood still.
    last_move_seconds: float | None = None
    last_move_downtime_seconds: float | None = None
    #: The hours of the day, UTC, in which it writes least: the first, and the one after the last; ``null``: it has none
    #: that are much quieter than others, or too few were measured.
    quiet_from_hour: int | None = None
    quiet_until_hour: int | None = None
    #: The same for people.
    note: str


class PlannedGuest(Document):
    """The part of a plan that is about one guest."""

    guest: str
    guest_name: str = ""
    target: str | None = None
    #: Place in the order of starts, from 1; ``null`` without a target.
    order: int | None = None
    reason: str = ""
    starts_in_seconds: float | None = None
    takes_p10_seconds: float | None = None
    takes_p50_seconds: float | None = None
    takes_p90_seconds: float | None = None
    downtime_seconds: float | None = None
    policy: str = ""
    verdict: str = ""
    #: The group whose guests are switched together, at the end of the last of them; empty: it goes alone.
    moved_with: str = ""
    #: The file on its host that an evacuation of that id (``ID``) would save it into, as it cannot move; empty: none.
    saved_into: str = ""
    #: False: no host can take it, an error is among its findings, or its policy is not expected to let it end.
    possible: bool = True
    findings: list[FindingDocument] = Field(default_factory=list)
    #: ``null``: it was not moved before, nor is it known when it writes least.
    experience: PlannedGuestExperience | None = None


class PlannedPath(Document):
    """The path between two hosts, as a plan takes it."""

    source: str
    target: str
    #: That streams may take of it, all together: the interval says how far that may be off.
    bytes_per_second: float
    p10_bytes_per_second: float
    p90_bytes_per_second: float
    #: Of the last stream that showed something of it; ``null``: none did.
    measured_at: datetime | None = None
    #: ``measured`` (it held streams back), ``configured``, ``card`` (read from the source's link) or ``assumed``.
    basis: str
    #: The same for people.
    note: str


class PlanDocument(Document):
    """The plan of an evacuation, before the act."""

    host: str
    #: The paths that its guests would take.
    paths: list[PlannedPath] = Field(default_factory=list)
    guests: list[PlannedGuest] = Field(default_factory=list)
    #: Guests that are not ``possible``: with one of them the host would not become empty.
    cannot_move: int = 0
    #: Guests that the host's libvirt has shut off: they stay, and do not keep it from being empty.
    guests_shut_off: int = 0
    takes_p10_seconds: float | None = None
    takes_p50_seconds: float | None = None
    takes_p90_seconds: float | None = None
    #: What no schedule can beat: bytes that must go over the links, and the largest single guest.
    lower_bound_seconds: float | None = None


class HomecomingPolicy(Document):
    """Guests that come home by one policy."""

    #: The one that is asked for, else the one that they left by; empty: each comes by its own.
    policy: str
    guests: int
    #: What it allows, for a person: one sentence each; none where each comes by its own.
    allows: list[str] = Field(default_factory=list)


class RestorePlanDocument(Document):
    """Guests that a restore would bring home, before the act."""

    host: str
    guests: int = 0
    policies: list[HomecomingPolicy] = Field(default_factory=list)
