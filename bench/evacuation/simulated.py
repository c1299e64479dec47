"""A host is emptied by the engine itself, over simulated hosts, links and QEMUs."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.evacuation import peers
from bench.evacuation.guests import (
    LINK_BYTES_PER_SECOND,
    Guest,
    idle_guests,
    mixed_guests,
    needed_bytes,
    total_bytes,
)
from bench.evacuation.loop import SkippingLoop
from bench.evacuation.outcome import Moved, Outcome
from migrator.api.commands import Evacuate, Plan, Role
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import EvacuationStateChanged, Event, MigrationStateChanged
from migrator.api.plan_documents import PlanDocument
from migrator.api.requests import Caller
from migrator.core.model import Finding, MigrationStatus, Mode, State
from migrator.core.policy import Policy, PostcopyMode, Preference, builtin
from migrator.core.schedule.transfers import LinkRules
from migrator.engine.controller import Engine
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.rules import Rules
from migrator.ports import IncomingDestination, Record, StrayRecord
from migrator.testing.journal import MemoryJournal
from migrator.testing.simulated_qemu import SimulatedStream
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.simulator import Simulator

MIXES: Mapping[str, Callable[[int, int], list[Guest]]] = {"idle": idle_guests, "mixed": mixed_guests}
#: As oVirt and KubeVirt set guests by default, and our own.
POLICIES = {"precopy only": Policy(name="precopy", max_downtime_seconds=0.3), "default": builtin("default")}
POLICIES["in haste"] = POLICIES["default"].but(prefer=Preference.TIME)
_TARGETS = 4
_HOST = "leaving"
_CALLER = Caller(user="unix:0", role=Role.OPERATOR, interface="http")
#: Longer than any of them takes.
_HORIZON_SECONDS = 24 * 3600.0
#: An event of a QEMU is heard so late at most.
_TICK_SECONDS = 0.005
#: ... and where none is near, so many ticks are one.
_COARSE_TICKS, _NEAR_BYTES = 4, LINK_BYTES_PER_SECOND / 2


def run(mix: str, policy: str, count: int, seed: int, strategy: str) -> Outcome:
    """One evacuation; the same arguments, the same outcome, but for the time it took to compute."""
    peers.install(strategy)
    guests = MIXES[mix](count, seed)
    began = time.perf_counter()
    try:
        with asyncio.Runner(loop_factory=SkippingLoop) as runner:
            evacuation = runner.run(_evacuate(guests, POLICIES[policy]))
    finally:
        peers.install(peers.OURS)
    longest = max(guest.memory_bytes for guest in guests)
    allowed = POLICIES[policy]
    needed = sum(
        needed_bytes(
            guest,
            ceiling_seconds=allowed.max_downtime_seconds,
            postcopy=allowed.postcopy is PostcopyMode.ALLOW,
        )
        for guest in guests
    )
    return Outcome(
        mix=mix,
        policy=policy,
        count=count,
        seed=seed,
        strategy=strategy,
        makespan_seconds=evacuation.makespan_seconds,
        bound_seconds=max(total_bytes(guests), longest) / LINK_BYTES_PER_SECOND,
        needed_seconds=needed / LINK_BYTES_PER_SECOND,
        predicted_seconds=evacuation.predicted_seconds,
        guests=tuple(evacuation.moved),
        cpu_seconds=evacuation.cpu_seconds,
        wall_seconds=time.perf_counter() - began,
    )


@dataclass
class _Evacuation:
    makespan_seconds: float
    predicted_seconds: float
    cpu_seconds: float
    moved: list[Moved]


class _NoRecord:
    """Steps are kept nowhere: nobody will have to go on with this."""

    noted_at = None

    async def begin(self, *_: object) -> None:
        return

    async def note(self, *_: object) -> None:
        return

    def note_behind(self, *_: object) -> None:
        return

    async def end(self, *_: object) -> None:
        return


class _NoRecords:
    whole = True

    def create(self, _: str) -> Record:
        return _NoRecord()

    async def take_up(self, _: str) -> None:
        return

    async def outcome(self, _: str) -> None:
        return

    async def strays(self, _: object) -> list[StrayRecord]:
        return []

    def release(self, _: Record) -> None:
        return

    async def put_away(self, *_: object) -> None:
        return


@dataclass
class _Times:
    """Times of one guest, on the loop's clock."""

    preparing: float = 0.0
    started: float = 0.0
    admitted: float = 0.0
    ended: float = 0.0
    qemu: float = 0.0


class _Streams(dict[str, SimulatedStream]):
    """The streams of a site, and whether one has come since that was last asked: most of them have ended."""

    changed = True

    def __setitem__(self, socket: str, stream: SimulatedStream) -> None:
        super().__setitem__(socket, stream)
        self.changed = True


class _Site(SimulatedSite):
    """Keeps what QEMU itself took, and tells of what happens when it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, _Times] = {}
        self._going = _Streams()
        self.streams = self._going

    async def tick(self) -> None:
        """Let every stream go on in small steps, in turn, until cancelled."""
        going: list[SimulatedStream] = []
        for number in itertools.count():
            if self._going.changed or any(stream.simulator.ended for stream in going):
                self._going.changed = False
                going = [stream for stream in self.streams.values() if not stream.simulator.ended]
            for stream in going:
                if not stream.simulator.ended and (number % _COARSE_TICKS == 0 or _is_near(stream.simulator)):
                    stream.advance()
            await asyncio.sleep(_TICK_SECONDS)

    async def start_destination(
        self,
        guest: Any,
        source: Any,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> Any:
        waiting: IncomingDestination = await super().start_destination(
            guest, source, target, migration=migration, accepted=accepted, keep_backing=keep_backing
        )
        self.times[guest.key].started = asyncio.get_running_loop().time()
        self.times[guest.key].qemu += self.hosts[target].start_seconds
        return waiting

    async def clear(self, guest: Any) -> None:
        stream = self.streams.get(self.machines[guest.key].socket)
        if stream is not None:
            self.times[guest.key].qemu += stream.simulator.duration_seconds
        await super().clear(guest)


def _is_near(simulator: Simulator) -> bool:
    """Tell whether a migration may be at the switch soon, or is past it."""
    return simulator.status is not MigrationStatus.ACTIVE or simulator.memory.queued_bytes < _NEAR_BYTES


@dataclass
class _Watch:
    """Records the events of the bus with the loop's time."""

    site: _Site
    ends: dict[str, float] = field(default_factory=dict)

    def hear(self, event: Event) -> None:
        now = asyncio.get_running_loop().time()
        match event:
            case EvacuationStateChanged(evacuation=evacuation) if evacuation.ended_at is not None:
                self.ends[evacuation.id] = now
            case MigrationStateChanged(migration=migration):
                times = self.site.times.setdefault(migration.guest, _Times())
                if migration.state is State.PREPARING:
                    times.preparing, times.qemu = now, 0.0
                elif migration.ended_at is not None:
                    times.ended = now


async def _evacuate(guests: Sequence[Guest], policy: Policy) -> _Evacuation:
    site, journal, bus = _Site(), MemoryJournal(), EventBus()
    room = 2 * total_bytes(guests)
    for name in (_HOST, *(f"target-{number}" for number in range(_TARGETS))):
        site.add_host(name, link=LINK_BYTES_PER_SECOND, memory_bytes=room)
    for guest in guests:
        site.add_guest(guest.name, host=_HOST, workload=guest.workload, memory_bytes=guest.memory_bytes)
    journal_writer, watch = JournalWriter(journal), _Watch(site)
    bus.subscribe(watch.hear)

    async def keep(job: JournalledSession) -> None:
        site.times[job.guest.key].admitted = asyncio.get_running_loop().time()
        await journal_writer.commit(("migration", job.journalled))

    def accept(findings: Sequence[Finding], _: Sequence[str]) -> Sequence[Finding]:
        return findings

    inventory = Inventory([host.configured() for host in site.hosts.values()], site=site)
    engine = Engine(
        inventory=inventory,
        services=SessionServices(site=site, records=_NoRecords(), keep=keep, accept=accept),
        journal_writer=journal_writer,
        bus=bus,
        rules=Rules(policy=lambda name: policy, links=LinkRules(reserve_ratio=0.0)),
    )
    inventory.on_change(engine.inventory_changed)
    jobs = _Jobs(engine)
    await engine.recover()
    await inventory.look_at_all()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(engine.run(), name="engine"),
            group.create_task(site.tick(), name="QEMUs"),
        ]
        evacuation = await _asked(engine, jobs, watch)
        await engine.stop()
        for task in tasks:
            task.cancel()
    return evacuation


class _Jobs:
    """Every job the engine ever had: it forgets them."""

    def __init__(self, engine: Engine) -> None:
        self.all: list[JournalledSession] = []
        add = engine.registry.add

        def kept(session: JournalledSession) -> None:
            self.all.append(session)
            add(session)

        engine.registry.add = kept  # type: ignore[method-assign]

    def by_guest(self) -> dict[str, list[JournalledSession]]:
        """In the order in which they were begun."""
        found: dict[str, list[JournalledSession]] = {}
        for job in self.all:
            found.setdefault(job.guest.key, []).append(job)
        return found


async def _asked(engine: Engine, jobs: _Jobs, watch: _Watch) -> _Evacuation:
    handlers, loop = engine.handlers, asyncio.get_running_loop()
    plan = await handlers.carry_out(Plan(host=_HOST), _CALLER, key="")
    assert isinstance(plan, PlanDocument)
    simulating, began = _Simulating(), loop.time()
    with simulating:
        asked = await handlers.carry_out(Evacuate(host=_HOST), _CALLER, key="")
        assert isinstance(asked, EvacuationDocument)
        async with asyncio.timeout(_HORIZON_SECONDS):
            while asked.id not in watch.ends:
                await asyncio.sleep(0.1)
    return _Evacuation(
        makespan_seconds=watch.ends[asked.id] - began,
        predicted_seconds=plan.takes_p50_seconds or 0.0,
        cpu_seconds=simulating.others_seconds,
        moved=[_moved(tries, watch.site.times[key]) for key, tries in jobs.by_guest().items()],
    )


def _moved(tries: Sequence[JournalledSession], times: _Times) -> Moved:
    job = tries[-1]
    return Moved(
        name=job.guest.name,
        state=str(job.state),
        downtime_seconds=job.result.downtime_seconds,
        max_downtime_seconds=job.policy.max_downtime_seconds,
        max_throttle_ratio=max(one.result.max_throttle_ratio for one in tries),
        attempts=len(tries),
        postcopy=job.result.mode is Mode.POSTCOPY,
        total_seconds=times.ended - times.preparing - max(0.0, times.admitted - times.started),
        qemu_seconds=times.qemu,
    )


class _Simulating:
    """Computing time apart: the simulated QEMUs', and everybody else's."""

    def __init__(self) -> None:
        self.others_seconds = self._seconds = 0.0

    def __enter__(self) -> None:
        self._advance = advance = Simulator.advance_to
        self._began = time.process_time()

        def timed(simulator: Simulator, until: float) -> None:
            began = time.process_time()
            advance(simulator, until)
            self._seconds += time.process_time() - began

        Simulator.advance_to = timed  # type: ignore[method-assign,assignment]

    def __exit__(self, *error: object) -> None:
        Simulator.advance_to = self._advance  # type: ignore[method-assign]
        self.others_seconds = time.process_time() - self._began - self._seconds
