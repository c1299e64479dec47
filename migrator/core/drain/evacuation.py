"""One evacuation, or restore: which guests belong to it, how far each is, and when it ends.

It decides nothing about hosts or links: :func:`migrator.core.drain.plan.plan` does. An :class:`Evacuation` is a value;
each function of it gives another one, or the same where nothing is different.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from migrator.core.drain.entries import Entries
from migrator.core.drain.entry import FAILED_THERE, Entry
from migrator.core.drain.limits import LOST_SECONDS, NO_TARGET_SECONDS, SiteLimits
from migrator.core.drain.roll import RollProgress
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.drain.window import MaintenanceWindow, WindowForecast
from migrator.core.inventory import Guest
from migrator.core.model import State

#: Code of what keeps a guest from leaving, as the catalogue of findings has it: it is not there yet.
ARRIVING = "arriving"

_LEFT_ALONE = (GuestStanding.SET_ASIDE, GuestStanding.HELD)
_DONE = (GuestStanding.MOVED, GuestStanding.GONE, GuestStanding.SAVED)


@dataclass(frozen=True, kw_only=True)
class GuestForecast:
    """The forecast of one guest of an evacuation."""

    #: Seconds from now, p50; ``None``: nobody knows.
    starts_in_seconds: float | None = None
    takes_seconds: float | None = None
    #: Why its migration is not expected to end under its policy, in one sentence; empty where it is.
    doubt: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a migration of a guest ended, or that it is held."""

    state: State
    error: str = ""
    #: Preflight refused that target; nothing was tried.
    refused: bool = False
    #: ... and it would be refused on any other too.
    everywhere: bool = False
    #: It is held, but will be taken up again.
    awaited: bool = False
    #: The guest stood still for longer than its policy allows.
    exceeded: bool = False
    #: The file that it was saved into, instead of being moved.
    saved: str = ""


@dataclass(frozen=True, kw_only=True)
class Evacuation:
    """Empties a host, or brings its guests home, or moves the guests of a group together; or hosts one by one."""

    id: str
    #: With ``group`` and ``roll`` empty.
    host: str
    kind: Literal["evacuate", "restore", "group", "roll"] = "evacuate"
    #: With ``group``: its name, and the host that its guests go to; empty: where there is room for each.
    group: str = ""
    target: str = ""
    policy: str = ""
    accept: tuple[str, ...] = ()
    deadline: datetime | None = None
    on_deadline: Literal["continue", "stop"] = "continue"
    #: It begins when this does, and begins nothing after its end, which is its deadline too.
    window: MaintenanceWindow = field(default_factory=MaintenanceWindow)
    window_forecast: WindowForecast = field(default_factory=WindowForecast)
    #: With the kind ``roll``: its hosts. It has no guests; those of its hosts are of the evacuations that it begins.
    roll: RollProgress | None = None
    #: Its window begins soon, and everyone was told so.
    begins_soon: bool = False
    requested_by: str = ""
    #: Of the command that began it.
    key: str = ""
    #: The W3C trace context that came with the command.
    traceparent: str | None = None
    tracestate: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    state: EvacuationState = EvacuationState.RUNNING
    #: By the guests' keys.
    entries: Entries = field(default_factory=Entries)
    #: Nothing more is started: it was cancelled, or stopped at its deadline.
    closing: EvacuationState | None = None
    late: bool = False
    at_risk: bool = False
    #: By the guests' keys, of those of whom something is foretold.
    forecasts: Mapping[str, GuestForecast] = field(default_factory=dict)
    #: p10, p50 and p90 of the end of those that are expected to end.
    forecast_end_at: tuple[datetime, datetime, datetime] | None = None
    error: str | None = None
    #: Guests that the host's libvirt had shut off when this ended; ``None``: its libvirt could not be asked.
    guests_shut_off: int | None = 0
    #: Nobody wants a place before: its guests are being looked at more closely. On the snapshot's clock.
    not_before: float = 0.0
    #: Since when nothing is under way, and since when nobody is left as far as is known; on the snapshot's clock.
    idle_since: float | None = None
    empty_since: float | None = None

    @property
    def ended(self) -> bool:
        """True once nothing more will happen in it."""
        return self.ended_at is not None

    @property
    def scheduled(self) -> bool:
        """True while it waits for its window."""
        return self.state is EvacuationState.SCHEDULED and self.ended_at is None

    @property
    def home(self) -> str:
        """Return the host that its guests go to; empty: wherever there is room for each."""
        return self.host if self.kind == "restore" else self.target

    @property
    def concerned(self) -> list[str]:
        """Return its hosts: its own, or those of a roll; of a group those that its guests still leave."""
        if self.roll is not None:
            return [each.host for each in self.roll.hosts]
        return [self.host] if self.host else [entry.guest.host for entry in self.left]

    @property
    def left(self) -> list[Entry]:
        """Return the guests that have not left (evacuate) or are not home (restore), in the order of their joining."""
        return [entry for entry in self.entries.values() if not entry.done]

    @property
    def left_count(self) -> int:
        """Return how many guests have not left, or are not home."""
        return len(self.entries) - self.entries.count(*_DONE)

    @property
    def under_way(self) -> list[Entry]:
        """Return the guests whose migrations are under way."""
        return self.entries.at(GuestStanding.MIGRATING)

    @property
    def wanting(self) -> list[Entry]:
        """Return the guests that want a place, due or not, in the order of their joining; none once it is closing."""
        if self.closing is not None or self.ended:
            return []
        return [entry for entry in self.entries.values() if entry.wants_place]

    @property
    def waits_for_contact(self) -> bool:
        """True where a guest that could not be asked may answer soon, or be gone."""
        return any(entry.guest.lost_contact for entry in self.entries.at(GuestStanding.SET_ASIDE))

    def policy_of(self, key: str) -> str:
        """Return the name of the policy that was asked for a guest; empty: none was."""
        return self.policy or self.entries[key].policy

    def marked(self, entries: Mapping[str, Entry]) -> Evacuation:
        """Return it with these entries in place of those of the same guests."""
        return replace(self, entries=self.entries.changed(entries)) if entries else self

    # --- who belongs to it -------------------------------------------------------------------------------------------

    def took_in(self, guests: Iterable[Guest], *, only: Collection[str] | None = None) -> Evacuation:
        """Return it with the guests that are on its host now: new ones join, those that somebody else took away are
        gone.

        For an evacuation only; whom another one moves is settled when it begins.

        :param only: the keys of all guests of whom something may be different from when this was last done.
        """
        return self.took_in_these({guest.key: guest for guest in guests}, only=only)

    def took_in_these(self, there: Mapping[str, Guest], *, only: Collection[str] | None = None) -> Evacuation:
        """Like :meth:`took_in`, with the guests by their keys."""
        changed: dict[str, Entry] = {}
        for key in there if only is None else self._joining_last(there, only):
            guest = there[key]
            entry = self.entries.get(key)
            if entry is None or (entry.done and self.closing is None):
                entry = changed[key] = Entry(guest=guest)  # new, or somebody brought it back
            elif entry.wants_place and entry.guest is not guest and entry.guest != guest:
                entry = changed[key] = replace(entry, guest=guest)
            if entry.aside and entry.guest.obstacle:
                if not guest.obstacle:
                    changed[key] = replace(entry, guest=guest, standing=GuestStanding.WAITING, reason="")
                elif guest != entry.guest or entry.reason != guest.obstacle:  # who holds it may be another
                    changed[key] = replace(entry, guest=guest, reason=guest.obstacle)
            elif entry.wants_place and entry.guest.obstacle:
                changed[key] = replace(entry, standing=GuestStanding.SET_ASIDE, reason=entry.guest.obstacle)
        for key in self.entries if only is None else self.entries.keys() & only:
            entry = self.entries[key]
            # Whose migration is held is for a person to say; where it was may not even answer.
            if key in there or entry.done:
                continue
            if entry.standing not in (GuestStanding.MIGRATING, GuestStanding.HELD):
                changed[key] = replace(
                    entry, standing=GuestStanding.GONE, reason="it is not on this host any more"
                )
        return self.marked(changed)

    def _joining_last(self, there: Mapping[str, Guest], only: Collection[str]) -> list[str]:
        """Return those of `there` that are in `only`; who is new in the order in which they are there."""
        asked = there.keys() & only
        new = asked - self.entries.keys()
        return [*(asked - new), *((key for key in there if key in new) if new else ())]

    def followed(
        self, guests: Mapping[str, Guest], up: Collection[str], *, only: Collection[str] | None = None
    ) -> Evacuation:
        """Return a restore or a group with its guests where they are now; one that is on no host that answers is gone.

        :param guests: all that are known, by their keys.
        :param only: the keys of all guests of whom something may be different from when this was last done.
        """
        changed = {}
        for key in self.entries if only is None else self.entries.keys() & only:
            entry = self.entries[key]
            if not entry.wants_place:
                continue
            now = guests.get(key)
            if now is None:
                if entry.guest.host in up:
                    changed[key] = replace(
                        entry, standing=GuestStanding.GONE, reason="it is nowhere any more"
                    )
            elif self.home and now.host == self.home:
                changed[key] = replace(entry, standing=GuestStanding.MOVED, reason="is home already")
            elif now != entry.guest:
                changed[key] = replace(entry, guest=now)
        return self.marked(changed)

    def holding_to(self, planned: Mapping[str, str]) -> Evacuation:
        """Return it with the targets that a plan has shown as the preferred ones, by the guests' keys."""
        return self.marked(
            {
                key: replace(self.entries[key], planned=target, target=target)
                for key, target in planned.items()
                if key in self.entries and self.entries[key].wants_place
            }
        )

    # --- what becomes of them ----------------------------------------------------------------------------------------

    def begun(
        self, key: str, migration: str, target: str, reason: str, *, saving: bool = False
    ) -> Evacuation:
        """Return it with a migration begun for that guest.

        :param saving: into a file.
        """
        entry = self.entries[key]
        begun = replace(
            entry,
            standing=GuestStanding.MIGRATING,
            migration=migration,
            target=target,
            reason=reason,
            attempts=entry.attempts + 1,
            saving=saving,
            stays="",
        )
        return self.marked({key: begun})

    def gone_on(self, key: str) -> Evacuation:
        """Return it with that guest's migration, which was held, taken up again."""
        entry = self.entries[key]
        if entry.standing is not GuestStanding.HELD:
            return self
        return self.marked({key: replace(entry, standing=GuestStanding.MIGRATING, reason="taken up again")})

    def one_ended(self, key: str, how: Ended, *, now: float, limits: SiteLimits) -> Evacuation:
        """Return it with that guest's migration ended, or held.

        :param now: on the snapshot's clock.
        """
        entry = replace(self.entries[key], exceeded=how.exceeded)
        match how.state:
            case State.COMPLETED if how.saved:
                reason = f"saved into {how.saved}: migrator load {how.saved} --to HOST has it go on"
                entry = replace(entry, standing=GuestStanding.SAVED, reason=reason)
            case State.COMPLETED:
                reason = f"runs on {entry.target}"
                if how.exceeded:
                    reason += "; it stood still for longer than its policy allows"
                entry = replace(entry, standing=GuestStanding.MOVED, reason=reason)
            case State.GUEST_ENDED:
                entry = replace(entry, standing=GuestStanding.GONE, reason=how.error or "it ended by itself")
            case State.HELD:
                entry = replace(entry, standing=GuestStanding.HELD, reason=how.error, awaited=how.awaited)
            case State.CANCELLED:
                reason = entry.stays or "its migration was cancelled"
                if self.closing is EvacuationState.STOPPED and self.window.ends_at is not None:
                    reason += ", as the window ended"
                entry = replace(entry, standing=GuestStanding.SET_ASIDE, reason=reason)
            case _ if entry.saving:
                reason = f"it cannot be saved either: {how.error}"
                entry = replace(entry, standing=GuestStanding.SET_ASIDE, reason=reason)
            case _:
                entry = _failed(entry, how, now, limits)
        return self if entry == self.entries[key] else self.marked({key: entry})

    # --- its end -----------------------------------------------------------------------------------------------------

    def settled(
        self, now: float, *, host_empty: bool, host_up: bool = True, saves: bool = False
    ) -> tuple[Evacuation, EvacuationState | None]:
        """Return it with the time since when nothing has happened in it, and the state it ends in; ``None``: not yet.

        :param now: on the snapshot's clock.
        :param host_empty: a look at the host after the last guest had left showed none.
        :param saves: there are guests that may be saved instead, so less is waited for.
        """
        if self.ended or self.entries.count(GuestStanding.MIGRATING):
            return self._idle(None), None
        if self.closing is not None:
            return self, self.closing
        if not self.left_count:
            return self, EvacuationState.COMPLETED if self.kind != "evacuate" or host_empty else None
        if self.entries.count(GuestStanding.WAITING):
            return self._idle(None), None
        left = self.entries.at(*_LEFT_ALONE, GuestStanding.NO_TARGET)
        if any(entry.guest.obstacle_code == ARRIVING for entry in left):
            return self._idle(None), None
        awaited = any(entry.awaited for entry in self.entries.at(GuestStanding.HELD))
        longest = LOST_SECONDS if saves else NO_TARGET_SECONDS
        if not self.entries.count(GuestStanding.NO_TARGET) and host_up and not awaited:
            if not self.waits_for_contact:
                return self, EvacuationState.INCOMPLETE
            longest = LOST_SECONDS
        idle = self if self.idle_since is not None else self._idle(now)
        since = idle.idle_since if idle.idle_since is not None else now
        return idle, EvacuationState.INCOMPLETE if now - since >= longest else None

    def _idle(self, since: float | None) -> Evacuation:
        return self if self.idle_since == since else replace(self, idle_since=since)

    def ended_as(self, state: EvacuationState, at: datetime) -> Evacuation:
        """Return it as it is when nothing more happens."""
        entries = {}
        for entry in self.entries.at(GuestStanding.WAITING):
            # Why it had that target, or when it was to be tried again, is not true any more.
            reason = f"not tried again: {entry.failed}" if entry.failed else "it was not begun"
            if state is EvacuationState.STOPPED and self.window.ends_at is not None:
                reason = f"the window ended before its turn ({reason})"
            entries[entry.guest.key] = replace(entry, reason=reason)
        forecasts = {
            key: GuestForecast(doubt=each.doubt) for key, each in self.forecasts.items() if each.doubt
        }
        ended = replace(self.marked(entries), state=state, ended_at=at, forecasts=forecasts)
        left = ended.left
        if not left or state is EvacuationState.CANCELLED:
            return ended
        what = f"{len(left)} {'guest' if len(left) == 1 else 'guests'} "
        what += {"evacuate": f"still on {self.host}", "restore": "not at home", "group": "not moved"}[
            self.kind
        ]
        error = f"{what}: " + "; ".join(f"{entry.guest.label}: {entry.reason}" for entry in left)
        return replace(ended, error=error)


def _failed(entry: Entry, how: Ended, now: float, limits: SiteLimits) -> Entry:
    excluded = dict(entry.excluded)
    if entry.target is not None:
        excluded[entry.target] = how.error if how.refused else f"{FAILED_THERE}{how.error}"
    entry = replace(entry, failed=how.error, excluded=excluded)
    if how.refused:  # nothing was tried
        standing = GuestStanding.SET_ASIDE if how.everywhere else GuestStanding.WAITING
        return replace(entry, attempts=entry.attempts - 1, standing=standing, reason=how.error)
    if entry.attempts >= limits.attempts:
        reason = f"failed {entry.attempts} times (limits.attempts); the last time: {how.error}"
        return replace(entry, standing=GuestStanding.SET_ASIDE, reason=reason)
    pause = limits.first_pause_seconds * 2 ** (entry.attempts - 1)
    return replace(
        entry,
        standing=GuestStanding.WAITING,
        not_before=now + pause,
        reason=f"tried again in {pause:.0f} s: {how.error}",
    )
