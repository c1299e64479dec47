"""Leases in memory: the contract of :class:`migrator.ports.Leases`, with clocks that a test may set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

from migrator.ports import LONGEST_LEASE_SECONDS, HeldLease, Lease, lease_margin
from migrator.store.stuck_leases import StuckLeases

if TYPE_CHECKING:
    from migrator.testing.journal import MemoryJournal


@dataclass
class _Row:
    owner: str
    token: int
    taken_at: float
    ends_at: float


class MemoryLeases:
    """See :class:`migrator.ports.Leases`.

    :ivar now: the clock that all share, in seconds.
    :ivar clock: the holder's own.
    """

    def __init__(self, journal: MemoryJournal) -> None:
        self._journal = journal
        self._rows: dict[str, _Row] = {}
        self.now: Callable[[], float] = monotonic
        self.clock: Callable[[], float] = monotonic
        self._stuck = StuckLeases()

    async def acquire(
        self, name: str, *, owner: str, seconds: float, known: int | None = None
    ) -> Lease | None:
        """See :meth:`migrator.ports.Leases.acquire`."""
        asked_at = self.clock()
        await self._journal.write("acquire")
        now = self.now()
        there = self._rows.get(name, _Row("", 0, 0, 0))
        others = there.owner != owner or known not in (None, there.token)
        if there.owner and others and there.ends_at > now:
            return None
        self._rows[name] = _Row(owner, there.token + 1, now, now + seconds)
        until = asked_at + seconds - lease_margin(seconds)
        before = "" if there.owner == owner else there.owner
        return Lease(
            name=name,
            owner=owner,
            token=there.token + 1,
            until=until,
            clock=self.clock,
            taken_from=before,
        )

    async def renew(self, held: Sequence[Lease], *, seconds: float) -> list[Lease | None]:
        """See :meth:`migrator.ports.Leases.renew`."""
        asked_at = self.clock()
        await self._journal.write("renew")
        until = asked_at + seconds - lease_margin(seconds)
        renewed: list[Lease | None] = []
        for each in held:
            holds = self.holds(each)
            if holds:
                self._rows[each.name].ends_at = self.now() + seconds
            renewed.append(replace(each, until=until) if holds else None)
        return renewed

    async def release(self, lease: Lease) -> None:
        """See :meth:`migrator.ports.Leases.release`."""
        await self._journal.write("release")
        row = self._rows.get(lease.name)
        if row is not None and (row.owner, row.token) == (lease.owner, lease.token):
            row.owner, row.ends_at = "", 0

    async def all(self) -> list[HeldLease]:
        """See :meth:`migrator.ports.Leases.all`."""
        await self._journal.pause("leases")
        latest = self.now() + LONGEST_LEASE_SECONDS
        held = [(name, row) for name, row in self._rows.items() if row.owner and row.ends_at > latest]
        self._stuck.note({(name, row.token): row.ends_at for name, row in held}, self.clock())
        return [
            HeldLease(
                name=name,
                owner=row.owner,
                token=row.token,
                taken_at=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=row.taken_at),
                left_seconds=row.ends_at - self.now(),
            )
            for name, row in sorted(self._rows.items())
            if row.owner
        ]

    async def end_stuck(self) -> None:
        """See :meth:`migrator.ports.Leases.end_stuck`."""
        stuck = self._stuck.due(self.clock())
        if not stuck:
            return
        await self._journal.write("end stuck")
        for (name, token), ends_at in stuck.items():
            row = self._rows[name]
            if (row.token, row.ends_at) == (token, ends_at):
                row.ends_at = self.now()

    def holds(self, lease: Lease) -> bool:
        """Nobody else has it, and it has not ended."""
        row = self._rows.get(lease.name)
        return (
            row is not None
            and (row.owner, row.token) == (lease.owner, lease.token)
            and row.ends_at > self.now()
        )

    def jump(self, seconds: float) -> None:
        """Set the clock that all share forward by so much, or back."""
        for row in self._rows.values():
            row.ends_at -= seconds
