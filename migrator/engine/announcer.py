"""Tells others what happens to migrations, evacuations and hosts: publishes events, and has the journal keep documents.

An evacuation's document has all its guests, and something happens to each of them a few times. So it is told at once
where it has not been told for a while, and else once that while is over, which is the longer the more guests there are.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from datetime import UTC, datetime

from migrator.api.documents import DecisionDocument
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    HostStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
)
from migrator.api.inventory_documents import HostDocument
from migrator.core.drain.evacuation import Evacuation
from migrator.core.inventory import Guest, Host
from migrator.core.migration import unfinished
from migrator.core.model import Decision
from migrator.engine.duplicates import DUPLICATE
from migrator.engine.evacuation_documents import EvacuationDocuments
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.registry import Registry

#: Between two events of progress of one migration.
_PROGRESS_SECONDS = 0.25
#: Between two events of one evacuation, for each of its guests.
_SECONDS_A_GUEST = 0.01
#: Paths that the document of a host shows.
_PATHS_SHOWN = 10
#: Obstacles of which everyone is told when they come and go.
_LOUD = frozenset({unfinished.UNFINISHED, DUPLICATE})


class Announcer:
    """Publishes what is so now; see the module."""

    def __init__(
        self, *, registry: Registry, inventory: Inventory, journal_writer: JournalWriter, bus: EventBus
    ) -> None:
        self._registry, self._inventory = registry, inventory
        self._journal_writer, self._bus = journal_writer, bus
        self._documents = EvacuationDocuments()
        #: When progress of a migration, and an evacuation, was last told; on the loop's clock.
        self._progress_told_at: dict[str, float] = {}
        self._evacuation_told_at: dict[str, float] = {}
        self._later: dict[str, asyncio.TimerHandle] = {}
        #: What was last said of each host, and of which host and guests that was made.
        self._told_hosts: dict[str, tuple[object, ...]] = {}
        self._seen_hosts: dict[str, tuple[Host, tuple[Guest, ...]]] = {}

    # --- migrations --------------------------------------------------------------------------------------------------

    def migration(self, session: JournalledSession) -> None:
        """Tell its state, and journal it soon."""
        self._journal_writer.schedule_latest("migration", session.id, session.journalled)
        self._bus.publish(MigrationStateChanged(migration=session.document(decisions=False)))

    def progress(self, session: JournalledSession) -> None:
        """Tell its figures, unless that was done a moment ago."""
        # A migration is looked at more often than anybody wants to read of it, and each word of it has its price.
        now = asyncio.get_running_loop().time()
        if now - self._progress_told_at.get(session.id, -math.inf) < _PROGRESS_SECONDS:
            return
        self._progress_told_at[session.id] = now
        self._bus.publish(MigrationProgressed(migration=session.document(decisions=False)))

    def decision(self, session: JournalledSession, decision: Decision) -> None:
        """Tell a decision, and journal it soon: another controller shall know it."""
        self._journal_writer.schedule_latest("migration", session.id, session.journalled)
        self._bus.publish(DecisionTaken(migration=session.id, decision=DecisionDocument(**asdict(decision))))

    # --- evacuations -------------------------------------------------------------------------------------------------

    def evacuation(self, identifier: str, *, at_once: bool = False) -> None:
        """Tell how far it is, and journal it; soon, where that was done a moment ago.

        :param at_once: do not wait for that.
        """
        run = self._registry.evacuations.get(identifier)
        if run is None:
            return
        now = asyncio.get_running_loop().time()
        due = self._evacuation_told_at.get(identifier, -math.inf) + _SECONDS_A_GUEST * len(run.entries)
        if not at_once and now < due:
            if identifier not in self._later:
                loop = asyncio.get_running_loop()
                self._later[identifier] = loop.call_at(due, self._tell_evacuation, identifier)
            return
        self._tell_evacuation(identifier)

    def _tell_evacuation(self, identifier: str) -> None:
        if (timer := self._later.pop(identifier, None)) is not None:
            timer.cancel()
        if (run := self._registry.evacuations.get(identifier)) is None:
            return
        self._evacuation_told_at[identifier] = asyncio.get_running_loop().time()
        self.journal_evacuation(run)
        self._bus.publish(EvacuationStateChanged(evacuation=self._documents.shown(run)))

    def journal_evacuation(self, now: Evacuation) -> None:
        """Have the journal keep it soon, as it is then; one that is forgotten by then, as it is now."""
        self._journal_writer.schedule_latest(
            "evacuation",
            now.id,
            lambda: self._documents.journalled(self._registry.evacuations.get(now.id, now)),
        )

    def flush(self) -> None:
        """Tell what still waits for its time."""
        for identifier in list(self._later):
            self._tell_evacuation(identifier)

    # --- hosts -------------------------------------------------------------------------------------------------------

    def host(self, name: str) -> None:
        """Tell what it is like."""
        host = self._inventory.host(name)
        if host is not None:
            document = host_document(host, inventory=self._inventory, registry=self._registry)
            self._bus.publish(HostStateChanged(host=document))

    def changed_hosts(self) -> None:
        """Tell of every host of which something is different that everyone is told."""
        for host in self._inventory.hosts():
            guests, (host_then, guests_then) = (
                self._inventory.guests_at(host.name),
                self._seen_hosts.get(host.name, (None, None)),
            )
            if host_then is host and guests_then is guests:
                continue
            self._seen_hosts[host.name] = (host, guests)
            trouble = sorted(
                (guest.key, guest.obstacle_code)
                for guest in guests
                if guest.obstacle and guest.obstacle_code in _LOUD
            )
            libvirt = (host.facts.libvirt_error, host.facts.shut_off_guests)
            told = (host.state, host.cordoned, host.up, host.error, *libvirt, len(guests), *trouble)
            if self._told_hosts.get(host.name) != told:
                self._told_hosts[host.name] = told
                self.host(host.name)

    def forget(self, migrations: list[str], evacuations: list[str]) -> None:
        """Drop what was kept of migrations and evacuations of which nothing more will be told."""
        for name in migrations:
            self._progress_told_at.pop(name, None)
            self._bus.forget(Subject.MIGRATION, name)
        for name in evacuations:
            self._evacuation_told_at.pop(name, None)
            self._documents.forget(name)
            self._bus.forget(Subject.EVACUATION, name)


def _time(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


def host_document(host: Host, *, inventory: Inventory, registry: Registry) -> HostDocument:
    """Return a host as it is now."""
    guests = inventory.guests(host.name)
    scheduled = next((run for run in registry.scheduled() if run.host == host.name), None)
    return HostDocument(
        host=host.name,
        state=host.state,
        cordoned=host.cordoned,
        up=host.up,
        error=host.error,
        address=host.address,
        guests=len(guests),
        guests_unmonitored=sum(not guest.monitored for guest in guests),
        guests_undriven=sum(
            guest.obstacle_code == unfinished.UNFINISHED and not registry.is_moving(guest.key)
            for guest in guests
        ),
        guests_not_movable=sum(bool(guest.obstacle) for guest in guests),
        guests_duplicate=sorted({guest.uuid for guest in guests} & inventory.doubled().keys()),
        memory_total_bytes=host.memory_bytes or host.facts.memory_total_bytes,
        memory_free_bytes=inventory.memory_free(host),
        cpus=host.facts.cpus,
        kvm=host.facts.kvm,
        libvirt_error=host.facts.libvirt_error,
        guests_shut_off=host.facts.shut_off_guests,
        link_bytes_per_second=host.link_bytes_per_second,
        slowest_paths=host.learned.slowest(_PATHS_SHOWN),
        labels=dict(host.labels),
        qemus=dict(host.facts.qemus),
        certificates_expire_at=_time(host.facts.certificates.expires),
        looked_at=inventory.looked_at(host.name),
        scheduled=scheduled.id if scheduled else None,
        scheduled_at=scheduled.window.starts_at if scheduled else None,
        scheduled_until=scheduled.window.ends_at if scheduled else None,
    )
