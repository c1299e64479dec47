"""One guest of an evacuation: how far it is, and what is known of its next move."""

from __future__ import annotations

from dataclasses import dataclass, field

from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Guest


@dataclass(kw_only=True)
class Entry:
    """One guest of an evacuation."""

    guest: Guest
    standing: GuestStanding = GuestStanding.WAITING
    target: str | None = None
    #: Where a plan said that it would go; empty without one.
    planned: str = ""
    reason: str = ""
    #: Why its last migration failed.
    failed: str = ""
    attempts: int = 0
    #: Id of the present or last migration.
    migration: str | None = None
    #: Hosts it shall not be tried on, each with why: preflight refused it, or it failed there.
    excluded: dict[str, str] = field(default_factory=dict)
    #: In its last migration it stood still for longer than its policy allows.
    exceeded: bool = False
    #: Its migration is held and will be taken up again once a host answers that does not now.
    awaited: bool = False
    #: On the loop's clock: not tried before.
    not_before: float = 0.0
    #: Predicted, from now.
    starts_in_seconds: float | None = None
    takes_seconds: float | None = None
    downtime_seconds: float | None = None
    #: Why it is not expected to end under its policy; empty where it is.
    doubt: str = ""

    @property
    def wants_place(self) -> bool:
        """It is to be moved and has no migration under way."""
        return self.standing in (GuestStanding.WAITING, GuestStanding.NO_TARGET)

    @property
    def going(self) -> bool:
        """It waits, or is on its way."""
        return self.wants_place or self.standing is GuestStanding.MIGRATING
