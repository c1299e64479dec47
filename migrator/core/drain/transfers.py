"""Guests that wait and migrations that run, as the schedule sees them. Pure."""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime

from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.hurrying import expected_bytes
from migrator.core.drain.snapshot import MigrationSnapshot, SiteSnapshot
from migrator.core.inventory import Guest
from migrator.core.model import State
from migrator.core.policy import Policy, PostcopyMode
from migrator.core.schedule.transfers import Transfer, TransferPhase

#: A guest that dirties this share of what its link carries goes to postcopy in its first rounds, if it may.
_HOPELESS_RATIO = 0.8
#: Phases in which nothing of a guest's memory was sent.
_NOT_BEGUN = (TransferPhase.WAITING, TransferPhase.PREPARING, TransferPhase.READY)
#: A forecast of so many seconds or more says nothing.
_NO_FORECAST_SECONDS = 1e6


class Transfers:
    """Makes them of one snapshot.

    :param deadlines_from: deadlines are given as seconds from then.
    """

    def __init__(self, snapshot: SiteSnapshot, *, deadlines_from: datetime) -> None:
        self._snapshot, self._from = snapshot, deadlines_from
        self._evacuations = {each.id: each for each in snapshot.evacuations}
        #: How many copy at each host.
        self._copying = Counter(
            host
            for each in snapshot.migrations
            if not each.ended and each.copies
            for host in {each.guest.host, each.target}
        )

    def waiting(self, guest: Guest, target: str, policy: Policy, run: Evacuation | None = None) -> Transfer:
        """Return that of a guest that nothing was done for yet."""
        look = self._snapshot.look_seconds(guest.host, target)
        return self._transfer(
            guest,
            target,
            policy,
            run,
            bytes_left=float(guest.to_send_bytes),
            disks=float(guest.disk_bytes_to.get(target, 0)),
            dirty=guest.dirty_rate_bytes_per_second or 0.0,
            prepare=self._snapshot.preparations.expected(target, look_seconds=look),
        )

    def running(self, migration: MigrationSnapshot) -> Transfer:
        """Return that of a migration."""
        guest, phase = migration.guest, _phase(migration)
        prepare = self._prepare_seconds(migration, phase)
        left, alone = migration.remaining_bytes, migration.seconds_left
        # What it takes while it shares its links says nothing of what it would take alone.
        if alone is not None and (not 0 < alone < _NO_FORECAST_SECONDS or self._shares(migration)):
            alone = None
        disks = migration.disk_left_bytes
        if disks is None:
            disks = guest.disk_bytes_to.get(migration.target, 0)
        elif migration.state is State.MIRRORING:
            alone = None  # nothing has been seen of its memory yet
        return self._transfer(
            guest,
            migration.target,
            migration.policy,
            self._evacuations.get(migration.evacuation or ""),
            phase=phase,
            bytes_left=float(guest.to_send_bytes) if left is None else float(left),
            disks=float(disks),
            dirty=migration.dirty_rate_bytes_per_second or guest.dirty_rate_bytes_per_second or 0.0,
            alone=alone,
            prepare=prepare,
            crowded=migration.crowded,
        )

    def basis(self, migration: MigrationSnapshot) -> tuple[object, ...]:
        """Return what decides on :meth:`running` of a migration, beside itself and the speeds of its links."""
        run, phase = self._evacuations.get(migration.evacuation or ""), _phase(migration)
        prepared = phase in (TransferPhase.READY, TransferPhase.TRANSFERRING, TransferPhase.FINISHING)
        return (
            0.0 if prepared else self._prepare_seconds(migration, phase),
            migration.seconds_left is not None and self._shares(migration),
            self._deadline_seconds(run),
            run is not None and run.on_deadline,
        )

    def _prepare_seconds(self, migration: MigrationSnapshot, phase: TransferPhase) -> float:
        preparations = self._snapshot.preparations
        look = self._snapshot.look_seconds(migration.guest.host, migration.target)
        expected = preparations.expected(migration.target, look_seconds=look)
        if phase is not TransferPhase.PREPARING or migration.preparing_since is None:
            return expected
        return preparations.left(expected, self._snapshot.clock - migration.preparing_since)

    def _deadline_seconds(self, run: Evacuation | None) -> float | None:
        if run is None or run.deadline is None:
            return None
        return (run.deadline - self._from).total_seconds()

    def _transfer(
        self,
        guest: Guest,
        target: str,
        policy: Policy,
        run: Evacuation | None,
        *,
        bytes_left: float,
        disks: float,
        dirty: float,
        prepare: float,
        phase: TransferPhase = TransferPhase.WAITING,
        alone: float | None = None,
        crowded: bool = False,
    ) -> Transfer:
        # What is copied while the guest stands still, or fetched after a switch that comes early, is sent once.
        fast = self._snapshot.link(guest.host, target) or math.inf
        early = policy.postcopy is PostcopyMode.IMMEDIATE or (
            policy.postcopy is PostcopyMode.ALLOW and dirty >= _HOPELESS_RATIO * fast
        )
        once = policy.offline or early
        if phase in _NOT_BEGUN and not once:
            in_all = expected_bytes(policy, memory_bytes=bytes_left, dirty_ratio=dirty / fast)
            once, bytes_left = in_all is not None, bytes_left if in_all is None else in_all
        return Transfer(
            guest=guest.key,
            source=guest.host,
            target=target,
            phase=phase,
            bytes_left=bytes_left,
            disk_bytes_left=disks,
            dirty_rate_bytes_per_second=0.0 if once else dirty,
            barely_converges=True if crowded or (once and dirty > 0) else None,
            alone_seconds=alone,
            max_bytes_per_second=policy.max_bandwidth_bytes_per_second,
            prepare_seconds=prepare,
            priority=guest.priority,
            deadline_seconds=self._deadline_seconds(run),
            stop_at_deadline=run is not None and run.on_deadline == "stop",
        )

    def _shares(self, migration: MigrationSnapshot) -> bool:
        own = 1 if migration.copies else 0
        return any(self._copying[host] > own for host in (migration.guest.host, migration.target))


def _phase(migration: MigrationSnapshot) -> TransferPhase:
    if migration.waits_for_group:
        return TransferPhase.FINISHING  # the others of its group need the link, or it would wait for ever
    if migration.state is State.QUEUED:
        return TransferPhase.WAITING
    if migration.state in (State.PREPARING, State.WAITING):
        if migration.admitted or migration.started:
            return TransferPhase.TRANSFERRING
        return TransferPhase.READY if migration.ready else TransferPhase.PREPARING
    return TransferPhase.FINISHING if migration.state is State.FINISHING else TransferPhase.TRANSFERRING
