"""Makes the snapshot that a plan is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from operator import is_

from migrator import logs
from migrator.core.drain.preparations import Preparations
from migrator.core.drain.snapshot import MigrationSnapshot, PolicyRules, SiteSnapshot
from migrator.core.migration.convergence_state import ActionKind
from migrator.core.migration.forecast import Verdict
from migrator.core.policy import Policy
from migrator.engine import clock
from migrator.engine.inventory import Inventory
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.registry import Registry
from migrator.engine.reservations import Reservations
from migrator.engine.rules import Rules
from migrator.errors import UsageError

#: So many migrations are looked at before others on the event loop have their turn.
_AT_ONCE = 50


class Snapshots:
    """Takes them of what this service knows.

    :param rules: as they are now.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        inventory: Inventory,
        reservations: Reservations,
        preparations: Preparations,
        rules: Callable[[], Rules],
    ) -> None:
        self._registry, self._inventory, self._reservations = registry, inventory, reservations
        self._preparations, self._rules = preparations, rules
        self._policies: tuple[Rules, PolicyRules] | None = None
        #: By their ids, what each live migration was like, and its snapshot.
        self._known: dict[str, tuple[tuple[object, ...], MigrationSnapshot]] = {}
        self._log = logs.logger()

    async def prepare(self) -> None:
        """Look at all migrations, a few at a time: :meth:`take` has little to do then."""
        for number, session in enumerate(self._registry.live()):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            self._known[session.id] = self._snapshot_of(session)

    def take(self) -> SiteSnapshot:
        """Return the site as it is now."""
        registry, inventory, rules = self._registry, self._inventory, self._rules()
        hosts = {host.name: host for host in inventory.hosts()}
        return SiteSnapshot(
            now=datetime.now(UTC),
            clock=clock.now(),
            hosts=hosts,
            guests={name: inventory.guests_at(name) for name in hosts},
            looks=inventory.looks(),
            migrations=self._migrations(),
            coming=registry.coming,
            evacuations=list(registry.running()),
            reserved=self._reservations.names,
            preparations=self._preparations,
            policies=self._policies_of(rules),
            limits=rules.site_limits,
            placement=rules.placement,
            stopping=not registry.may_begin,
        )

    def _migrations(self) -> list[MigrationSnapshot]:
        self._known = {session.id: self._snapshot_of(session) for session in self._registry.live()}
        return [snapshot for _, snapshot in self._known.values()]

    def _snapshot_of(self, session: JournalledSession) -> tuple[tuple[object, ...], MigrationSnapshot]:
        """Return what a migration is like, and its snapshot: the same as before, where nothing of it is different."""
        driven = self._registry.busy(session)
        seen = _seen(session, driven)
        last = self._known.get(session.id)
        # By identity: what is equal and another object is seldom, and comparing figures of a thousand takes long.
        if last is not None and all(map(is_, last[0], seen)):
            return last
        return seen, _migration(session, driven)

    def _policies_of(self, rules: Rules) -> PolicyRules:
        """Return the same as before, as long as the rules are."""
        if self._policies is None or self._policies[0] is not rules:
            find = self._find_policy(rules)
            self._policies = (rules, PolicyRules(named=find, default=rules.default_policy))
        return self._policies[1]

    def _find_policy(self, rules: Rules) -> Callable[[str], Policy | None]:
        found: dict[str, Policy | None] = {}

        def find(name: str) -> Policy | None:
            if name not in found:
                try:
                    found[name] = rules.policy(name)
                except UsageError as error:  # a reload took it away
                    self._log.warning("policy is gone", policy=name, error=str(error))
                    found[name] = None
            return found[name]

        return find


def _seen(session: JournalledSession, driven: bool) -> tuple[object, ...]:
    """Return all that :func:`_migration` goes by."""
    decisions = session.result.decisions
    return (
        session.status,
        session.state,
        session.phase,
        session.requests.admit,
        session.requests.share,
        session.requests.switch,
        session.switchable_since,
        session.moved_with,
        driven,
        session.ready,  # of one that another controller drives its phase does not say it
        session.ended_at,
        session.started_at,
        session.preparing_since,
        session.copied_disks,
        session.holding,
        decisions,
        len(decisions),
        session.guest,
        session.target,
        session.policy,
        session.evacuation,
        session.accepted,
    )


def _migration(session: JournalledSession, driven: bool) -> MigrationSnapshot:
    status = session.status
    sample = status.sample if status else None
    forecast = status.forecast if status else None
    risks = [each.reason for each in session.result.decisions if each.action == ActionKind.AT_RISK]
    return MigrationSnapshot(
        id=session.id,
        guest=session.guest,
        target=session.target,
        policy=session.policy,
        state=session.state,
        evacuation=session.evacuation,
        ended=session.ended,
        driven=driven,
        ready=session.ready,
        admitted=session.admitted,
        started=session.started_at is not None,
        share_bytes_per_second=session.share,
        preparing_since=session.preparing_since,
        round=sample.round if sample else 0,
        remaining_bytes=sample.remaining_bytes if sample else None,
        disk_left_bytes=session.disk_left_bytes,
        dirty_rate_bytes_per_second=sample.dirty_rate_bytes_per_second if sample else None,
        seconds_left=forecast.seconds_p50 if forecast else None,
        verdict=forecast.verdict if forecast else Verdict.UNKNOWN,
        risk=risks[-1] if risks else "",
        crowded=any(each.action == ActionKind.CROWDED for each in session.result.decisions),
        accepted=tuple(session.accepted),
        unreachable=session.unreachable,
        moved_with=session.moved_with,
        switch_in_seconds=session.switch_in_seconds,
        switchable_since=session.switchable_since,
        switch_allowed=bool(session.requests.switch),
    )
