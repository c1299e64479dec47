"""Migrations that are queued or under way, as the schedule sees them. Pure.

What is seen of one is kept for as long as nothing of it is different: a plan is made a few times for each migration,
and must not work out all the others each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from migrator.core.drain.snapshot import MigrationSnapshot, SiteSnapshot
from migrator.core.drain.transfers import Transfers
from migrator.core.model import State
from migrator.core.schedule.transfers import LinkTable, Move, TransferPhase


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """One of them, and what its move was made of."""

    migration: MigrationSnapshot
    basis: tuple[object, ...]
    move: Move


@dataclass(frozen=True, kw_only=True)
class ActiveMoves:
    """All of them; a value."""

    #: Those that were begun in any way, in the order of turn, and those that were not.
    begun: Sequence[Move] = ()
    queued: AbstractSet[Move] = frozenset()
    _known: Mapping[str, _Known] = field(default_factory=dict)

    def brought_up_to_date(
        self, snapshot: SiteSnapshot, network: LinkTable, *, deadlines_from: datetime
    ) -> ActiveMoves:
        """Return those of a snapshot: the same moves as here, where the migration and what else counts are the same."""
        transfers = Transfers(snapshot, deadlines_from=deadlines_from)
        known: dict[str, _Known] = {}
        for each in snapshot.live.values():
            if each.state in (State.HELD, State.WAITING):
                continue
            basis, last = transfers.basis(each), self._known.get(each.id)
            path = network.path(each.guest.host, each.target)
            same = last is not None and last.migration is each and last.move.path is path
            if last is None or not same or last.basis != basis:
                move = Move(transfers.running(each), network, snapshot.limits.links)
                last = _Known(migration=each, basis=basis, move=move)
            known[each.id] = last
        moves = [each.move for each in known.values()]
        begun = [move for move in moves if move.phase is not TransferPhase.WAITING]
        return ActiveMoves(
            begun=sorted(begun, key=lambda move: move.key),
            queued=frozenset(move for move in moves if move.phase is TransferPhase.WAITING),
            _known=known,
        )
