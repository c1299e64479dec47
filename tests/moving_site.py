"""A site whose guests move when it is time: turns of a plan, and what becomes of what it says. No engine, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from migrator.core.drain.actions import Admit, Begin, Change, End
from migrator.core.drain.entries import Entries
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Ended, Evacuation
from migrator.core.drain.limits import SiteLimits
from migrator.core.drain.plan import DrainPlan, make_plan
from migrator.core.drain.snapshot import MigrationSnapshot, PolicyRules, SiteSnapshot
from migrator.core.inventory import Guest, Host, HostFacts
from migrator.core.model import State

GIB = 1 << 30
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS, POLICIES = SiteLimits(), PolicyRules()


def _host(name: str) -> Host:
    facts = HostFacts(memory_total_bytes=4096 * GIB, memory_free_bytes=4096 * GIB, cpus=4096)
    return Host(name=name, facts=facts, link_bytes_per_second=1.0e9)


@dataclass
class MovingSite:
    """An evacuation of host a, or a restore to it; b to e are the others."""

    kind: str = "evacuate"
    plan: DrainPlan | None = None
    seconds: float = 0.0
    run: Evacuation = field(default_factory=lambda: Evacuation(id="e1", host="a", created_at=NOW))
    migrations: dict[str, MigrationSnapshot] = field(default_factory=dict)
    hosts: Mapping[str, Host] = field(default_factory=lambda: {name: _host(name) for name in "abcde"})
    guests: dict[str, tuple[Guest, ...]] = field(default_factory=lambda: dict.fromkeys("abcde", ()))

    def fill(self, count: int, *homes: str) -> None:
        """So many guests, on these hosts in turn; all of them are the evacuation's, or the restore's."""
        made = [
            Guest(
                key=f"vm-{n:04}",
                host=homes[n % len(homes)],
                memory_bytes=GIB,
                dirty_rate_bytes_per_second=0.0,
            )
            for n in range(count)
        ]
        self.guests |= {home: tuple(each for each in made if each.host == home) for home in homes}
        if self.kind == "restore":
            entries = Entries({each.key: Entry(guest=each) for each in made})
            self.run = replace(self.run, kind="restore", entries=entries)
        else:
            self.run = self.run.took_in(made)

    def snapshot(self) -> SiteSnapshot:
        return SiteSnapshot(
            now=NOW + timedelta(seconds=self.seconds),
            clock=self.seconds,
            hosts=self.hosts,
            guests=dict(self.guests),
            migrations=list(self.migrations.values()),
            evacuations=[] if self.run.ended else [self.run],
            policies=POLICIES,
            limits=LIMITS,
        )

    def turn(self) -> DrainPlan:
        """Make a plan, and begin and admit what it says."""
        self.seconds += 0.5
        plan = self.plan = make_plan(self.snapshot(), self.plan)
        for action in plan.actions:
            match action:
                case Change(before=before, after=after) if self.run is before:
                    self.run = after
                case End(state=state):
                    self.run = self.run.ended_as(state, NOW)
                case Begin(guest=guest, target=target, policy=policy):
                    name = f"m-{guest.key}-{self.seconds}"
                    self.run = self.run.begun(guest.key, name, target, "there is room")
                    self.migrations[name] = MigrationSnapshot(
                        id=name,
                        guest=guest,
                        target=target,
                        policy=policy,
                        state=State.PREPARING,
                        evacuation="e1",
                        driven=True,
                        ready=True,
                    )
                case Admit(migration=name):
                    self.migrations[name] = replace(
                        self.migrations[name], admitted=True, state=State.PRECOPY, share_bytes_per_second=1
                    )
        return plan

    def finish(self, state: State = State.COMPLETED) -> None:
        """One that was admitted ends."""
        one = next((each for each in self.migrations.values() if each.admitted), None)
        if one is None:
            return
        del self.migrations[one.id]
        how = Ended(state=state, error="" if state is State.COMPLETED else "it broke")
        if state is State.COMPLETED:
            here = self.guests[one.guest.host]
            self.guests[one.guest.host] = tuple(each for each in here if each.key != one.guest.key)
            self.guests[one.target] += (replace(one.guest, host=one.target),)
        self.run = self.run.one_ended(one.guest.key, how, now=self.seconds, limits=LIMITS)
