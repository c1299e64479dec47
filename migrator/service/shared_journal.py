"""A controller among several that share a journal: it stands by and answers, until its turn to act comes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

from migrator import __version__, faults, logs
from migrator.errors import JournalError
from migrator.http import from_settings as http_settings
from migrator.http.listeners import Listeners
from migrator.metrics import Metrics, Probes
from migrator.ports import Lease
from migrator.ports.controllers import ControllerInfo
from migrator.replica.publisher import Publisher
from migrator.replica.queries import ReplicaQueries
from migrator.replica.requests import RequestServer, SteeringRequests
from migrator.replica.state import ReplicaState
from migrator.service import differences
from migrator.service.driving import Driving
from migrator.service.entrance_settings import EntranceSettings
from migrator.service.entrances import Entrances
from migrator.service.notify import notify
from migrator.service.reports import Reporter
from migrator.service.waiting_upgrade import NotNeeded
from migrator.settings import Settings
from migrator.settings.models import HttpSettings
from migrator.store import schema
from migrator.store.journal import SqlJournal
from migrator.store.kept_token import KeptToken
from migrator.store.presence import Heartbeat, Presence
from migrator.store.sole_use import SoleUse
from migrator.store.step_records import controller_id


@dataclass(kw_only=True)
class Turn:
    """This controller's turn to act, and what it has had since before that."""

    sole_use: SoleUse
    heartbeat: Heartbeat
    listeners: Listeners
    #: They answer; they are told by this controller once it leads them.
    entrances: Entrances
    #: It drives what other planners gave it, too.
    driving: Driving
    #: Filled by :meth:`lead`.
    held: list[SoleUse]

    def count_driven(self, planned: Callable[[], int]) -> None:
        """Have it said how many migrations this controller drives: of its own, besides those it was given."""
        self.heartbeat.driven = lambda: self.driving.migrations.count + planned()

    def give_way(self, unread: Sequence[str], stop: Callable[[], None]) -> None:
        """Stop in order as soon as a controller of a newer version is there, where this one cannot read everything.

        :param unread: what it cannot read of the journal.
        """
        said: list[str] = []

        def look(_: Presence) -> None:
            if (newer := self.heartbeat.newer()) and not said:
                said.append(newer)
                logs.logger().warning("ends, so that a newer version acts", newer=newer, unread=list(unread))
                stop()

        if unread:
            self.heartbeat.subscribe(look)

    def lead(self, publisher: Publisher, requests: RequestServer) -> None:
        """From here on this controller answers as the one that acts."""
        self.held.append(self.sole_use)
        self.heartbeat.describe(role="acting")
        self.entrances.lead(publisher, requests)


async def wait_turn(
    stack: AsyncExitStack,
    journal: SqlJournal,
    settings: Settings,
    entrance_settings: EntranceSettings,
    *,
    stop: Callable[[], Awaitable[None]],
    drive: Callable[[Heartbeat, Metrics], AbstractAsyncContextManager[Driving]],
) -> Turn:
    """Stand by, answer, and drive what the planner gives, until this controller is the one that acts.

    What it begins, `stack` ends.

    :param stop: returns when nobody wants it any more.
    :param drive: drives what this controller is given.
    :raise NotNeeded: it was asked to stop first.
    :raise JournalError: the journal is in use for a site of another name.
    """
    name = controller_id(settings.store.path.parent)
    info = ControllerInfo(
        name=name,
        instance=settings.site.instance,
        version=__version__,
        url=_url(settings.http),
        hosts=tuple(sorted(host.name for host in settings.hosts)),
    )
    seconds = settings.controller.lease
    kept = KeptToken(settings.store.path.parent)
    heartbeat = Heartbeat(journal, info=info, seconds=seconds, kept=kept)
    held: list[SoleUse] = []

    def acts() -> Lease | None:
        return held[0].lease if held else None

    reporter = Reporter(instance=settings.site.instance, heartbeat=heartbeat, seconds=seconds, acts=acts)
    differences.watch(heartbeat)
    await stack.enter_async_context(heartbeat)
    await _check_site(journal, heartbeat, settings)
    listeners = http_settings.listeners(settings.http)
    await listeners.bind()
    metrics = await stack.enter_async_context(_own_metrics(journal))
    entrances = Entrances(
        listeners=listeners,
        settings=entrance_settings,
        report=reporter.message,
        requests=RequestServer({"metrics": functools.partial(_counts, metrics)}),
    )
    await stack.enter_async_context(entrances)
    its = await stack.enter_async_context(drive(heartbeat, metrics))
    log = logs.logger(site=settings.site.name)
    said: list[str] = []

    def standing_by() -> None:
        acting = heartbeat.now.acting
        who = f"{acting.info.instance} acts" if acting else "another controller acts"
        if entrances.ready:
            if not said:
                log.info("answers while it stands by", listening=listeners.addresses, who=who)
                said.append(who)
            # It has started, and lives, though another controller acts.
            notify(f"READY=1\nSTATUS=stands by: {who}\nWATCHDOG=1")

    sole_use = await SoleUse.begin(
        journal,
        owner=name,
        seconds=seconds,
        stop=stop,
        standing_by=standing_by,
        may=heartbeat.holds,
        newer=heartbeat.newer,
    )
    if sole_use is None:
        raise NotNeeded
    stack.push_async_callback(sole_use.end)
    await _check_site(
        journal, heartbeat, settings
    )  # of two that began together the other one may have acted first
    await journal.keep_meta(schema.SITE_NAME, settings.site.name)
    return Turn(
        sole_use=sole_use,
        heartbeat=heartbeat,
        listeners=listeners,
        entrances=entrances,
        driving=its,
        held=held,
    )


async def _check_site(journal: SqlJournal, heartbeat: Heartbeat, settings: Settings) -> None:
    """Refuse to share a journal with controllers of another site: they speak of the same guests under another name.

    A site may be renamed while none of its other controllers runs.

    :raise JournalError: it is one of another site, or cannot be read.
    """
    acted = await journal.meta(schema.SITE_NAME)
    if acted in (None, settings.site.name) or not heartbeat.now.others(heartbeat.info.name):
        return
    raise JournalError(
        f"the journal {journal.name} is in use for the site {acted}, and [site] name is {settings.site.name}: give all "
        "its controllers the same name, or this one a database of its own ([store] url)"
    )


def _own_metrics(journal: SqlJournal) -> Metrics:
    """Figures of this process alone: it drives nothing, and nothing happens to anybody."""
    nothing = ReplicaQueries(
        state=ReplicaState(), journal=journal, samples=journal.samples, requests=SteeringRequests()
    )
    metrics = Metrics(
        queries=nothing,
        version=__version__,
        probes=Probes(journal_complaint=lambda: journal.complaint, lease_held=lambda: None),
    )
    journal.tell(on_write=metrics.journal_write, on_error=metrics.journal_error)
    faults.on_fault = metrics.fault
    return metrics


async def _counts(metrics: Metrics, asked: Mapping[str, Any]) -> Any:
    return (await metrics.counts(asked["accept"])).as_json()


def _url(http: HttpSettings) -> str:
    """Return where the API can be reached from elsewhere, as far as the settings say; empty: nowhere."""
    if http.listen is None or http.listen.loopback:
        return ""
    host = http.hosts[0] if http.hosts else ""
    if not host:
        host = "" if http.listen.host in ("0.0.0.0", "::") else http.listen.host  # noqa: S104 - it is compared
    if not host:
        return ""
    bracketed = f"[{host}]" if ":" in host else host
    return f"{'https' if http.tls_certificate else 'http'}://{bracketed}:{http.listen.port}"
