"""One evacuation, or restore: which guests belong to it, how far each is, and what is to happen to it next.

It decides nothing about hosts or links: the planner asks it who wants a place, and tells it who got
which. No I/O and no clock of its own, so that every way through it can be tested.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from migrator.core.drain.entry import Entry
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest
from migrator.core.model import State

#: Code of what keeps a guest from leaving, as the catalogue of findings has it: it is not there yet.
ARRIVING = "arriving"
#: A guest whose migration failed waits so long before it is tried again, doubled each time.
FIRST_PAUSE_SECONDS = 5.0
#: After so many failures it is set aside.
MOST_ATTEMPTS = 3
#: A guest that cannot be asked is waited for so long while nothing else is under way: it may be at its end, or its
#: monitor be held for a moment only.
LOST_SECONDS = 10.0
#: A guest that no host can take is waited for so long while nothing else is under way.
NO_TARGET_SECONDS = 30.0

_DONE = {GuestStanding.MOVED, GuestStanding.GONE}
_LEFT_ALONE = {GuestStanding.SET_ASIDE, GuestStanding.HELD}


class Evacuation:
    """Empties a host, or brings its guests home.

    :ivar entries: by the guests' keys.
    """

    def __init__(
        self,
        *,
        identifier: str,
        host: str,
        kind: Literal["evacuate", "restore"] = "evacuate",
        policy: str = "",
        accept: Iterable[str] = (),
        deadline: datetime | None = None,
        on_deadline: Literal["continue", "stop"] = "continue",
        requested_by: str = "",
        key: str = "",
        traceparent: str | None = None,
        tracestate: str | None = None,
        created_at: datetime | None = None,
    ) -> None:
        self.id = identifier
        self.host = host
        self.kind = kind
        self.policy = policy
        self.accept = list(accept)
        self.deadline = deadline
        self.on_deadline = on_deadline
        self.requested_by = requested_by
        self.key = key
        #: The W3C trace context that came with the command.
        self.traceparent, self.tracestate = traceparent, tracestate
        self.created_at = created_at or datetime.now(UTC)
        self.ended_at: datetime | None = None
        self.state = EvacuationState.RUNNING
        self.entries: dict[str, Entry] = {}
        #: Nothing more is started: it was cancelled, or stopped at its deadline.
        self.closing: EvacuationState | None = None
        self.late = self.at_risk = False
        self.forecast_end_at: tuple[datetime, datetime, datetime] | None = None
        self.error: str | None = None
        #: Nobody wants a place before: its guests are being looked at more closely. On the loop's clock.
        self.not_before = 0.0
        self._idle_since: float | None = None

    @property
    def ended(self) -> bool:
        """Nothing more will happen."""
        return self.ended_at is not None

    # --- its guests --------------------------------------------------------------------------------------------------

    def take(self, guests: Iterable[Guest]) -> bool:
        """What is on its host now: new ones join, those that somebody else took away are gone. True: it changed.

        For an evacuation only; whom a restore brings home is settled when it begins.
        """
        there = {guest.key: guest for guest in guests}
        changed = False
        for key, guest in there.items():
            entry = self.entries.get(key)
            if entry is None or (entry.standing in _DONE and self.closing is None):
                self.entries[key] = Entry(guest=guest)  # new, or somebody brought it back
                changed = True
            elif entry.wants_place:
                entry.guest = guest
        for key, entry in self.entries.items():
            # Whose migration is held is for a person to say; where it was may not even answer.
            if key not in there and entry.standing not in _DONE | {
                GuestStanding.MIGRATING,
                GuestStanding.HELD,
            }:
                entry.standing, entry.reason = GuestStanding.GONE, "it is not on this host any more"
                changed = True
        for key, entry in self.entries.items():
            aside = entry.standing is GuestStanding.SET_ASIDE and not entry.attempts and entry.guest.obstacle
            if aside and key in there and there[key].obstacle:
                entry.guest, entry.reason = there[key], there[key].obstacle  # who holds it may be another
        for entry in self.entries.values():
            if entry.guest.obstacle and entry.wants_place:
                entry.standing, entry.reason = GuestStanding.SET_ASIDE, entry.guest.obstacle
                changed = True
            elif (
                entry.standing is GuestStanding.SET_ASIDE
                and not entry.attempts
                and entry.guest.key in there
                and not there[entry.guest.key].obstacle
                and entry.guest.obstacle
            ):
                entry.guest, entry.standing, entry.reason = there[entry.guest.key], GuestStanding.WAITING, ""
                changed = True
        return changed

    def hold_to(self, planned: Mapping[str, str]) -> None:
        """Prefer the targets that a plan has told, by the guests' keys."""
        for key, target in planned.items():
            if key in self.entries and self.entries[key].wants_place:
                self.entries[key].planned = self.entries[key].target = target

    def follow(self, guests: Iterable[Guest], up: Collection[str]) -> bool:
        """For a restore: where its guests are now; who is on no host that answers is gone. True: it changed."""
        now = {guest.key: guest for guest in guests}
        changed = False
        for key, entry in self.entries.items():
            if not entry.wants_place:
                continue
            if key in now and now[key].host == self.host:
                entry.standing, entry.reason, changed = GuestStanding.MOVED, "is home already", True
            elif key in now:
                entry.guest = now[key]
            elif entry.guest.host in up:
                entry.standing, entry.reason, changed = GuestStanding.GONE, "it is nowhere any more", True
        return changed

    def wanting(self, now: float) -> list[Entry]:
        """Who wants a place now."""
        if self.closing is not None or self.ended or now < self.not_before:
            return []
        return [entry for entry in self.entries.values() if entry.wants_place and now >= entry.not_before]

    def begun(self, key: str, migration: str, target: str, reason: str) -> None:
        """A migration was begun for it."""
        entry = self.entries[key]
        entry.standing, entry.migration, entry.target = GuestStanding.MIGRATING, migration, target
        entry.reason, entry.attempts = reason, entry.attempts + 1

    def as_if_begun(self, key: str, migration: str, target: str, reason: str) -> Evacuation:
        """One as this will be after :meth:`begun`: for the journal, which is told before."""
        other = copy.copy(self)
        other.entries = {**self.entries, key: replace(self.entries[key])}
        other.begun(key, migration, target, reason)
        return other

    def as_if_closing(self, closing: EvacuationState) -> Evacuation:
        """One as this will be when it is told to close."""
        other = copy.copy(self)
        other.closing = closing
        return other

    def goes_on(self, key: str) -> bool:
        """Its migration, which was held, was taken up again; True: that is new."""
        entry = self.entries[key]
        if entry.standing is not GuestStanding.HELD:
            return False
        entry.standing, entry.reason = GuestStanding.MIGRATING, "taken up again"
        return True

    def no_target(self, key: str, reason: str) -> bool:
        """No host can take it as things are; True: that is new."""
        entry = self.entries[key]
        changed = (entry.standing, entry.reason) != (GuestStanding.NO_TARGET, reason)
        entry.standing, entry.reason, entry.target = GuestStanding.NO_TARGET, reason, None
        return changed

    def ended_one(
        self,
        key: str,
        state: State,
        error: str,
        *,
        refused: bool,
        now: float,
        awaited: bool = False,
        everywhere: bool = False,
        exceeded: bool = False,
        attempts: int = MOST_ATTEMPTS,
        first_pause: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        """Its migration has ended, or is held.

        :param refused: preflight refused that target; nothing was tried.
        :param awaited: it is held, but will be taken up again.
        :param everywhere: it would refuse any other too.
        :param exceeded: the guest stood still for longer than its policy allows.
        :param attempts: after so many failures it is set aside.
        :param first_pause: seconds before the second attempt.
        """
        entry = self.entries[key]
        entry.exceeded = exceeded
        match state:
            case State.COMPLETED:
                entry.standing, entry.reason = GuestStanding.MOVED, f"runs on {entry.target}"
                if exceeded:
                    entry.reason += "; it stood still for longer than its policy allows"
            case State.GUEST_ENDED:
                entry.standing, entry.reason = GuestStanding.GONE, error or "it ended by itself"
            case State.HELD:
                entry.standing, entry.reason, entry.awaited = GuestStanding.HELD, error, awaited
            case State.CANCELLED:
                entry.standing, entry.reason = GuestStanding.SET_ASIDE, "its migration was cancelled"
            case _:
                entry.failed = error
                if entry.target is not None:
                    entry.excluded[entry.target] = error if refused else f"it failed there: {error}"
                if refused:
                    entry.attempts -= 1  # nothing was tried
                    entry.standing = GuestStanding.SET_ASIDE if everywhere else GuestStanding.WAITING
                    entry.reason = error
                elif entry.attempts >= attempts:
                    entry.standing = GuestStanding.SET_ASIDE
                    entry.reason = f"failed {entry.attempts} times (limits.attempts); the last time: {error}"
                else:
                    pause = first_pause * 2 ** (entry.attempts - 1)
                    entry.standing, entry.not_before = GuestStanding.WAITING, now + pause
                    entry.reason = f"tried again in {pause:.0f} s: {error}"

    def retry_anywhere(self, key: str) -> bool:
        """Hosts where it merely failed may be tried again; True where there was one."""
        entry = self.entries[key]
        failed = [host for host, why in entry.excluded.items() if why.startswith("it failed there")]
        for host in failed:
            del entry.excluded[host]
        return bool(failed)

    # --- its end -----------------------------------------------------------------------------------------------------

    @property
    def left(self) -> list[Entry]:
        """Who has not left (evacuate), or is not home (restore)."""
        return [entry for entry in self.entries.values() if entry.standing not in _DONE]

    @property
    def under_way(self) -> list[Entry]:
        """Whose migration runs."""
        return [entry for entry in self.entries.values() if entry.standing is GuestStanding.MIGRATING]

    @property
    def waits_for_contact(self) -> bool:
        """Somebody who could not be asked may be asked soon, or be gone."""
        return any(
            entry.standing is GuestStanding.SET_ASIDE and entry.guest.lost_contact for entry in self.left
        )

    def settle(self, now: float, *, host_empty: bool, host_up: bool = True) -> EvacuationState | None:
        """What it ends with, when it is time for that.

        :param host_empty: a look at the host after the last guest had left showed none.
        """
        if self.ended or self.under_way:
            self._idle_since = None
            return None
        if self.closing is not None:
            return self.closing
        left = self.left
        if any(entry.guest.obstacle_code == ARRIVING for entry in left):
            self._idle_since = None
            return None
        if not left:
            return EvacuationState.COMPLETED if self.kind == "restore" or host_empty else None
        if any(entry.standing is GuestStanding.WAITING for entry in left):
            self._idle_since = None
            return None
        awaited = any(entry.standing is GuestStanding.HELD and entry.awaited for entry in left)
        patience = NO_TARGET_SECONDS
        if all(entry.standing in _LEFT_ALONE for entry in left) and host_up and not awaited:
            if not self.waits_for_contact:
                return EvacuationState.INCOMPLETE
            patience = LOST_SECONDS
        if self._idle_since is None:
            self._idle_since = now
        return EvacuationState.INCOMPLETE if now - self._idle_since >= patience else None

    def end(self, state: EvacuationState, at: datetime) -> None:
        """Nothing more happens."""
        self.state, self.ended_at = state, at
        left = self.left
        for entry in left:
            entry.starts_in_seconds = entry.takes_seconds = None
            if entry.standing is GuestStanding.WAITING:
                # Why it had that target, or when it was to be tried again, is not true any more.
                entry.reason = f"not tried again: {entry.failed}" if entry.failed else "it was not begun"
        if left and state is not EvacuationState.CANCELLED:
            what = f"{len(left)} {'guest' if len(left) == 1 else 'guests'} "
            what += "left: " if self.kind == "evacuate" else "not at home: "
            self.error = what + "; ".join(f"{entry.guest.label}: {entry.reason}" for entry in left)
