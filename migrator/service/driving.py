"""A controller among several drives what the planner gives it, whether it plans itself or stands by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from migrator.core import findings as catalogue
from migrator.core.migration.drivers import Driver
from migrator.engine.assigned_migrations import AssignedMigrations
from migrator.engine.look_pace import LookPace
from migrator.engine.migration.services import SessionServices
from migrator.faults import keep_going
from migrator.machine import this_driver
from migrator.ports.assignments import Assignment
from migrator.service.garbage import GarbageCollection
from migrator.settings import LiveSettings
from migrator.site.from_settings import ConfiguredSite, make_site
from migrator.site.hooks import SiteHooks
from migrator.site.monitor_clients import MonitorClients
from migrator.store.journal import SqlJournal
from migrator.store.presence import Heartbeat


@dataclass(frozen=True, kw_only=True)
class Driving:
    """The hosts as this controller reaches them, and what it drives there for the planner."""

    site: ConfiguredSite
    migrations: AssignedMigrations


@asynccontextmanager
async def driving(
    live: LiveSettings,
    journal: SqlJournal,
    heartbeat: Heartbeat,
    garbage: GarbageCollection,
    *,
    drain: Callable[[], bool],
) -> AsyncIterator[Driving]:
    """Drive what it is given while the block lasts, and let go of it in order then.

    :param drain: at the end, whether to finish every migration instead of parking it.
    """
    settings = live.settings
    site = make_site(
        settings,
        clients=MonitorClients(
            name=heartbeat.name,
            read=journal.metas,
            keep=journal.keep_meta,
            live=heartbeat.live,
            live_now=heartbeat.live_now,
            last_tokens=heartbeat.last_tokens,
        ),
    )
    live.subscribe(lambda new: (new.hosts, new.limits), site.prepare)
    program = f"migrator serve, site {settings.site.name}"
    own = this_driver(program, controller=heartbeat.name)

    def mark(assignment: Assignment) -> Driver:
        return Driver(
            token=f"{own.token}-{assignment.number}",
            controller=assignment.controller,
            who=own.who,
            process=own.process,
            lease=assignment.number,
        )

    async def keep(session: Any) -> None:
        raise RuntimeError(f"migration {session.id} has no assignment")

    migrations = AssignedMigrations(
        journal=journal,
        own=heartbeat,
        services=SessionServices(
            site=site,
            records=journal.steps,
            accept=catalogue.accept,
            keep=keep,
            controller=settings.site.instance,
            samples=journal.samples,
            recovery_seconds=lambda: live.settings.limits.stream_recovery,
            source_image_grace_seconds=lambda: live.settings.limits.source_image_grace,
            look_stretch=LookPace(),
            hooks=SiteHooks.following(live, site.connections),
            saved=site.saved,
            cold=site.cold,
        ),
        site=site.driven_by,
        driver=mark,
    )
    heartbeat.driven = lambda: migrations.count
    garbage.moving.append(lambda: migrations.count)
    garbage.switching.append(migrations.is_switching)
    tasks = [
        asyncio.create_task(keep_going(name, work), name=name)
        for name, work in {"assigned migrations": migrations.run, "samples": journal.samples.run}.items()
    ]
    try:
        yield Driving(site=site, migrations=migrations)
    finally:
        heartbeat.describe(role="stopping")
        await migrations.stop(drain=drain(), timeout=live.settings.site.stop_timeout)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await site.close()
