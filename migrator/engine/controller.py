"""What the service keeps: hosts, migrations and evacuations, each driven to its end, and what another controller left.

Commands come in through :mod:`migrator.engine.commands.handlers`; what is shown goes out through
:mod:`migrator.engine.queries`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from migrator import logs
from migrator.api.documents import DecisionDocument, HostDocument
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    HostStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
)
from migrator.api.trace_context import TraceContext
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.preparations import Preparations
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest, Host, HostState
from migrator.core.migration import unfinished
from migrator.core.model import Decision, State
from migrator.core.placement import Fleet
from migrator.core.policy import Policy
from migrator.engine import evacuation_documents
from migrator.engine.duplicates import DUPLICATE
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import DocumentToSave, JournalWriter
from migrator.engine.migration import leftovers, stray_records, take_over
from migrator.engine.migration.held_migrations import HeldMigrations
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.leftovers import Leftovers
from migrator.engine.migration.services import SessionServices
from migrator.engine.planner import Planner
from migrator.engine.preview import Preview
from migrator.engine.reservations import Reservations
from migrator.engine.rules import Rules
from migrator.engine.sweeper import Sweeper
from migrator.errors import MigratorError
from migrator.faults import keep_going, told
from migrator.ports import SourceQemu
from migrator.ports.unreadable import UNREADABLE, say_unreadable

#: Between two words of progress of one migration.
_PROGRESS_SECONDS = 0.25


#: An evacuation waits so long at most for the dirty rates of its guests: they decide who goes when.
_MEASURED_SECONDS = 3.0
#: The journal may be a moment behind memory.
_REMEMBERED_SECONDS = 30.0
#: So many of the last migrations tell at a start how long preparing takes.
_PREPARED_BEFORE = 50


#: Obstacles of which everyone is told when they come and go.
_LOUD = frozenset({unfinished.UNFINISHED, DUPLICATE})


class Engine:
    """Every migration and evacuation that has not ended; one event loop, no locks."""

    def __init__(
        self,
        *,
        inventory: Inventory,
        means: SessionServices,
        journal_writer: JournalWriter,
        bus: EventBus,
        rules: Rules,
    ) -> None:
        self.bus = bus
        self.inventory = inventory
        self.rules = rules
        self.jobs: dict[str, JournalledSession] = {}
        self.runs: dict[str, Evacuation] = {}
        self.means = means
        self.journal_writer = journal_writer
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._measuring: set[asyncio.Task[None]] = set()
        #: What commands and the planner are about to change.
        self.reserved = Reservations()
        #: Jobs that are being journalled: their targets are not given away meanwhile.
        self._coming: dict[str, JournalledSession] = {}
        #: When progress of a migration was last told.
        self._told_at: dict[str, float] = {}
        #: What was last said of each host.
        self._shown_hosts: dict[str, tuple[object, ...]] = {}
        self.planner = Planner(self)
        self.preparations = Preparations()
        self.preview = Preview(self, self.planner)
        self.leftovers = Leftovers(
            abandon=means.site.abandon,
            clear=means.site.clear,
            up=self._is_up,
            under_way=self._is_under_way,
            keep=journal_writer.schedule,
        )
        self.sweeper = Sweeper(inventory.site, hosts=inventory.hosts, under_way=self._is_under_way)
        self.held = HeldMigrations(self)
        #: Records of steps that nobody can make anything of, each in one line for a person.
        self.left_records: list[str] = []
        #: Rows that cannot be read, by kind and name: they are left out and said once.
        self.unreadable: set[tuple[str, str]] = set()
        self._log = logs.logger()
        journal_writer.follow(bus)

    # --- its life ----------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Read the journal; begin to go on with everything that was left. Guests that stand still come first.

        :raise JournalError: it cannot be read.
        """
        # All is read before anything is driven: what ends at once is to find its evacuation.
        left = await self._read_journal()
        self.jobs |= {job.id: job for job in left}
        for job in left:
            if not self.bus.sequence(Subject.MIGRATION, job.id):
                self._announce_job(job)  # it was journalled, and then there was no time to tell anybody
            if job.state is not State.QUEUED:
                self._start(job, self._take_up(job))
            elif job.cancelled:
                job.call_off()  # that was accepted, and then there was no time to do it
                self.after(job)
        for run in self.runs.values():
            if not self.bus.sequence(Subject.EVACUATION, run.id):
                self.announce_run(run)
            if run.closing is not None:
                self.stop_jobs(run)
        await self._sort_out_strays()
        for saved in await self.journal_writer.journal.unfinished(leftovers.KIND):
            with self._left_out("leftover", saved):
                self.leftovers.take_over(saved)
        await self._recount()
        await self._learn()
        self.planner.wake()

    async def _learn(self) -> None:
        for saved in reversed(await self.journal_writer.journal.page("migration", limit=_PREPARED_BEFORE)):
            with self._left_out("migration", saved):
                if (seconds := saved.get("preparation_seconds")) is not None:
                    self.preparations.note(str(saved["destination"]), float(seconds))

    async def _read_journal(self) -> list[JournalledSession]:
        """What has not ended; a row that cannot be read is left out."""
        for saved in await self.journal_writer.journal.unfinished("host"):
            with self._left_out("host", saved):
                if self.inventory.host(saved["id"]):
                    self.inventory.set_state(saved["id"], HostState(saved["state"]))
        left: list[JournalledSession] = []
        for saved in await self.journal_writer.journal.unfinished("migration"):
            with self._left_out("migration", saved):
                left.append(JournalledSession.from_journal(saved, services=self.means, **self._callbacks()))
        for saved in await self.journal_writer.journal.unfinished("evacuation"):
            with self._left_out("evacuation", saved):
                run = evacuation_documents.from_journal(saved)
                self.runs[run.id] = run
        return left

    @contextmanager
    def _left_out(self, kind: str, saved: Mapping[str, Any]) -> Iterator[None]:
        """A row that cannot be read is left out; a record of its steps is found all the same, and is held."""
        try:
            yield
        except UNREADABLE as error:
            say_unreadable(self.unreadable, kind, str(saved.get("id", "")), error)

    async def _sort_out_strays(self) -> None:
        held, self.left_records = await stray_records.sort_out(
            self.means.records.strays(self.jobs),
            journal=self.journal_writer.journal,
            services=self.means,
            callbacks=self._callbacks(),
        )
        for job in held:
            self._log.warning("record without its journal", migration=job.id, guest=job.guest.key)
            self.jobs[job.id] = job
            self._announce_job(job)
            self._start(job, take_over.look_at_orphan(job))

    def _is_up(self, name: str) -> bool:
        host = self.inventory.host(name)
        return host is not None and host.up

    def _is_under_way(self, migration: str) -> bool:
        job = self.jobs.get(migration)
        return job is not None and not job.ended

    async def _recount(self) -> None:
        """What an evacuation's entries say of migrations that ended while nobody wrote it down."""
        for run in self.runs.values():
            for key, entry in run.entries.items():
                if entry.standing is not GuestStanding.MIGRATING or entry.migration in self.jobs:
                    continue
                saved = await self.journal_writer.journal.find("migration", entry.migration or "")
                state = State(saved["state"]) if saved else State.FAILED
                error = (saved or {}).get("error") or "it was not begun"
                run.ended_one(key, state, error, refused=False, now=self.planner.clock())
                self.announce_run(run)

    async def run(self) -> None:
        """Look at hosts, plan, and journal, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, work in {
                "journal": self.journal_writer.run,
                "inventory": self.inventory.run,
                "planner": self.planner.run,
                "leftovers": self.leftovers.run,
                "sweeper": self.sweeper.run,
                "held migrations": self.held.run,
            }.items():
                group.create_task(keep_going(name, work), name=name)

    async def stop(self, *, drain: bool = False, timeout: float = 60.0) -> bool:
        """Let go: what is past the guest's STOP is finished, the rest parked; with `drain` all is finished.

        True when nothing is under way any more.
        """
        self._stopping = True
        for job in self.jobs.values():
            # With drain too: nobody is given a turn any more, so whoever still waits for one would wait for ever.
            if not drain or job.started_at is None:
                job.park()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=None if drain else timeout)
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5.0)
        for task in self._measuring:
            task.cancel()
        await self.journal_writer.flush(5.0)
        return not left

    # --- what the planner uses too ------------------------------------------------------------------------------------

    def policy_of(self, guest: Guest, name: str | None = None) -> Policy:
        """The one asked for, else the guest's, else the site's.

        :raise UsageError: there is none of that name.
        """
        return self.rules.policy(name or guest.policy or self.rules.default_policy)

    async def open_source(self, guest: Guest) -> SourceQemu:
        """Its QEMU; see :meth:`migrator.ports.Site.open`."""
        return await self.inventory.site.open(guest.host, guest.socket, role="source")

    def fleet(self, *, without: str = "") -> Fleet:
        """The hosts, with those on their way counted; those that are emptied, and `without`, take nobody."""
        leaving = {run.host for run in self.runs.values() if not run.ended and run.kind == "evacuate"}
        return Fleet(
            hosts=self.inventory.hosts(),
            guests=self.inventory.guests(),
            reserved={
                job.guest.key: job.target
                for job in (*self._coming.values(), *self.jobs.values())
                if not job.ended
            },
            leaving=leaving | {without} - {""},
        )

    def make_job(
        self,
        guest: Guest,
        target: str,
        policy: Policy,
        *,
        accept: Sequence[str] = (),
        run: str | None = None,
        by: str = "",
        key: str = "",
        trace: TraceContext | None = None,
        announce: bool = True,
    ) -> JournalledSession:
        """A new one; nothing is begun."""
        return JournalledSession(
            identifier=new_id(),
            guest=guest,
            target=target,
            policy=policy,
            services=self.means,
            accepted=tuple(dict.fromkeys((*accept, *guest.accept))),
            evacuation=run,
            requested_by=by,
            key=key,
            trace=trace,
            **(self._callbacks() if announce else {}),
        )

    def add(self, job: JournalledSession) -> None:
        """It is journalled: now it may be begun."""
        self.jobs[job.id] = job
        self._announce_job(job)
        self.planner.wake()

    async def journal_job(
        self, job: JournalledSession, run: Evacuation | None = None, *, reason: str = ""
    ) -> None:
        """Intent first: once it is written the engine has it, and its evacuation knows of it.

        :param reason: why it goes to its target.
        :raise JournalError: it is not written, and nothing is begun.
        """
        key = job.guest.key

        def begun() -> None:
            if run is not None:
                run.begun(key, job.id, job.target, reason)
            self.add(job)

        documents: list[tuple[str, DocumentToSave]] = [("migration", job.journalled)]
        if run is not None:
            documents.append(
                (
                    "evacuation",
                    lambda: evacuation_documents.journalled(run.as_if_begun(key, job.id, job.target, reason)),
                )
            )
        self._coming[job.id] = job
        try:
            await self.journal_writer.commit(*documents, then=begun)
        finally:
            del self._coming[job.id]

    def begin_job(self, job: JournalledSession, way: Any) -> None:
        """Do this with it, in the one task that it has."""
        self._start(job, way)

    def drive_job(self, job: JournalledSession) -> None:
        """Drive it in a task of its own; one that the service stops before stays for the next controller."""
        if not (self._stopping or job.ended or self.busy(job)):
            self._start(job, job.drive())

    def cancel_job(self, job: JournalledSession) -> bool:
        """The guest shall stay where it is; one that nobody drives yet ends at once. False: it is too late."""
        if not job.cancel():
            return False
        if job.state is State.QUEUED and not self.busy(job):
            job.call_off()
            self.after(job)
        else:
            self.journal_writer.schedule_latest("migration", job.id, job.journalled)
        self.planner.wake()
        return True

    def driving(self) -> list[asyncio.Task[None]]:
        """The tasks that drive migrations now."""
        return list(self._tasks.values())

    def task(self, job: JournalledSession) -> asyncio.Task[None] | None:
        """The one that drives it, or does something else with it, now."""
        return self._tasks.get(job.id)

    def busy(self, job: JournalledSession) -> bool:
        """Something drives it now."""
        return job.id in self._tasks

    @property
    def stopping(self) -> bool:
        """Nothing new is begun."""
        return self._stopping

    def stop_jobs(self, run: Evacuation) -> None:
        """Cancel its migrations as far as that is safe."""
        for entry in run.under_way:
            job = self.jobs.get(entry.migration or "")
            if job is not None:
                self.cancel_job(job)

    def set_host(self, name: str, state: HostState) -> None:
        """What it may be used for; announced, and journalled soon."""
        self.inventory.set_state(name, state)
        self.journal_writer.schedule("host", host_saved(name, state))
        self.announce_host(name)

    def inventory_changed(self) -> None:
        """Hosts or guests are different from before."""
        self.planner.wake()
        self.leftovers.wake()
        self.held.wake()
        for host in self.inventory.hosts():
            guests = self.inventory.guests(host.name)
            trouble = sorted(
                (guest.key, guest.obstacle_code) for guest in guests if guest.obstacle_code in _LOUD
            )
            shown = (host.state, host.up, host.error, len(guests), *trouble)
            if self._shown_hosts.get(host.name) != shown:
                self._shown_hosts[host.name] = shown
                self.announce_host(host.name)

    def announce_host(self, name: str) -> None:
        """Tell everyone what it is like."""
        host = self.inventory.host(name)
        if host is not None:
            self.bus.publish(HostStateChanged(host=host_document(self, host)))

    def end_run(self, run: Evacuation, state: EvacuationState) -> None:
        """An evacuation has ended."""
        run.end(state, datetime.now(UTC))
        match state:
            case EvacuationState.COMPLETED if run.kind == "evacuate":
                self.set_host(run.host, HostState.MAINTENANCE)
            case EvacuationState.CANCELLED:
                self.set_host(run.host, HostState.ACTIVE)
        self.announce_run(run)

    def announce_run(self, run: Evacuation) -> None:
        """Journal and tell how far it is."""
        self.journal_writer.schedule_latest(
            "evacuation", run.id, lambda: evacuation_documents.journalled(run)
        )
        self.bus.publish(EvacuationStateChanged(evacuation=evacuation_documents.evacuation_document(run)))

    def begin_run(self, run: Evacuation) -> None:
        """It is journalled: now its guests are measured, and go."""
        unknown = [
            entry.guest
            for entry in run.entries.values()
            if entry.wants_place and entry.guest.dirty_rate_bytes_per_second is None
        ]
        if unknown:
            run.not_before = self.planner.clock() + _MEASURED_SECONDS
            task = asyncio.create_task(self._measure(run, unknown), name=f"measure guests of {run.host}")
            self._measuring.add(task)
            task.add_done_callback(self._measuring.discard)
        self.runs[run.id] = run
        self.announce_run(run)
        self.planner.wake()

    async def _measure(self, run: Evacuation, guests: list[Guest]) -> None:
        await self.preview.probe(guests)
        run.not_before = 0.0
        self.planner.wake()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _callbacks(self) -> dict[str, Any]:
        return {
            "on_state": self._announce_job,
            "on_progress": self._progress,
            "on_decision": self._decision,
            "on_ready": self._ready,
        }

    def _ready(self, job: JournalledSession) -> None:
        self.preparations.note(job.target, job.preparation_seconds or 0.0)
        self.planner.wake()

    def _start(self, job: JournalledSession, way: Any) -> None:
        with logs.about(**({"trace_id": job.trace.trace_id} if job.trace else {})):
            task = asyncio.create_task(way, name=f"migration {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda done: self._done(job, done))

    def _done(self, job: JournalledSession, task: asyncio.Task[None]) -> None:
        self._tasks.pop(job.id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            fault = error if isinstance(error, MigratorError) else told(f"migration {job.id}", error)
            self._log.warning("migration broke off", migration=job.id, error=str(fault))
            job.break_off(str(fault))
        self.after(job)

    async def _take_up(self, job: JournalledSession) -> None:
        await take_over.take_up(job)

    def after(self, job: JournalledSession) -> None:
        """It has ended, is held, or waits again."""
        if job.ended and job.state is State.COMPLETED:
            self.inventory.moved(job.guest, job.target, job.arrived_socket, job.arrived_pid)
        elif job.ended and job.state is State.GUEST_ENDED:
            self.inventory.gone(job.guest, job.guest.host, job.target)
        run = self.runs.get(job.evacuation or "")
        if run is not None and not run.ended and (job.ended or job.state is State.HELD):
            entry = run.entries.get(job.guest.key)
            if entry is not None and entry.migration == job.id:
                before = (entry.standing, entry.reason)
                run.ended_one(
                    job.guest.key,
                    job.state,
                    job.result.error or "",
                    refused=job.refused and not job.may_pass,
                    awaited=job.unreachable,
                    everywhere=job.refused_everywhere,
                    exceeded=job.result.ceiling_exceeded,
                    now=self.planner.clock(),
                    attempts=self.rules.limits.attempts,
                    first_pause=self.rules.limits.first_pause,
                )
                if (entry.standing, entry.reason) != before:  # held, tried again, and held as before
                    self.announce_run(run)
        if job.state is State.HELD:
            for host in (job.guest.host, job.target):
                self.inventory.notice(
                    host
                )  # one of them may not answer, which is to be known of the host too
        if job.ended and job.left_over:
            self.leftovers.add(job.target, job.id)
        if job.ended and job.source_left_over:
            self.leftovers.add_source(job.guest, job.id)
        self.planner.wake()

    def _announce_job(self, job: JournalledSession) -> None:
        self.journal_writer.schedule_latest("migration", job.id, job.journalled)
        self.bus.publish(MigrationStateChanged(migration=job.document(decisions=False)))
        run = self.runs.get(job.evacuation or "")
        if run is not None and not run.ended and job.state is not State.HELD and not job.ended:
            entry = run.entries.get(job.guest.key)
            if entry is not None and entry.migration == job.id and run.goes_on(job.guest.key):
                self.announce_run(run)
        self.planner.wake()

    def _progress(self, job: JournalledSession) -> None:
        # A migration is looked at more often than anybody wants to read of it, and each word of it has its price.
        now = asyncio.get_running_loop().time()
        if now - self._told_at.get(job.id, -math.inf) < _PROGRESS_SECONDS:
            return
        self._told_at[job.id] = now
        self.bus.publish(MigrationProgressed(migration=job.document(decisions=False)))

    def _decision(self, job: JournalledSession, decision: Decision) -> None:
        self.journal_writer.schedule_latest(
            "migration", job.id, job.journalled
        )  # another controller shall know it
        self.bus.publish(DecisionTaken(migration=job.id, decision=DecisionDocument(**asdict(decision))))

    def forget(self) -> None:
        """What ended a while ago leaves memory; the journal has it."""
        long_ago = datetime.now(UTC) - timedelta(seconds=_REMEMBERED_SECONDS)
        going_on = {run.id for run in self.runs.values() if not run.ended}
        for job in list(self.jobs.values()):
            if job.ended_at is not None and job.ended_at < long_ago and job.evacuation not in going_on:
                del self.jobs[job.id]
                self._told_at.pop(job.id, None)
                self.bus.forget(Subject.MIGRATION, job.id)
        for run in list(self.runs.values()):
            if run.ended_at is not None and run.ended_at < long_ago:
                del self.runs[run.id]
                self.bus.forget(Subject.EVACUATION, run.id)


def host_saved(name: str, state: HostState) -> dict[str, Any]:
    """As the journal keeps it."""
    return {"id": name, "state": str(state), "ended_at": None}


def new_id() -> str:
    """For a migration or an evacuation."""
    return secrets.token_hex(6)


def host_document(engine: Engine, host: Host) -> HostDocument:
    """As it is now."""
    guests = engine.inventory.guests(host.name)
    moving = {job.guest.key for job in engine.jobs.values() if not job.ended}
    return HostDocument(
        host=host.name,
        state=host.state,
        up=host.up,
        error=host.error,
        address=host.address,
        guests=len(guests),
        guests_unmonitored=sum(not guest.monitored for guest in guests),
        guests_undriven=sum(
            guest.obstacle_code == unfinished.UNFINISHED for guest in guests if guest.key not in moving
        ),
        guests_duplicate=sorted({guest.uuid for guest in guests} & engine.inventory.doubled().keys()),
        memory_total_bytes=host.memory_bytes or host.facts.memory_total_bytes,
        memory_free_bytes=engine.inventory.memory_free(host),
        cpus=host.facts.cpus,
        kvm=host.facts.kvm,
        link_bytes_per_second=host.link_bytes_per_second,
        labels=dict(host.labels),
        qemus=dict(host.facts.qemus),
        looked_at=engine.inventory.looked_at(host.name),
    )
