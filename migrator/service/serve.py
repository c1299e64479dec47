"""``migrator serve``: puts the parts together, runs them as one group of tasks, and lets go in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from migrator import __version__, faults, logs, tracing
from migrator import settings as configuration
from migrator.api.events import Subject
from migrator.core import findings as catalogue
from migrator.engine.commands.audit import audit
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.engine.commands.settlement import Settlement
from migrator.engine.controller import Engine, Sharing
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.look_pace import LookPace
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.rules import HostRules, Rules
from migrator.errors import LeaseLost
from migrator.faults import keep_going
from migrator.http import from_settings as http_settings
from migrator.http.admission import raise_descriptor_limit
from migrator.machine import this_driver
from migrator.metrics import Metrics, Probes
from migrator.mqtt import MqttConfig
from migrator.ports.assignments import assignment_number
from migrator.qemu import monitor
from migrator.replica.publisher import Publisher
from migrator.replica.requests import RequestServer
from migrator.service.driving import Driving, driving
from migrator.service.entrance_requests import handlers
from migrator.service.entrance_settings import EntranceSettings
from migrator.service.entrances import Entrances
from migrator.service.event_log import EventLogger
from migrator.service.garbage import GarbageCollection
from migrator.service.notify import notify, watchdog
from migrator.service.reload import reload_on_hup
from migrator.service.reports import Reporter
from migrator.service.shared_journal import Turn, wait_turn
from migrator.service.waiting_commands import WaitingCommandRunner
from migrator.service.waiting_upgrade import NotNeeded, open_journal
from migrator.settings import LiveSettings, Settings
from migrator.settings.models import SiteSettings
from migrator.site.from_settings import ConfiguredSite, make_site
from migrator.site.hooks import SiteHooks
from migrator.store import belonging
from migrator.store.experience import FileExperience
from migrator.store.housekeeping import keep_house
from migrator.store.journal import SqlJournal
from migrator.store.place import journal_place
from migrator.store.presence import Drivers, Heartbeat
from migrator.store.sole_use import SoleUse
from migrator.store.step_records import StepRecords, controller_id
from migrator.worker.client import Worker

#: A thread that computes lets the event loop go on after so long. The loop gives way at each of its calls to the
#: system, of which it makes thousands a second.
SWITCH_SECONDS = 0.0001
#: Among :data:`migrator.faults.complaints`.
_LEASE = "lease"


class Stop:
    """How the service was asked to end."""

    def __init__(self, *, drain: bool) -> None:
        self._asked = asyncio.Event()
        self.drain = drain

    def ask(self) -> None:
        """Once: finish what is past STOP and park the rest. Twice: do not wait for migrations to drain."""
        if self._asked.is_set():
            self.drain = False
        self._asked.set()

    async def wait(self) -> None:
        """Until asked."""
        await self._asked.wait()


async def serve(path: Path | None, *, drain: bool = False) -> None:
    """Run until SIGTERM or SIGINT.

    :param path: the configuration.
    :param drain: asked to stop, wait for every migration instead of parking it.
    :raise MigratorError: it cannot be started; says why.
    """
    settings = configuration.load(path)
    _log_as(settings.site)
    sys.setswitchinterval(SWITCH_SECONDS)
    raise_descriptor_limit()
    stop = Stop(drain=drain)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.ask)
    live = LiveSettings(settings, path)
    live.subscribe(lambda new: new.site, lambda site: lambda: _log_as(site))
    garbage = GarbageCollection()
    collecting = asyncio.create_task(keep_going("garbage", garbage.run), name="garbage")
    try:
        async with _running(live, stop, garbage) as engine:
            await stop.wait()
            notify("STOPPING=1")
            logs.logger().info("stopping", drain=stop.drain)
            await engine.stop(drain=stop.drain, timeout=live.settings.site.stop_timeout)
    except NotNeeded:
        logs.logger().info("stopped while it stood by")
    finally:
        collecting.cancel()
        await asyncio.wait({collecting})


def _log_as(site: SiteSettings) -> None:
    logs.configure(verbose=True, json=_json_lines(site), level=site.log_level)


def _json_lines(site: SiteSettings) -> bool:
    return site.log_format == "json" or (site.log_format == "auto" and not sys.stderr.isatty())


def _for_entrances(settings: Settings) -> EntranceSettings:
    return EntranceSettings(
        http=settings.http,
        mqtt=MqttConfig.of(settings) if settings.mqtt.host else None,
        store=settings.store,
        log_level=settings.site.log_level,
        json_log=_json_lines(settings.site),
        page_url=settings.site.page_url,
        runbook_url=settings.site.runbook_url,
    )


@asynccontextmanager
async def _running(live: LiveSettings, stop: Stop, garbage: GarbageCollection) -> AsyncIterator[Engine]:
    """Run it while the block lasts.

    :raise NotNeeded: it was asked to stop before its turn to act came.
    """
    settings = live.settings
    log = logs.logger(site=settings.site.name)
    async with (
        await open_journal(
            journal_place(settings.store),
            settings.http,
            stop=stop.wait,
            instance=settings.site.instance,
        ) as journal,
        contextlib.AsyncExitStack() as stack,
    ):
        directory = settings.store.path.parent
        turn = await _turn(stack, journal, live, stop, garbage) if settings.store.url else None
        settings = live.settings  # it may have been reloaded meanwhile
        sole_use = turn.sole_use if turn is not None else None
        site, sharing = (
            _own_site(stack, live)
            if turn is None
            else _shared_site(turn, journal, live, lambda: metrics.takeover("driver-gone"))
        )
        last, sequences = await journal.positions()
        bus = EventBus(
            last_event_id=last,
            sequences={(Subject(kind), name): number for (kind, name), number in sequences.items()},
            numbered_by_journal=journal.shared,
        )
        journal_writer = JournalWriter(journal)

        async def keep(job: JournalledSession) -> None:
            await journal_writer.commit(("migration", job.journalled))

        steps, doubt = settings.store.path.parent / "steps", ""
        if settings.store.url:
            pass  # the steps are in the journal itself
        elif doubt := (await belonging.marks(journal, steps)).doubt(steps):
            log.warning("journal and records do not belong together", what=doubt)
        else:
            await belonging.mark(journal, steps)
        inventory = Inventory(
            settings.inventory(),
            site=site,
            interval=settings.limits.refresh_interval,
            rules=settings.rules,
        )
        look_pace = LookPace()
        hooks = SiteHooks.following(live, site.connections)
        services = SessionServices(
            site=site,
            records=journal.steps if settings.store.url else StepRecords(steps, whole=not doubt),
            controller=settings.site.instance,
            samples=journal.samples,
            keep=keep,
            accept=catalogue.accept,
            recovery_seconds=lambda: live.settings.limits.stream_recovery,
            source_image_grace_seconds=lambda: live.settings.limits.source_image_grace,
            look_stretch=look_pace,
            hooks=hooks,
            roll_hooks=hooks,
            saved=site.saved,
            cold=site.cold,
        )
        worker = Worker()
        stack.push_async_callback(worker.close)
        engine = Engine(
            inventory=inventory,
            services=services,
            journal_writer=journal_writer,
            bus=bus,
            rules=Rules.of(settings),
            computing=worker,
            sharing=sharing,
            earlier_overheads=FileExperience(directory=directory).read,
        )
        inventory.on_change(engine.inventory_changed)
        garbage.moving.append(engine.count_under_way)
        garbage.switching.append(engine.is_switching)
        live.subscribe(Rules.of, lambda rules: lambda: setattr(engine, "rules", rules))
        live.subscribe(
            HostRules.of,
            lambda new: lambda: inventory.configure(new.hosts, rules=new.guests, interval=new.interval),
        )
        queries = engine.queries
        metrics = Metrics(
            queries=queries,
            version=__version__,
            probes=Probes(
                journal_complaint=lambda: journal.complaint,
                lease_held=sole_use.holds if sole_use is not None else lambda: True,
                look_stretch=look_pace,
            ),
        )
        journal.tell(on_write=metrics.journal_write, on_error=metrics.journal_error)
        faults.on_fault = metrics.fault
        monitor.on_command, monitor.on_error = metrics.qmp_command, metrics.qmp_error
        dispatcher = Dispatcher(
            controller=engine.handlers,
            log=journal,
            count=metrics.command,
            audit=functools.partial(audit, bus),
        )
        settlement = Settlement(
            bus=bus, journal=journal, dispatcher=dispatcher, elsewhere=("mqtt",) if settings.mqtt.host else ()
        )
        spans: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext()
        if (collector := tracing.collector(settings.traces)) is not None:
            spans = tracing.Tracing(
                queries=queries,
                collector=collector,
                site=settings.site.name,
                instance=settings.site.instance,
                version=__version__,
                counted=metrics.spans,
            )
        EventLogger(bus)
        await engine.recover()  # before anything else: somebody may stand still
        await stack.enter_async_context(metrics)
        await stack.enter_async_context(spans)
        publisher = Publisher(source=queries, events=bus)
        requests = handlers(
            commands=dispatcher,
            hosts=queries,
            sessions=journal.tokens,
            samples=journal.samples,
            meta=journal,
            metrics=metrics,
            publisher=publisher,
        )
        if turn is not None:
            listeners, entrances = turn.listeners, turn.entrances
            turn.lead(publisher, RequestServer(requests))
            turn.count_driven(engine.registry.busy_here)
            turn.give_way(engine.unread, stop.ask)
            if turn.sole_use.taken_from:
                metrics.takeover("planner-gone")
        else:
            listeners = http_settings.listeners(settings.http)
            await listeners.bind()
            entrances = Entrances(
                listeners=listeners,
                settings=_for_entrances(settings),
                report=Reporter(instance=settings.site.instance).message,
                publisher=publisher,
                requests=RequestServer(requests),
            )
            await entrances.begin()
        stack.push_async_callback(entrances.close)
        live.subscribe(_for_entrances, lambda new: lambda: entrances.configure(new))

        async def readiness() -> None:
            await entrances.wait_ready()
            log.info("ready", listening=listeners.addresses, hosts=len(settings.hosts), version=__version__)
            notify("READY=1")
            notify("STATUS=")
            await watchdog()

        async with asyncio.TaskGroup() as group:
            work: dict[str, Callable[[], Awaitable[None]]] = {
                "engine": engine.run,
                "housekeeping": lambda: keep_house(journal, lambda: live.settings.store),
                "settlement": settlement.run,
                "readiness": readiness,
                "reload": lambda: reload_on_hup(live),
            }
            if turn is None:
                work["samples"] = journal.samples.run
            if sole_use is not None:
                work["journal lease"] = functools.partial(_keep_journal, sole_use)
                work["lease watch"] = functools.partial(_watch_lease, sole_use, engine)
                runner = WaitingCommandRunner(journal, dispatcher, name=sole_use.lease.owner)
                work["commands of other controllers"] = runner.run
            once: dict[str, Callable[[], Awaitable[None]]] = {"first look": inventory.look_at_all}
            if doubt:
                once["marks"] = lambda: belonging.mark_later(journal, steps)
            # None of them ends the service by failing: it is begun anew.
            tasks = [group.create_task(keep_going(name, each), name=name) for name, each in work.items()]
            tasks += [
                group.create_task(keep_going(name, each, again=False), name=name)
                for name, each in once.items()
            ]
            try:
                yield engine
            finally:
                for task in tasks:
                    task.cancel()


async def _turn(
    stack: contextlib.AsyncExitStack,
    journal: SqlJournal,
    live: LiveSettings,
    stop: Stop,
    garbage: GarbageCollection,
) -> Turn:
    """Stand by until this controller's turn to act comes; SIGHUP is heeded meanwhile, too."""

    def drive(heartbeat: Heartbeat, metrics: Metrics) -> AbstractAsyncContextManager[Driving]:
        monitor.on_command, monitor.on_error = metrics.qmp_command, metrics.qmp_error
        return driving(live, journal, heartbeat, garbage, drain=lambda: stop.drain)

    reloading = asyncio.create_task(keep_going("reload", lambda: reload_on_hup(live)), name="reload")
    try:
        turn = await wait_turn(
            stack, journal, live.settings, _for_entrances(live.settings), stop=stop.wait, drive=drive
        )
    finally:
        reloading.cancel()
        await asyncio.wait({reloading})
    turn.entrances.configure(_for_entrances(live.settings))
    return turn


def _own_site(stack: contextlib.AsyncExitStack, live: LiveSettings) -> tuple[ConfiguredSite, None]:
    """Return the hosts for a controller that shares the journal with nobody."""
    settings = live.settings
    program = f"migrator serve, site {settings.site.name}"
    site = make_site(
        settings, driver=this_driver(program, controller=controller_id(settings.store.path.parent))
    )
    stack.push_async_callback(site.close)
    live.subscribe(lambda new: (new.hosts, new.limits), site.prepare)
    return site, None


def _shared_site(
    turn: Turn, journal: SqlJournal, live: LiveSettings, on_takeover: Callable[[], None]
) -> tuple[ConfiguredSite, Sharing]:
    """Return the hosts for the controller that plans, and what it takes to have others drive migrations."""
    site, sole_use, counter = turn.driving.site, turn.sole_use, itertools.count(1)
    program = f"migrator serve, site {live.settings.site.name}"
    number = assignment_number(sole_use.token)
    site.act_as(this_driver(program, controller=sole_use.controller, lease=number), sole_use.holds)
    if before := sole_use.taken_from:
        turn.heartbeat.note_gone(before, turn.heartbeat.live().get(before, 0))
    return site, Sharing(
        journal=journal,
        site=site,
        pool=Drivers(turn.heartbeat),
        controller=sole_use.controller,
        number=lambda: assignment_number(sole_use.token, next(counter)),
        on_takeover=on_takeover,
    )


async def _keep_journal(sole_use: SoleUse) -> None:
    """A service that another has taken the place of does nothing more: that one has taken its migrations up."""
    try:
        await sole_use.run()
    except LeaseLost as error:
        logs.logger().warning("this service ends here and now", error=str(error))
        os.kill(os.getpid(), signal.SIGKILL)


async def _watch_lease(sole_use: SoleUse, engine: Engine) -> None:
    """Leave everything to others while they may have the lease, and let ``/readyz`` say so."""

    def lapsed() -> None:
        faults.complaints[_LEASE] = (
            "it could not be renewed in time, another controller may act by now: see whether [store] url answers"
        )
        engine.suspend()

    def regained() -> None:
        faults.complaints.pop(_LEASE, None)
        engine.resume()

    await sole_use.watch(lapsed=lapsed, regained=regained)
