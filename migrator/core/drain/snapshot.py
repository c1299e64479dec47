"""The input of a plan: the site at one moment, in values. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Literal

from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.limits import SiteLimits
from migrator.core.drain.preparations import Preparations
from migrator.core.inventory import Guest, Host
from migrator.core.migration.forecast import Verdict
from migrator.core.model import State
from migrator.core.placement import Options
from migrator.core.policy import Policy, builtin

#: ``guest`` by its key, ``host`` by its name, ``evacuation`` and ``migration`` by their ids.
Kind = Literal["evacuation", "guest", "host", "migration"]
Name = tuple[Kind, str]

_PREPARING = (State.QUEUED, State.WAITING, State.PREPARING)
_COPYING = (State.MIRRORING, State.PRECOPY, State.SWITCHOVER, State.POSTCOPY, State.RECOVERING)


@dataclass(frozen=True, kw_only=True)
class MigrationSnapshot:
    """One migration that has not ended, or of which something is still being done, whoever drives it.

    The same object as in the snapshot before, where nothing of it is different.
    """

    id: str
    guest: Guest
    target: str
    policy: Policy
    state: State
    evacuation: str | None = None
    ended: bool = False
    #: Somebody drives it now.
    driven: bool = False
    #: Both ends are set up, and it waits for its turn.
    ready: bool = False
    #: Its turn has come.
    admitted: bool = False
    #: Something was changed at one of its ends.
    started: bool = False
    #: Its stream's share of the links, as last given.
    share_bytes_per_second: int | None = None
    #: Since when it has been prepared, on the snapshot's clock; ``None``: since just now.
    preparing_since: float | None = None
    #: Passes over its memory so far; 1 is the first, whole copy.
    round: int = 0
    remaining_bytes: int | None = None
    #: Bytes of its disks that have still to be copied before its memory; ``None``: it is not known yet.
    disk_left_bytes: float | None = None
    dirty_rate_bytes_per_second: float | None = None
    #: By its own forecast; ``None`` without one.
    seconds_left: float | None = None
    verdict: Verdict = Verdict.UNKNOWN
    #: Why it is at risk, where it said so.
    risk: str = ""
    #: It would end if others did not share its path.
    crowded: bool = False
    #: Codes of findings that were accepted for it.
    accepted: tuple[str, ...] = ()
    #: It is held, and will be taken up again once a host answers that does not now.
    unreachable: bool = False
    #: The group whose guests are switched together; empty: it is switched when it can be.
    moved_with: str = ""
    #: It could be stopped in so many seconds; ``None``: not yet, or nobody waits for it.
    switch_in_seconds: float | None = None
    #: When it could be for the first time, on the snapshot's clock.
    switchable_since: float | None = None
    #: Its group is due.
    switch_allowed: bool = False

    @property
    def copies(self) -> bool:
        """True while its stream takes part of a link."""
        return self.state in _COPYING

    @property
    def waits_for_group(self) -> bool:
        """True while it could be switched and waits for the others of its group."""
        return self.switch_in_seconds is not None and not self.switch_allowed

    @property
    def sure(self) -> bool:
        """True once nothing can keep it from ending any more: it is past its switch."""
        return self.state not in (*_PREPARING, State.MIRRORING, State.PRECOPY)


@dataclass(frozen=True, kw_only=True)
class PolicyRules:
    """Rules by which a policy is found for a guest.

    :ivar named: the policy of a name, ``None`` where there is none of it; always the same for the same name.
    """

    named: Callable[[str], Policy | None] = builtin
    default: str = "default"

    def of(self, guest: Guest, asked: str = "") -> Policy:
        """Return the one asked for, else the guest's, else the site's; the built-in default where it is gone."""
        found = self.named(asked or guest.policy or self.default)
        return found if found is not None else builtin("default")


@dataclass(frozen=True)
class KnownPolicies:
    """Policies by name, as :class:`PolicyRules` asks for them: those that are needed, to be sent elsewhere."""

    policies: Mapping[str, Policy | None]

    def __call__(self, name: str) -> Policy | None:
        """Return the one of that name, or ``None``."""
        return self.policies.get(name)


@dataclass(frozen=True, kw_only=True)
class SiteSnapshot:
    """The site at one moment."""

    now: datetime
    #: Seconds on a clock that only goes forward; pauses and :attr:`looks` are on it.
    clock: float
    hosts: Mapping[str, Host]
    #: By host; the same object as before where nothing was found to be different.
    guests: Mapping[str, Sequence[Guest]]
    #: When the last look at each host began that showed its guests, and what the last one took, in seconds.
    looks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: Those that have not ended, and those that have while something is still being done about them.
    migrations: Sequence[MigrationSnapshot] = ()
    #: Targets of guests whose migrations are being journalled, by the guests' keys.
    coming: Mapping[str, str] = field(default_factory=dict)
    #: Those that have not ended.
    evacuations: Sequence[Evacuation] = ()
    #: What commands are about to change.
    reserved: Collection[Name] = frozenset()
    preparations: Preparations = field(default_factory=Preparations)
    policies: PolicyRules = field(default_factory=PolicyRules)
    limits: SiteLimits = field(default_factory=SiteLimits)
    placement: Options = field(default_factory=Options)
    #: Nothing new is begun.
    stopping: bool = False

    @cached_property
    def live(self) -> Mapping[str, MigrationSnapshot]:
        """Return the migrations that have not ended, by their guests' keys."""
        return {each.guest.key: each for each in self.migrations if not each.ended}

    @cached_property
    def bound_for(self) -> Mapping[str, Sequence[MigrationSnapshot]]:
        """Return the migrations by their targets."""
        found: dict[str, list[MigrationSnapshot]] = {}
        for each in self.migrations:
            found.setdefault(each.target, []).append(each)
        return found

    @cached_property
    def held(self) -> Sequence[MigrationSnapshot]:
        """Return the migrations that are held for a person, or for a host that does not answer."""
        return [each for each in self.migrations if each.state is State.HELD]

    @cached_property
    def world(self) -> tuple[object, ...]:
        """Return all hosts and the guests of each: the same objects as before where nothing is different."""
        return (*self.hosts.values(), *self.guests.values())

    @cached_property
    def everybody(self) -> Mapping[str, Guest]:
        """Return all guests, by their keys."""
        return {guest.key: guest for guests in self.guests.values() for guest in guests}

    def is_up(self, host: str) -> bool:
        """Tell whether the host answered when it was last looked at."""
        found = self.hosts.get(host)
        return found is not None and found.up

    def look_seconds(self, *hosts: str) -> float:
        """Return what the last looks at these hosts took, together."""
        return sum(self.looks.get(host, (0.0, 0.0))[1] for host in hosts)

    def link(self, *hosts: str) -> float | None:
        """Return what the slowest of their links carries, bytes per second; ``None`` where none is known."""
        known = [self.hosts[host].link_bytes_per_second for host in hosts if host in self.hosts]
        return min((speed for speed in known if speed is not None), default=None)

    def here_or_coming(self, host: str) -> list[Guest]:
        """Return who is on a host, and who a migration that has not ended brings there: with that as its obstacle."""
        return list(self.here_or_coming_by_key(host).values())

    def here_or_coming_by_key(self, host: str) -> dict[str, Guest]:
        """Like :meth:`here_or_coming`, by the guests' keys."""
        here = {guest.key: guest for guest in self.guests.get(host, ())}
        for each in self.bound_for.get(host, ()):
            if (not each.ended or each.driven) and each.guest.key not in here:
                here[each.guest.key] = arriving(each)
        return here


def arriving(migration: MigrationSnapshot) -> Guest:
    """Return the guest that a migration brings to a host which is to be emptied: it cannot leave yet."""
    if migration.state is State.HELD:
        text = f"its migration {migration.id} to here is held, so it may be here: migrator resolve {migration.id}"
        return replace(migration.guest, obstacle=text, obstacle_code="not-movable")
    text = f"migration {migration.id} brings it here: it can leave once it has arrived, or that is cancelled"
    return replace(migration.guest, obstacle=text, obstacle_code="arriving")
