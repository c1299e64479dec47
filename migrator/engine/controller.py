"""Puts the engine together: every part is given what it needs, and none of them knows the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from migrator.core.drain.preparations import Preparations
from migrator.core.schedule.transfers import LinkTable, stream_speed
from migrator.engine.announcer import Announcer
from migrator.engine.commands.discarding import DiscardCommand
from migrator.engine.commands.evacuations import EvacuationCommands
from migrator.engine.commands.handlers import CommandHandlers
from migrator.engine.commands.lookups import Lookups
from migrator.engine.commands.migrations import MigrationCommands
from migrator.engine.commands.rolls import RollCommands
from migrator.engine.commands.saved_list import SavedList
from migrator.engine.commands.saving import SavingCommands
from migrator.engine.commands.site_rules import SiteRules
from migrator.engine.dirty_rates import DirtyRates
from migrator.engine.disk_room import DiskRoom
from migrator.engine.evacuations import Evacuations
from migrator.engine.event_bus import EventBus
from migrator.engine.guest_experiences import GuestExperiences
from migrator.engine.handing_over import SpreadingSite
from migrator.engine.image_removals import ImageRemovals
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.held_migrations import HeldMigrations
from migrator.engine.migration.leftovers import Leftovers
from migrator.engine.migration.services import SessionServices
from migrator.engine.pair_overheads import PairOverheads
from migrator.engine.path_speeds import KIND as PATH_SPEEDS
from migrator.engine.path_speeds import PathSpeeds
from migrator.engine.preview import Preview
from migrator.engine.queries import EngineQueries
from migrator.engine.reconciler import Reconciler
from migrator.engine.recovery import Recovery
from migrator.engine.registry import Registry
from migrator.engine.reservations import Reservations
from migrator.engine.rolls import Rolls
from migrator.engine.rules import Rules
from migrator.engine.sessions import Sessions
from migrator.engine.snapshots import Snapshots
from migrator.engine.spreading import Spreading, SpreadingJournal
from migrator.engine.sweeper import Sweeper
from migrator.engine.thread_computing import ThreadComputing
from migrator.engine.windows import Windows
from migrator.faults import keep_going
from migrator.ports.assignments import DriverPool
from migrator.ports.computing import Computing


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The parts needed to have other controllers drive migrations; see :class:`migrator.engine.spreading.Spreading`."""

    journal: SpreadingJournal
    site: SpreadingSite
    pool: DriverPool
    controller: str
    number: Callable[[], int]
    on_takeover: Callable[[], None] = lambda: None


class Engine:
    """Every migration and evacuation that has not ended, and what drives them; one event loop, no locks.

    :param computing: computes forecasts and previews; a thread of this process, where none is given.
    :param sharing: where other controllers may drive migrations.
    :param earlier_overheads: of pairs of QEMUs, as an older version kept them beside the journal.
    """

    def __init__(
        self,
        *,
        inventory: Inventory,
        services: SessionServices,
        journal_writer: JournalWriter,
        bus: EventBus,
        rules: Rules,
        computing: Computing | None = None,
        sharing: Sharing | None = None,
        earlier_overheads: Callable[[], Mapping[str, Sequence[float]]] = dict,
    ) -> None:
        self.rules = rules
        self._computing = computing if computing is not None else ThreadComputing()
        path_speeds = PathSpeeds(
            tell=inventory.learn, keep=partial(journal_writer.schedule_latest, PATH_SPEEDS)
        )
        self.experiences = GuestExperiences(journal_writer=journal_writer)
        self.pair_overheads = PairOverheads(journal_writer=journal_writer)
        self.registry = Registry()
        services = replace(
            services,
            stream_speed=self._stream_speed,
            shared_path=path_speeds.stream,
            history=self.experiences,
            experience=self.pair_overheads,
            deadline=self._deadline,
            judge_room=DiskRoom(registry=self.registry, inventory=inventory).judge,
        )
        self.inventory, self.services, self.journal_writer, self.bus = (
            inventory,
            services,
            journal_writer,
            bus,
        )
        #: What commands and the reconciler are about to change.
        self.reservations = Reservations()
        #: Rows of the journal that cannot be read, by kind and name.
        self.unreadable: set[tuple[str, str]] = set()
        #: Records of steps that nobody can make anything of, each in one line for a person.
        self.left_records: list[str] = []
        preparations = Preparations()
        journal_writer.follow(bus)
        self.announcer = Announcer(
            registry=self.registry, inventory=inventory, journal_writer=journal_writer, bus=bus
        )
        self.leftovers = Leftovers(
            abandon=inventory.site.abandon,
            clear=inventory.site.clear,
            up=self._is_up,
            under_way=self.registry.is_under_way,
            keep=journal_writer.schedule,
        )
        self.image_removals = ImageRemovals(
            site=inventory.site,
            registry=self.registry,
            guests_of=inventory.guests_of,
            journal_writer=journal_writer,
            bus=bus,
        )
        self.sessions = Sessions(
            registry=self.registry,
            services=services,
            journal_writer=journal_writer,
            announcer=self.announcer,
            inventory=inventory,
            experiences=self.experiences,
            pair_overheads=self.pair_overheads,
            leftovers=self.leftovers,
            image_removals=self.image_removals,
            preparations=preparations,
            rules=self._rules_now,
            changed=self._wake,
        )
        self._spreading = self.sessions.spreading = self._make_spreading(sharing)
        if self._spreading is not None:
            path_speeds.shared_elsewhere = self._spreading.shares_links
        dirty_rates = DirtyRates(
            site=inventory.site,
            inventory=inventory,
            registry=self.registry,
            experiences=self.experiences,
        )
        self.evacuations = Evacuations(
            registry=self.registry,
            inventory=inventory,
            journal_writer=journal_writer,
            announcer=self.announcer,
            dirty_rates=dirty_rates,
            changed=self._wake,
        )
        snapshots = Snapshots(
            registry=self.registry,
            inventory=inventory,
            reservations=self.reservations,
            preparations=preparations,
            rules=self._rules_now,
        )
        self.reconciler = Reconciler(
            snapshots=snapshots,
            registry=self.registry,
            inventory=inventory,
            reservations=self.reservations,
            sessions=self.sessions,
            evacuations=self.evacuations,
            announcer=self.announcer,
            computing=self._computing,
        )
        self.held = HeldMigrations(self.registry)
        self.queries = EngineQueries(
            registry=self.registry,
            inventory=inventory,
            journal=journal_writer.journal,
            bus=bus,
            samples=services.samples,
            unreadable=self.unreadable,
            rules=self._rules_now,
        )
        preview = Preview(
            snapshots=snapshots,
            sessions=self.sessions,
            dirty_rates=dirty_rates,
            experiences=self.experiences,
            computing=self._computing,
        )
        self.windows = Windows(
            registry=self.registry,
            inventory=inventory,
            reservations=self.reservations,
            evacuations=self.evacuations,
            announcer=self.announcer,
            snapshots=snapshots,
            preview=preview,
            journal_writer=journal_writer,
            changed=self._wake,
        )
        self.rolls = Rolls(
            registry=self.registry,
            inventory=inventory,
            evacuations=self.evacuations,
            announcer=self.announcer,
            journal_writer=journal_writer,
            bus=bus,
            hooks=services.roll_hooks,
        )
        self.handlers = self.rolls.commands = self._command_handlers(snapshots, preview)
        self._sweeper = Sweeper(inventory.site, hosts=inventory.hosts, under_way=self.registry.is_under_way)
        self._recovery = Recovery(
            registry=self.registry,
            inventory=inventory,
            services=services,
            journal_writer=journal_writer,
            bus=bus,
            announcer=self.announcer,
            sessions=self.sessions,
            leftovers=self.leftovers,
            image_removals=self.image_removals,
            preparations=preparations,
            path_speeds=path_speeds,
            experiences=self.experiences,
            pair_overheads=self.pair_overheads,
            earlier_overheads=earlier_overheads,
            rules=self._rules_now,
            unreadable=self.unreadable,
            left_records=self.left_records,
            spreading=self._spreading,
        )

    def _make_spreading(self, sharing: Sharing | None) -> Spreading | None:
        if sharing is None:
            return None
        return Spreading(
            registry=self.registry,
            services=self.services,
            journal=sharing.journal,
            journal_writer=self.journal_writer,
            site=sharing.site,
            pool=sharing.pool,
            controller=sharing.controller,
            number=sharing.number,
            on_takeover=sharing.on_takeover,
            callbacks=self.sessions.callbacks,
            note=self.sessions.note,
            wake=self._wake,
        )

    def _command_handlers(self, snapshots: Snapshots, preview: Preview) -> CommandHandlers:
        journal = self.journal_writer.journal
        lookups = Lookups(
            inventory=self.inventory,
            registry=self.registry,
            services=self.services,
            journal_writer=self.journal_writer,
            rules=self._rules_now,
        )
        migrations = MigrationCommands(
            lookups=lookups,
            sessions=self.sessions,
            reservations=self.reservations,
            held=self.held,
            journal_writer=self.journal_writer,
            rules=self._rules_now,
        )
        evacuations = EvacuationCommands(
            lookups=lookups,
            registry=self.registry,
            inventory=self.inventory,
            reservations=self.reservations,
            sessions=self.sessions,
            evacuations=self.evacuations,
            announcer=self.announcer,
            snapshots=snapshots,
            preview=preview,
            journal=journal,
            changed=self._wake,
            waiting_changed=self._wake_waiting,
        )
        saving = SavingCommands(
            lookups=lookups,
            sessions=self.sessions,
            reservations=self.reservations,
            inventory=self.inventory,
            journal=journal,
            saved=self.services.saved,
        )
        discarding = DiscardCommand(
            lookups=lookups,
            registry=self.registry,
            reservations=self.reservations,
            inventory=self.inventory,
            journal_writer=self.journal_writer,
            saved=self.services.saved,
        )
        saved_list = SavedList(
            registry=self.registry,
            inventory=self.inventory,
            journal_writer=self.journal_writer,
            saved=self.services.saved,
        )
        rolls = RollCommands(
            lookups=lookups,
            registry=self.registry,
            reservations=self.reservations,
            evacuations=self.evacuations,
            rolls=self.rolls,
        )
        return CommandHandlers(
            migrations=migrations,
            rolls=rolls,
            saving=saving,
            discarding=discarding,
            saved_list=saved_list,
            site_rules=SiteRules(
                rules=self._rules_now, inventory=self.inventory, hooks=self.services.roll_hooks
            ),
            evacuations=evacuations,
            registry=self.registry,
            inventory=self.inventory,
            journal=journal,
        )

    def _rules_now(self) -> Rules:
        return self.rules

    def _deadline(self, evacuation: str) -> float | None:
        """Return the deadline of an evacuation, seconds since the epoch; ``None``: there is none."""
        run = self.registry.evacuations.get(evacuation)
        return run.deadline.timestamp() if run is not None and run.deadline is not None else None

    def _stream_speed(self, source: str, target: str) -> float:
        """Return the same as a plan forecasts with; see :attr:`SessionServices.stream_speed`."""
        hosts = {host.name: host for name in (source, target) if (host := self.inventory.host(name))}
        links = self.rules.links
        return stream_speed(source, target, LinkTable(hosts, links))

    def _wake(self) -> None:
        self.reconciler.wake()

    def _wake_waiting(self) -> None:
        self.windows.wake()
        self.rolls.wake()

    def _is_up(self, name: str) -> bool:
        host = self.inventory.host(name)
        return host is not None and host.up

    def count_under_way(self) -> int:
        """Return how many migrations are under way, whoever drives them."""
        return self.registry.count_live

    def is_switching(self) -> bool:
        """Return whether a guest is being switched now, by this controller."""
        return any(each.switches for each in self.registry.live() if not each.driven_elsewhere)

    def inventory_changed(self) -> None:
        """Wake all parts that depend on hosts and guests, which are different from before."""
        self.reconciler.wake()
        self.leftovers.wake()
        self.image_removals.wake()
        self.held.wake()
        self.announcer.changed_hosts()

    @property
    def unread(self) -> list[str]:
        """Return the ids of migrations and evacuations that a newer version left, so that they cannot be read."""
        return sorted(self.registry.unread)

    async def recover(self) -> None:
        """Read the journal; begin to go on with everything that was left. Guests that stand still come first.

        :raise JournalError: it cannot be read.
        """
        await self._recovery.run()
        self.reconciler.wake()

    async def run(self) -> None:
        """Look at hosts, plan, and journal, until cancelled."""
        async with asyncio.TaskGroup() as group:
            spread = {} if self._spreading is None else {"spreading": self._spreading.run}
            for name, work in {
                **spread,
                "journal": self.journal_writer.run,
                "inventory": self.inventory.schedule.run,
                "reconciler": self.reconciler.run,
                "windows": self.windows.run,
                "rolls": self.rolls.run,
                "leftovers": self.leftovers.run,
                "image removals": self.image_removals.run,
                "sweeper": self._sweeper.run,
                "held migrations": self.held.run,
            }.items():
                group.create_task(keep_going(name, work), name=name)

    def suspend(self) -> None:
        """Leave everything to whoever may have the right to act by now, until :meth:`resume`.

        Nothing is begun. What is past the guest's STOP is finished, as far as nobody else has taken it over; the rest
        is parked, and its monitors are let go.
        """
        self.registry.suspended = True
        for session in self.registry.live():
            session.park()

    def resume(self) -> None:
        """Go on: nobody else has acted meanwhile."""
        self.registry.suspended = False
        for session in self.registry.live():
            if not self.registry.busy(session):
                self.sessions.resume(session)
        self._wake()

    async def stop(self, *, drain: bool = False, timeout: float = 60.0) -> bool:
        """Let go: what is past the guest's STOP is finished, the rest parked; with `drain` all is finished.

        True when nothing is under way any more.
        """
        self.registry.stopping = True
        for session in self.registry.live():
            if drain and session.moved_with:
                session.allow_switch("the service stops: nobody says any more when its group is due")
        for session in self.registry.migrations.values():
            # With drain too: nobody is given a turn any more, so whoever still waits for one would wait for ever.
            if not drain or session.started_at is None:
                session.park()
        tasks = self.registry.driving()
        if tasks:
            await asyncio.wait(tasks, timeout=None if drain else timeout)
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5.0)
        self.evacuations.stop()
        self.announcer.flush()
        await self.journal_writer.flush(5.0)
        return not left
