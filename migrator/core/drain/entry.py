"""One guest of an evacuation: how far it is, and what is known of its next move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Guest

#: What a host is excluded for where the guest was tried there and failed; followed by what happened.
FAILED_THERE = "it failed there: "


def entry_of(guest: Guest) -> Entry:
    """Return the entry of a guest that joins; one that cannot be moved is set aside."""
    if not guest.obstacle:
        return Entry(guest=guest)
    return Entry(guest=guest, standing=GuestStanding.SET_ASIDE, reason=guest.obstacle)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One guest of an evacuation. A value: whatever changes gives another one."""

    guest: Guest
    standing: GuestStanding = GuestStanding.WAITING
    target: str | None = None
    #: Where a plan said that it would go; empty without one.
    planned: str = ""
    reason: str = ""
    #: Why it stays, where it does so only because others of its group do not move.
    stays: str = ""
    #: Why its last migration failed.
    failed: str = ""
    attempts: int = 0
    #: The policy that it came by, and goes home by where the evacuation has none; empty: as its rules say.
    policy: str = ""
    #: Id of the present or last migration.
    migration: str | None = None
    #: Hosts it shall not be tried on, each with why: preflight refused it, or it failed there.
    excluded: Mapping[str, str] = field(default_factory=dict)
    #: In its last migration it stood still for longer than its policy allows.
    exceeded: bool = False
    #: Its migration is held and will be taken up again once a host answers that does not now.
    awaited: bool = False
    #: It is, or was, to be saved into a file, as nothing else was left.
    saving: bool = False
    #: Not tried before, on the snapshot's clock.
    not_before: float = 0.0

    @property
    def wants_place(self) -> bool:
        """True while it is to be moved and has no migration under way."""
        return self.standing in (GuestStanding.WAITING, GuestStanding.NO_TARGET)

    @property
    def going(self) -> bool:
        """True while it waits, or is on its way."""
        return self.wants_place or self.standing is GuestStanding.MIGRATING

    @property
    def done(self) -> bool:
        """True once it has left, is home, or has ended."""
        return self.standing in (GuestStanding.MOVED, GuestStanding.GONE, GuestStanding.SAVED)

    @property
    def aside(self) -> bool:
        """True where it was set aside for an obstacle, before anything was tried."""
        return self.standing is GuestStanding.SET_ASIDE and not self.attempts
