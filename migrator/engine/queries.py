"""Answers to queries, from the engine's memory and its journal; see :class:`~migrator.ports.queries.Queries`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from migrator import faults
from migrator.api.documents import MigrationDocument, SampleDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import Subject
from migrator.api.inventory_documents import GuestDocument, HostDocument, LibvirtGuestDocument
from migrator.api.replies import Refusal
from migrator.core.drain.evacuation import Evacuation
from migrator.core.inventory import Guest, Host
from migrator.engine.announcer import host_document
from migrator.engine.evacuation_documents import EvacuationDocuments, evacuation_document
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory, one_guest
from migrator.engine.registry import Registry
from migrator.engine.rules import Rules
from migrator.ports import Journal, Samples
from migrator.ports.journal_queries import JournalQueries, sample_document

#: A guest, what its document was made of besides, and how it is known.
_KnownGuest = tuple[Guest, tuple[str | None, str, bool], tuple[GuestDocument, str, bool]]


class EngineQueries(JournalQueries):
    """See :class:`migrator.ports.queries.Queries`."""

    def __init__(
        self,
        *,
        registry: Registry,
        inventory: Inventory,
        journal: Journal,
        bus: EventBus,
        samples: Samples | None,
        unreadable: set[tuple[str, str]],
        rules: Callable[[], Rules],
    ) -> None:
        super().__init__(journal, unreadable=unreadable)
        self._registry, self._inventory, self._journal = registry, inventory, journal
        self._samples, self._rules = samples, rules
        self.bus: EventBus = bus
        #: What was last made of each guest, by its host, and of each evacuation.
        self._known_guests: dict[str, dict[int, _KnownGuest]] = {}
        self._documents = EvacuationDocuments()
        self._shown_evacuations: dict[str, tuple[Evacuation, EvacuationDocument]] = {}

    def active_migrations(self) -> list[MigrationDocument]:
        return [job.document() for job in self._registry.live() if not job.ended]

    def active_evacuations(self) -> list[EvacuationDocument]:
        return [evacuation_document(run) for run in self._registry.shown()]

    def hosts(self) -> list[HostDocument]:
        hosts = sorted(self._inventory.hosts(), key=lambda h: h.name)
        return self._readable(
            "host",
            hosts,
            lambda host: host_document(host, inventory=self._inventory, registry=self._registry),
        )

    def host(self, name: str) -> HostDocument | None:
        host = self._inventory.host(name)
        return self._host_document(host) if host else None

    def _host_document(self, host: Host) -> HostDocument:
        return host_document(host, inventory=self._inventory, registry=self._registry)

    def guests(self, host: str | None = None) -> list[GuestDocument]:
        inventory = self._inventory
        if host is not None and inventory.host(host) is None:
            return []
        found = self._readable("guest", inventory.guests(host), self._guest_document)
        return sorted(found, key=lambda guest: (guest.host, guest.name, guest.guest))

    async def refresh(self, host: str | None = None) -> None:
        if host is None:
            await self._inventory.refresh()
        elif self._inventory.host(host) is not None:
            await self._inventory.refresh(host)

    def guest(self, which: str) -> GuestDocument | None:
        try:
            guest = one_guest(self._inventory, which)
        except Refusal as refusal:
            if refusal.code == "not-found":
                return None
            raise
        return self._guest_document(guest)

    def _guest_document(self, guest: Guest) -> GuestDocument:
        return GuestDocument(
            guest=guest.key,
            name=guest.name,
            uuid=guest.uuid,
            identity=guest.identity,
            host=guest.host,
            run_state=guest.state,
            monitored=guest.monitored,
            network_state=guest.network[0],
            network_problem=guest.network[1],
            memory_bytes=guest.memory_bytes,
            vcpus=guest.vcpus,
            dirty_rate_bytes_per_second=guest.dirty_rate_bytes_per_second,
            policy=guest.policy or self._rules().default_policy,
            movable=not guest.obstacle,
            obstacle=guest.obstacle,
            obstacle_code=guest.obstacle_code,
            duplicate=guest.uuid in self._inventory.doubled(),
            managed_by=guest.managed_by,
            libvirt=LibvirtGuestDocument(**guest.domain.fields()) if guest.domain is not None else None,
            migration=self._migration_of(guest),
        )

    def _migration_of(self, guest: Guest) -> str | None:
        session = self._registry.of_guest(guest.key)
        return session.id if session is not None else None

    def _known_migration(self, identifier: str) -> MigrationDocument | None:
        return self.remembered_migration(identifier)

    def _known_evacuation(self, identifier: str) -> EvacuationDocument | None:
        run = self._registry.evacuations.get(identifier)
        return evacuation_document(run) if run else None

    async def samples(self, migration: str) -> list[SampleDocument]:
        samples = self._samples
        return [sample_document(point) for point in await samples.of(migration)] if samples else []

    # --- for who keeps a replica: see migrator.replica.publisher.Source --------------------------------------------

    def looked_at(self) -> dict[str, datetime | None]:
        inventory = self._inventory
        return {host.name: inventory.looked_at(host.name) for host in inventory.hosts()}

    def known_guests(self, host: str) -> list[tuple[GuestDocument, str, bool]]:
        inventory = self._inventory
        if inventory.host(host) is None:
            return []
        before, now = self._known_guests.get(host, {}), dict[int, _KnownGuest]()
        default, doubled = self._rules().default_policy, inventory.doubled()

        def read(guest: Guest) -> tuple[GuestDocument, str, bool]:
            made_of = (self._migration_of(guest), default, guest.uuid in doubled)
            known = before.get(id(guest))
            if known is None or known[0] is not guest or known[1] != made_of:
                shown = (self._guest_document(guest), guest.socket, guest.arriving)
                known = (guest, made_of, shown)
            now[id(guest)] = known
            return known[2]

        found = self._readable("guest", inventory.guests(host), read)
        self._known_guests[host] = now
        return found

    def remembered(self, subject: Subject) -> list[str]:
        return list(self._registry.migrations if subject is Subject.MIGRATION else self._registry.evacuations)

    def remembered_migration(self, identifier: str) -> MigrationDocument | None:
        job = self._registry.migrations.get(identifier)
        return job.document() if job else None

    def remembered_evacuation(self, identifier: str) -> EvacuationDocument | None:
        run = self._registry.evacuations.get(identifier)
        if run is None:
            self._shown_evacuations.pop(identifier, None)
            self._documents.forget(identifier)
            return None
        known = self._shown_evacuations.get(identifier)
        # What is foretold must not be told any more once it is past.
        if known is None or known[0] is not run or (run.forecast_end_at and not run.ended):
            shown = self._documents.shown(run)
            if known is not None and known[0] is run and known[1] == shown:
                shown = known[1]
            known = self._shown_evacuations[identifier] = (run, shown)
        return known[1]

    def complaints(self) -> list[str]:
        own = [self._journal.complaint] if self._journal.complaint else []
        return own + [f"task {name}: {why}" for name, why in faults.complaints.items()]
