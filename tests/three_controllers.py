"""Three controllers of one site in simulated time, and what may go wrong with them at any await.

Each is the real engine behind the real lease, claims and monitor clients, in a process of its own that may be frozen,
killed, and cut off from the store or from hosts. What has to hold is looked at after each step.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

from migrator import faults
from migrator.api.commands import Role
from migrator.api.events import Subject
from migrator.api.replies import Reply
from migrator.api.requests import Caller, CommandKey, Envelope
from migrator.core.migration.drivers import Driver
from migrator.core.policy import builtin
from migrator.engine.assigned_migrations import AssignedMigrations
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.engine.controller import Engine, Sharing
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.rules import Rules
from migrator.errors import LeaseLost, MigratorError
from migrator.faults import keep_going
from migrator.ports import Lease
from migrator.ports.assignments import Assignment, AvailableDriver, assignment_number
from migrator.ports.controllers import ControllerInfo
from migrator.store.presence import Drivers, Heartbeat
from migrator.store.sole_use import SoleUse
from migrator.testing.endpoint_view import EndpointView
from migrator.testing.journal_view import JournalView
from migrator.testing.shared_site import SharedSite
from migrator.testing.shared_store import PLACE, SharedStore
from migrator.testing.site_view import SiteView
from migrator.testing.stepped_loop import SimulatedProcess, SteppedLoop
from migrator.testing.wire import Cut, Wire, elsewhere
from migrator.testing.workload import MIB, steady

OPERATOR = Caller(user="unix:0", role=Role.OPERATOR, interface="http")
NAMES = ("one", "two", "three")
LEASE_SECONDS = 6.0
#: Everything has come to its end so long after the last misfortune.
WITHIN_SECONDS = 400.0
_RESTART_SECONDS = 2.0
#: A command that nobody has answered for so long never will be.
_NOBODY_SECONDS = 2 * WITHIN_SECONDS
_ASK_SECONDS = 8.0


class Violated(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, kw_only=True)
class Misfortune:
    """Something that befalls a controller, or all of them."""

    #: ``freeze``, ``kill``, ``no store``, ``no hosts``, ``no host``, ``alone`` (neither), ``outage`` (of the database).
    what: str
    #: At this step of the controllers, or at the command of a QEMU that is carried out as the so many-th.
    step: int | None = None
    command: int | None = None
    #: ... or so many seconds later.
    later: float = 0.0
    #: Who: the one that acts, or another by its place.
    who: int | None = None
    #: ... or one that drives something for the one that acts, if there is one.
    driver: bool = False
    seconds: float = 1.0
    how: Cut = "silent"


@dataclass(kw_only=True)
class Weakness:
    """What a test of tests leaves out."""

    #: The journal takes what is written under a lease that is over.
    no_fencing: bool = False
    #: A controller whose lease is over leaves nothing to others.
    no_suspension: bool = False
    #: ... and believes that its lease holds.
    acts_on: bool = False
    #: A driver believes that its lease holds.
    drives_on: bool = False
    #: The journal takes what a driver writes after its assignment is over.
    no_driver_fencing: bool = False


class Controller:
    """One controller, started again whenever it has died."""

    def __init__(self, world: ThreeControllers, name: str) -> None:
        self.world, self.name = world, name
        self.lives = 0
        self.process: SimulatedProcess
        self.wire: Wire
        self.dispatcher: Dispatcher | None = None
        self.engine: Engine | None = None
        self.sole_use: SoleUse | None = None
        self.assigned: AssignedMigrations | None = None

    @property
    def client(self) -> str:
        """Return the name of its present process."""
        return f"{self.name}#{self.lives}"

    def start(self) -> None:
        """Begin its next life."""
        self.lives += 1
        cut = dict(self.wire.cut) if self.lives > 1 else {}
        self.dispatcher = self.engine = self.sole_use = self.assigned = None
        self.process = SimulatedProcess(self.world.loop, self.client)
        self.world.processes.append(self.process)
        self.wire = Wire(latency=self.world.latency)
        self.wire.cut |= cut
        self.world.wires.append(self.wire)
        self.process.start(self._live(self.lives))

    async def _live(self, life: int) -> None:
        with suppress(MigratorError, TimeoutError):
            await self._serve()
        if life == self.lives:
            self.world.kill(self)  # it could not even begin

    async def _serve(self) -> None:
        world = self.world
        journal: Any = JournalView(world.store, self.wire)
        info = ControllerInfo(name=self.name, instance=self.name, version="1", hosts=tuple(world.site.hosts))
        heartbeat = Heartbeat(journal, info=info, seconds=LEASE_SECONDS)
        # Its process is killed one day: it never leaves in order.
        await AsyncExitStack().enter_async_context(heartbeat)
        site = SiteView(
            world.site,
            self.wire,
            client=self.client,
            name=self.name,
            live=heartbeat.live,
            live_now=heartbeat.live_now,
            last_tokens=heartbeat.last_tokens,
            read=journal.metas,
            keep=journal.keep_meta,
            runs=self.process.may_run if world.guarded else None,
        )
        self.assigned = self._assigned(journal, site, heartbeat)
        async with asyncio.TaskGroup() as group:
            work = keep_going("assigned migrations", self.assigned.run)
            group.create_task(work, name="assigned migrations")
            await self._plan(journal, site, heartbeat)

    def _assigned(self, journal: Any, site: SiteView, heartbeat: Heartbeat) -> AssignedMigrations:
        async def keep(session: JournalledSession) -> None:
            raise RuntimeError(session.id)

        def mark(assignment: Assignment) -> Driver:
            token = f"{self.client}-{assignment.number}"
            return Driver(token=token, controller=assignment.controller, who=token, lease=assignment.number)

        own: Any = _NeverLapses(heartbeat) if self.world.weakness.drives_on else heartbeat
        return AssignedMigrations(
            journal=journal,
            own=own,
            services=SessionServices(
                site=site,
                records=journal.steps,
                keep=keep,
                accept=lambda findings, codes: findings,
                controller=self.name,
            ),
            site=site.driven_by,
            driver=mark,
        )

    async def _plan(self, journal: Any, site: SiteView, heartbeat: Heartbeat) -> None:
        world = self.world
        sole_use = await SoleUse.begin(
            journal,
            owner=self.name,
            seconds=LEASE_SECONDS,
            stop=_never,
            standing_by=lambda: None,
            may=heartbeat.holds,
        )
        assert sole_use is not None
        self.sole_use = sole_use
        if world.weakness.acts_on:
            _never_ends(journal)
        holds = (lambda: True) if world.weakness.acts_on else sole_use.holds
        counter = itertools.count(1)
        number = assignment_number(sole_use.token)
        driver = Driver(token=self.client, controller=sole_use.controller, who=self.client, lease=number)
        site.act_as(driver, holds)
        heartbeat.describe(role="acting")
        if before := sole_use.taken_from:
            heartbeat.note_gone(before, heartbeat.live().get(before, 0))
        last, sequences = await journal.positions()
        bus = EventBus(
            last_event_id=last,
            sequences={(Subject(kind), name): number for (kind, name), number in sequences.items()},
            numbered_by_journal=True,
        )
        journal_writer = JournalWriter(journal)

        async def keep(session: JournalledSession) -> None:
            await journal_writer.commit(("migration", session.journalled))

        inventory = Inventory([host.configured() for host in world.site.hosts.values()], site=site)
        self.engine = engine = Engine(
            inventory=inventory,
            services=SessionServices(
                site=site,
                records=journal.steps,
                keep=keep,
                accept=lambda findings, codes: findings,
                controller=self.name,
            ),
            journal_writer=journal_writer,
            bus=bus,
            rules=Rules(policy=builtin),
            sharing=Sharing(
                journal=journal,
                site=site,
                pool=Drivers(heartbeat) if world.spread else _NoDrivers(heartbeat),
                controller=sole_use.controller,
                number=lambda: assignment_number(sole_use.token, next(counter)),
                on_takeover=self.world.count_takeover,
            ),
        )
        inventory.on_change(engine.inventory_changed)
        await engine.recover()
        self.dispatcher = Dispatcher(controller=engine.handlers, log=journal)
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_going("engine", engine.run), name="engine")
            group.create_task(keep_going("journal lease", self._keep_lease), name="journal lease")
            if not (world.weakness.acts_on or world.weakness.no_suspension):
                watch = functools.partial(sole_use.watch, lapsed=engine.suspend, regained=engine.resume)
                group.create_task(keep_going("lease watch", watch), name="lease watch")
            group.create_task(keep_going("look", inventory.look_at_all, again=False), name="first look")

    async def _keep_lease(self) -> None:
        assert self.sole_use is not None
        try:
            await self.sole_use.run()
        except LeaseLost:
            if not self.world.weakness.acts_on:
                self.world.kill(self)
            await asyncio.Event().wait()


class _NoDrivers(Drivers):
    """Nobody is there to drive anything."""

    def available(self) -> list[AvailableDriver]:
        return []


class _NeverLapses:
    """A driver that believes that its lease holds, whatever becomes of it."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self.name, self.note_gone = heartbeat.name, heartbeat.note_gone
        self._first: Lease | None = None

    @property
    def lease(self) -> Lease | None:
        self._first = self._first or self._heartbeat.lease
        return self._first and replace(self._first, until=float("inf"))


async def _never() -> None:
    await asyncio.Event().wait()


def _never_ends(journal: JournalView) -> None:
    """Have the controller believe that its lease holds, whatever becomes of it."""
    journal.steps.why_not = lambda migration: ""  # type: ignore[method-assign]


@dataclass(kw_only=True)
class ThreeControllers:
    """Controllers, site and store.

    :param seed: of everything that is left to chance.
    """

    seed: int
    guests: int = 3
    misfortunes: list[Misfortune] = field(default_factory=list)
    weakness: Weakness = field(default_factory=Weakness)
    #: The one that acts gives migrations to the others.
    spread: bool = True
    #: Hosts have guards, which take the place of a controller that is gone.
    guarded: bool = True

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.loop = SteppedLoop()
        self.loop.before_step, self.loop.after_step = self._before_step, self._after_step
        self.processes: list[SimulatedProcess] = []
        self.wires: list[Wire] = []
        self.happened: list[str] = []
        self.violations: list[str] = []
        self.commands = self.takeovers = 0
        #: Commands that a driver sent which does not plan.
        self.commands_of_drivers = 0
        self.keys: dict[str, Reply] = {}
        self._pending = [each for each in self.misfortunes if each.step is not None]
        self._at_command = [each for each in self.misfortunes if each.command is not None]
        self._tokens: dict[tuple[str, str], int] = {}
        self._healing = 0

    def latency(self) -> float:
        """Return the seconds that something takes on its way."""
        return self.chance.uniform(0.0005, 0.004)

    def run(self, scenario: Callable[[ThreeControllers], Any]) -> None:
        """Let it happen, to its end.

        :raise Violated: an invariant does not hold.
        """
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._whole(scenario))
        finally:
            for wire in self.wires:
                wire.over = True
            for process in self.processes:
                process.bury()
            self.loop.before_step = self.loop.after_step = lambda process: None
            self.loop.close()
            asyncio.set_event_loop(None)

    async def _whole(self, scenario: Callable[[ThreeControllers], Any]) -> None:
        self.store = SharedStore(self.loop.time)
        self.store.fenced = not self.weakness.no_fencing
        self.store.fences_drivers = not self.weakness.no_driver_fencing
        self.store.written = self._written
        self.store.taken_late = self._taken_late
        self.site = SharedSite()
        self.site.on_command = self._on_command
        for name in ("a", "b", "c"):
            self.site.add_host(name, link=30 * MIB)
        for number in range(self.guests):
            self.site.add_guest(
                f"vm-{number}", host="a", workload=steady(128 * MIB, 4 * MIB), memory_bytes=256 * MIB
            )
        self.controllers = [Controller(self, name) for name in NAMES]
        faults_before, faults.on_fault = faults.on_fault, self._fault
        try:
            for controller in self.controllers:
                controller.start()
            self.broken: asyncio.Future[None] = self.loop.create_future()
            whole = elsewhere(self._to_the_end(scenario), "scenario")
            await asyncio.wait({whole, self.broken}, return_when=asyncio.FIRST_COMPLETED)
            if self.violations:
                raise self.violated(self.violations[0])
            whole.result()
        finally:
            faults.on_fault = faults_before

    async def _to_the_end(self, scenario: Callable[[ThreeControllers], Any]) -> None:
        await scenario(self)
        await self.quiet()
        await self._judge()

    # --- what an operator does ---------------------------------------------------------------------------------------

    async def ask(self, verb: str, key: str, **body: Any) -> Reply:
        """Have a command carried out, whoever does it; it is asked again until it is answered.

        :raise TimeoutError: nobody answers for many minutes of the simulated clock.
        """
        envelope = Envelope(verb=verb, body=body, id=key, caller=OPERATOR)
        deadline = self.loop.time() + _NOBODY_SECONDS
        while True:
            if self.loop.time() > deadline:
                raise TimeoutError(f"nobody carries {verb} out")
            for controller in self.chance.sample(self.controllers, len(self.controllers)):
                dispatcher, process = controller.dispatcher, controller.process
                if dispatcher is None or process.dead:
                    continue
                task = process.start(dispatcher.execute(envelope), name=f"command {key}")
                await asyncio.wait({task}, timeout=_ASK_SECONDS)
                if not task.done() or task.cancelled() or task.exception() is not None:
                    continue
                reply = task.result()
                if reply.kind == "refused" and reply.code in ("unavailable", "busy"):
                    continue
                self.keys[key] = reply
                return reply
            await asyncio.sleep(0.5)

    # --- what befalls them -------------------------------------------------------------------------------------------

    def _before_step(self, process: SimulatedProcess) -> None:
        steps = self.loop.steps
        while self._pending and cast("int", self._pending[0].step) <= steps:
            self._befall(self._pending.pop(0))

    def _befall(self, misfortune: Misfortune) -> None:
        who = self._whom(misfortune.who, driver=misfortune.driver)
        self.happened.append(
            f"{self.loop.time():.3f} s: {misfortune.what} {who.name} for {misfortune.seconds:g} s, {misfortune.how}"
        )
        hosts = list(self.site.hosts)
        match misfortune.what:
            case "freeze":
                who.process.freeze()
                self._later(misfortune.seconds, who.process.thaw)
            case "kill":
                self.kill(who)
            case "outage":
                for controller in self.controllers:
                    self._cut(controller, [PLACE], misfortune)
            case "no store":
                self._cut(who, [PLACE], misfortune)
            case "no hosts":
                self._cut(who, hosts, misfortune)
            case "no host":
                self._cut(who, [self.chance.choice(hosts)], misfortune)
            case "alone":
                self._cut(who, [PLACE, *hosts], misfortune)
            case other:
                raise ValueError(other)

    def count_takeover(self) -> None:
        """Note that a migration was taken from a driver that is gone."""
        self.takeovers += 1

    def drivers(self) -> list[Controller]:
        """Return those that drive something for the one that acts."""
        return [
            each
            for each in self.controllers
            if each.assigned is not None and each.assigned.count and not each.process.dead
        ]

    def _whom(self, place: int | None, *, driver: bool = False) -> Controller:
        if driver and (drivers := self.drivers()):
            return drivers[0]
        acting = [each for each in self.controllers if each.sole_use is not None and not each.process.dead]
        if place is None and acting:
            return max(acting, key=lambda each: each.sole_use.token if each.sole_use else 0)
        return self.controllers[(place or 0) % len(self.controllers)]

    def _cut(self, controller: Controller, places: list[str], misfortune: Misfortune) -> None:
        for place in places:
            controller.wire.cut[place] = misfortune.how

        def heal() -> None:
            for place in places:
                controller.wire.heal(place)

        self._later(misfortune.seconds, heal)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._healing += 1

        async def wait() -> None:
            await asyncio.sleep(seconds)
            what()
            self._healing -= 1

        elsewhere(wait(), "it passes")

    def kill(self, controller: Controller) -> None:
        """End its process; it is started again after a while, and its connections end where its hosts hear of it."""
        if controller.process.dead:
            return
        controller.process.kill()
        self.store.signals.drop(controller.wire)
        client, cut = controller.client, dict(controller.wire.cut)

        async def after() -> None:
            await asyncio.sleep(0.005)
            for host in self.site.hosts:
                if host not in cut:
                    self.site.disconnect(host, client)
            await asyncio.sleep(_RESTART_SECONDS)
            controller.start()

        elsewhere(after(), "started again")

    # --- what has to hold --------------------------------------------------------------------------------------------

    def wrong(self, what: str) -> None:
        """Note that an invariant does not hold."""
        self.violations.append(f"{self.loop.time():.3f} s: {what}")
        if not self.broken.done():
            self.broken.set_result(None)

    def _fault(self) -> None:
        self.wrong("an error of our own")

    def _after_step(self, process: SimulatedProcess) -> None:
        for machine in self.site.machines.values():
            where = self.site.running_machine(machine)
            if len(where) > 1:
                self.wrong(f"{machine.name} runs on {where} after a step of {process.name}")
            if not self.site.exists(machine):
                self.wrong(f"{machine.name} is nowhere after a step of {process.name}")

    def _on_command(self, view: EndpointView, command: str, mark: str | None) -> None:
        self.commands += 1
        self.commands_of_drivers += "-" in view.site.driver.token
        sender, its = view.site.driver, None if mark is None else Driver.read(mark)
        if its is not None and its.token != sender.token:
            self.wrong(f"{command} of {sender.who} at {view.name}, which {its.who} has taken over")
        if its is None and command in ("migrate", "migrate-continue", "migrate-start-postcopy", "cont"):
            self.wrong(f"{command} of {sender.who} at {view.name}, which is not marked")
        for each in [each for each in self._at_command if each.command == self.commands]:
            self._at_command.remove(each)
            if each.later:
                self._later(each.later, functools.partial(self._befall, each))
            else:
                self._befall(each)

    def _written(
        self, lease: Lease | None, kind: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]
    ) -> None:
        key, token = (kind, after["id"]), lease.token if lease is not None else 0
        if token < self._tokens.get(key, 0):
            self.wrong(f"{kind} {after['id']} was written by a controller whose lease is over")
        self._tokens[key] = token
        if before is None:
            return
        if before.get("ended_at") and (after.get("ended_at"), after["state"]) != (
            before["ended_at"],
            before["state"],
        ):
            self.wrong(f"{kind} {after['id']} had ended {before['state']}, and is {after['state']}")
        was, now = before.get("_private") or {}, after.get("_private") or {}
        if now.get("attempt", 0) < was.get("attempt", 0) or (was.get("cancelled") and not now["cancelled"]):
            self.wrong(f"{kind} {after['id']} goes back")

    def _taken_late(self, lease: Lease) -> None:
        self.wrong(f"{lease.name} was written by {lease.owner}, whose assignment is over")

    async def quiet(self) -> None:
        """Wait until nothing is under way any more."""
        since = self.loop.time()
        while (left := await self._under_way()) or self._healing:
            if self._healing:
                since = self.loop.time()
            if self.loop.time() > since + WITHIN_SECONDS:
                raise self.violated(f"never ends: {left}")
            await asyncio.sleep(0.25)

    async def _under_way(self) -> list[str]:
        journal = self.store.journal
        found = [*await journal.unfinished("migration"), *await journal.unfinished("evacuation")]
        return [f"{each['id']} {each['state']} {each.get('error') or ''}" for each in found]

    async def _judge(self) -> None:
        if self.violations:
            raise self.violated(self.violations[0])
        for machine in self.site.machines.values():
            if len(where := self.site.running(machine.name)) != 1:
                self.wrong(f"{machine.name} runs on {where} in the end")
        journal = self.store.journal
        documents = [
            *await journal.page("migration", limit=999),
            *await journal.page("evacuation", limit=999),
        ]
        begun = [(document.get("_private") or {}).get("command") for document in documents]
        for key, reply in self.keys.items():
            whole = str(CommandKey(user=OPERATOR.user, id=key))
            if reply.verb in ("migrate", "evacuate") and begun.count(whole) != (reply.kind == "accepted"):
                self.wrong(f"the command {key} was carried out {begun.count(whole)} times")

    def violated(self, what: str) -> Violated:
        """Return what is wrong, with all that happened."""
        return Violated("\n".join((what, f"seed {self.seed}", *self.happened)))


# --- exploring -------------------------------------------------------------------------------------------------------

_WHAT = ("freeze", "freeze", "kill", "kill", "no store", "no hosts", "no host", "alone", "outage")
_SECONDS = (0.2, 1.0, 4.0, 7.0, 9.0, 15.0, 40.0)
#: Of a run that nothing befalls; a bit more, so that something may befall it while it recovers.
_STEPS, _COMMANDS = 6000, 60


def misfortunes(chance: random.Random) -> list[Misfortune]:
    """Return what befalls a run."""
    found = []
    for _ in range(chance.randint(1, 4)):
        at_command = chance.random() < 0.5
        found.append(
            Misfortune(
                what=chance.choice(_WHAT),
                step=None if at_command else chance.randrange(_STEPS),
                command=chance.randrange(1, _COMMANDS) if at_command else None,
                who=None if chance.random() < 0.75 else chance.randrange(len(NAMES)),
                driver=chance.random() < 0.5,
                seconds=chance.choice(_SECONDS) * chance.uniform(0.8, 1.2),
                how=chance.choice(("silent", "refused")),
            )
        )
    return sorted(found, key=lambda each: each.step or 0)


async def evacuation(world: ThreeControllers) -> None:
    """Empty a host; a migration comes and another goes meanwhile."""
    chance = world.chance
    if chance.random() < 0.5:
        policy = chance.choice(("default", "offline", "postcopy-first"))
        reply = await world.ask("migrate", "k-migrate", guest="vm-0", to="b", policy=policy)
        if chance.random() < 0.4 and reply.subject_id:
            await asyncio.sleep(chance.uniform(0.0, 3.0))
            await world.ask("cancel", "k-cancel", target=reply.subject_id)
    policy = chance.choice(("default", "offline", "postcopy-first"))
    await world.ask("evacuate", "k-evacuate", host="a", policy=policy)


async def emptying(world: ThreeControllers) -> None:
    """Empty a host, and nothing else."""
    await world.ask("evacuate", "k-evacuate", host="a")


def explore(seed: int, weakness: Weakness | None = None) -> ThreeControllers:
    """Let one run happen.

    :raise Violated: an invariant does not hold.
    """
    world = ThreeControllers(
        seed=seed, misfortunes=misfortunes(random.Random(seed)), weakness=weakness or Weakness()
    )
    world.run(evacuation)
    return world
