"""Begins evacuations and restores, ends them, and says what their hosts may be used for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState
from migrator.core.inventory import Guest, HostState
from migrator.engine import clock
from migrator.engine.announcer import Announcer
from migrator.engine.dirty_rates import DirtyRates
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.registry import Registry
from migrator.errors import Fault
from migrator.faults import contained

#: An evacuation waits so long at most for the dirty rates of its guests: they decide who goes when.
_MEASURED_SECONDS = 3.0


class Evacuations:
    """See the module.

    :param changed: called when something became of one of them.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        inventory: Inventory,
        journal_writer: JournalWriter,
        announcer: Announcer,
        dirty_rates: DirtyRates,
        changed: Callable[[], None],
    ) -> None:
        self._registry, self._inventory, self._journal_writer = registry, inventory, journal_writer
        self._announcer, self._dirty_rates, self._changed = announcer, dirty_rates, changed
        self._measuring: set[asyncio.Task[None]] = set()

    def begin(self, run: Evacuation, state: HostState | None = None) -> None:
        """Take in one that is in the journal, with its host's state: its guests are measured, and go.

        :param state: ``None`` where it is about no host.
        """
        if state is not None:
            self.set_host(run.host, state)
        unknown = [
            entry.guest
            for entry in run.entries.values()
            if entry.wants_place and entry.guest.dirty_rate_bytes_per_second is None
        ]
        if unknown:
            run = replace(run, not_before=clock.now() + _MEASURED_SECONDS)
            task = asyncio.create_task(
                self._measure(run.id, unknown), name=f"measure guests of {run.host or run.group}"
            )
            self._measuring.add(task)
            task.add_done_callback(self._measuring.discard)
        self._registry.evacuations[run.id] = run
        self._announcer.evacuation(run.id)
        self._changed()

    def beside(self, identifier: str, work: Coroutine[Any, Any, None]) -> None:
        """Have something be found out for an evacuation while it runs; an error of ours harms nothing else."""

        async def contain() -> None:
            try:
                with contained(f"what is found out for evacuation {identifier}"):
                    await work
            except Fault:
                pass  # it was logged with its id

        task = asyncio.create_task(contain(), name=f"beside evacuation {identifier}")
        self._measuring.add(task)
        task.add_done_callback(self._measuring.discard)

    async def _measure(self, identifier: str, guests: list[Guest]) -> None:
        await self._dirty_rates.measure(guests)
        self._registry.change(identifier, lambda run: replace(run, not_before=0.0))
        self._changed()

    def begin_roll(self, run: Evacuation) -> None:
        """Take in a roll that is in the journal."""
        self._registry.evacuations[run.id] = run
        self._announcer.evacuation(run.id)
        self._changed()

    def schedule(self, run: Evacuation) -> None:
        """Take in one that is in the journal and waits for its window."""
        self._registry.evacuations[run.id] = run
        self._announcer.evacuation(run.id)
        self._announcer.host(run.host)
        self._changed()

    def end(self, identifier: str, state: EvacuationState, error: str = "") -> None:
        """End an evacuation; its host is put into maintenance when it is empty.

        :param error: in place of that of its guests.
        """
        run = self._registry.evacuations.get(identifier)
        if run is None or run.ended:
            return
        if run.scheduled:
            ended = run.ended_as(state, datetime.now(UTC))
            self._registry.evacuations[identifier] = replace(ended, error=error or ended.error)
            self._announcer.evacuation(identifier, at_once=True)
            self._announcer.host(run.host)
            return

        def close(run: Evacuation) -> Evacuation:
            after = run.ended_as(state, datetime.now(UTC))
            if run.kind == "evacuate":
                after = replace(after, guests_shut_off=self.shut_off(run.host))
            return replace(after, error=error) if error else after

        self._registry.change(identifier, close)
        match state:
            case EvacuationState.COMPLETED if run.kind == "evacuate":
                self.set_host(run.host, HostState.MAINTENANCE)
            case EvacuationState.CANCELLED if run.host:
                self.set_host(run.host, HostState.ACTIVE)
        self._announcer.evacuation(identifier, at_once=True)

    def shut_off(self, name: str) -> int | None:
        """Return how many guests the host's libvirt has shut off; ``None``: it could not be asked."""
        host = self._inventory.host(name)
        if host is None or host.facts.libvirt_error:
            return None
        return host.facts.shut_off_guests

    def set_host(self, name: str, state: HostState) -> None:
        """Say what a host may be used for; announced, and journalled soon."""
        self._inventory.set_state(name, state)
        self._host_changed(name)

    def set_cordoned(self, name: str, cordoned: bool) -> None:
        """Say whether new guests may come to a host; announced, and journalled soon."""
        self._inventory.set_cordoned(name, cordoned)
        self._host_changed(name)

    def host_saved(
        self, name: str, *, state: HostState | None = None, cordoned: bool | None = None
    ) -> dict[str, Any]:
        """Return what a host may be used for as the journal keeps it, with what is to become different of it."""
        host = self._inventory.host(name)
        return {
            "id": name,
            "state": str(state if state is not None else host.state if host else HostState.ACTIVE),
            "cordoned": cordoned if cordoned is not None else host is not None and host.cordoned,
            "ended_at": None,
        }

    def _host_changed(self, name: str) -> None:
        # Made when it is written: what is committed meanwhile is in it.
        self._journal_writer.schedule_latest("host", name, lambda: self.host_saved(name))
        self._announcer.host(name)

    def stop(self) -> None:
        """Measure nothing more."""
        for task in self._measuring:
            task.cancel()
