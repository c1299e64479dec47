"""The parts of a journal in memory that several controllers share: documents, leases, steps and signals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from migrator.errors import LeaseLost
from migrator.ports import Lease, Signal
from migrator.store.signals import LocalSignals
from migrator.testing.journal import MemoryJournal
from migrator.testing.wire import Wire

#: Its name on the network.
PLACE = "store"
Written = Callable[[Lease | None, str, Mapping[str, Any] | None, Mapping[str, Any]], None]


@dataclass
class SharedSteps:
    """The steps of one migration, as :mod:`migrator.store.step_rows` keeps them."""

    facts: str
    intent: str
    noted_at: int
    exact: bool = False
    outcome: str | None = None
    ended: bool = False


class SharedSignals:
    """Tells all who use the store, but those that are cut off from it; see :class:`migrator.ports.Signals`."""

    def __init__(self) -> None:
        self._views: list[tuple[Wire, LocalSignals]] = []

    def view(self, wire: Wire) -> LocalSignals:
        """Return the signals as one process hears them."""
        heard = LocalSignals()
        self._views.append((wire, heard))
        return heard

    def drop(self, wire: Wire) -> None:
        """Tell a process nothing more: it was killed."""
        self._views = [each for each in self._views if each[0] is not wire]

    async def notify(self, channel: str, payload: str = "") -> None:
        """See :meth:`migrator.ports.Signals.notify`."""
        for wire, heard in tuple(self._views):
            if PLACE not in wire.cut:
                await heard.notify(channel, payload)

    def listen(
        self, *channels: str, poll_seconds: float = 5.0
    ) -> AbstractAsyncContextManager[AsyncIterator[Signal]]:
        """See :meth:`view`: each process listens by itself."""
        raise NotImplementedError


class SharedStore:
    """All that the controllers share.

    :ivar fenced: what a lease does not allow any more is refused; only a test of tests has it otherwise.
    :ivar fences_drivers: likewise, of those that drive what a planner gave them.
    :ivar taken_late: called with the lease of what a driver wrote after its assignment was over, and was not refused.
    :ivar written: called with the writer's lease, the kind, the document before and after, when one is written.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.journal = MemoryJournal()
        self.written: Written = lambda lease, kind, before, after: None
        self.journal.signals = self.signals = SharedSignals()
        self.journal.pause = _at_once
        self.journal.leases.now = self.journal.leases.clock = now
        self.meta: dict[str, str] = {}
        self.steps: dict[str, SharedSteps] = {}
        self.fenced = self.fences_drivers = True
        self.taken_late: Callable[[Lease], None] = lambda lease: None
        self.now = now

    def check(self, lease: Lease | None) -> None:
        """:raise LeaseLost: it does not hold."""
        if lease is None:
            return
        drives = lease.name.startswith("migration/")
        its = self.journal.assignments if drives else self.journal.leases
        if its.holds(lease):
            return
        if self.fenced and (self.fences_drivers or not drives):
            raise LeaseLost(f"the lease {lease.name} of {lease.owner} does not hold any more")
        if drives:
            self.taken_late(lease)


async def _at_once(call: str) -> None:
    """The network takes the time."""
