"""``python -m migrator.service.entrance``: the process that answers for the service; started by it, and ends with it.

It drives nothing. What it shows was told by the process that drives migrations, or is read from the journal; what shall
be done it asks for there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pickle
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from migrator import __version__, faults, logs
from migrator.api.service_documents import ServiceDocument
from migrator.errors import MigratorError
from migrator.http import serving
from migrator.http.app import create_app
from migrator.machine import end_with
from migrator.metrics.elsewhere import Counts, ScrapedElsewhere
from migrator.metrics.gauges import GaugeSnapshot
from migrator.replica.channel import Channel, MessageKind
from migrator.replica.queries import ReplicaQueries
from migrator.replica.state import ReplicaState
from migrator.service.entrance_commands import EntranceCommands
from migrator.service.entrance_mqtt import EntranceMqtt
from migrator.service.entrance_role import ControllerRole, RoleCommands, RoleRequests, RoleTokens
from migrator.service.entrance_settings import ALIVE_SECONDS, SILENT_TIMES, EntranceSettings
from migrator.service.forwarded_commands import ForwardedCommands
from migrator.service.garbage import GarbageCollection
from migrator.store.journal import SqlJournal
from migrator.store.place import journal_place

#: Whoever drives migrations goes first where both want to run.
_NICE = 5
#: Before figures are asked for, those of MQTT are told; that is not waited for longer.
_NOTE_SECONDS = 0.5


class _Entrance:
    """This process, for as long as the channel is there."""

    def __init__(self, inherited: dict[str, socket.socket]) -> None:
        self._inherited = inherited
        self._state = ReplicaState()
        self._role = ControllerRole(self._state)
        self._requests = RoleRequests(self._role)
        self._settings: asyncio.Future[EntranceSettings] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self._silent = 0
        self._mqtt: EntranceMqtt | None = None
        self._channel: Channel

    async def run(self, end: socket.socket) -> None:
        """Serve until told to end, or until nobody is there who could."""
        self._channel = await Channel.over(end, received=self._receive, lost=self._lost)
        self._requests.use(self._channel)
        settings = await self._settings
        faults.on_fault = lambda: self._channel.send(MessageKind.FAULT)
        own = {
            # A site of many guests is as many objects, which Python by itself would look through at each growth.
            asyncio.create_task(faults.keep_going("garbage", GarbageCollection().run), name="garbage"),
            asyncio.create_task(faults.keep_going("alive", self._say_alive), name="alive"),
        }
        async with await SqlJournal.open_beside(journal_place(settings.store)) as journal:
            queries = ReplicaQueries(
                state=self._state,
                journal=journal,
                samples=journal.samples,
                requests=self._requests,
                complaints=self._complaints,
            )
            forwarded = ForwardedCommands(journal, acting=self._role.acting)
            await self._role.begin(journal, forwarded)
            scraped = ScrapedElsewhere(look=lambda: self._look(queries, settings), ask=self._counts)
            app = create_app(
                RoleCommands(
                    self._role, here=EntranceCommands(self._requests, self._why_silent), elsewhere=forwarded
                ),
                queries,
                RoleTokens(self._role, journal.tokens, self._requests),
                metrics=scraped.scrape,
                limits=serving.limits(settings.http),
                why_silent=self._why_silent,
                service=self._service,
            )
            await self._state.complete.wait()
            async with (
                self._at_broker(settings, queries, journal, forwarded),
                serving.servers(app, settings.http, inherited=self._inherited),
            ):
                self._channel.send(MessageKind.READY)
                await self._end.wait()
            await self._role.end()
        for task in own:
            task.cancel()
        await asyncio.wait(own)
        self._channel.close()

    @asynccontextmanager
    async def _at_broker(
        self,
        settings: EntranceSettings,
        queries: ReplicaQueries,
        journal: SqlJournal,
        forwarded: ForwardedCommands,
    ) -> AsyncIterator[None]:
        """Serve MQTT too, where it is configured; what is under way there when the block ends is finished."""
        if settings.mqtt is None:
            yield
            return
        # They say until when they may be begun, so they wait for a process that does not answer now: at the broker,
        # which has no receipt for them.
        here = EntranceCommands(self._requests, lambda: "")
        self._mqtt = EntranceMqtt(
            settings.mqtt,
            directory=settings.store.path.parent,
            commands=RoleCommands(self._role, here=here, elsewhere=forwarded),
            queries=queries,
            journal=journal,
            requests=self._requests,
            acts=self._role.acts,
        )
        serving_mqtt = asyncio.create_task(faults.keep_going("mqtt", self._mqtt.run), name="mqtt")
        try:
            yield
        finally:
            serving_mqtt.cancel()
            await asyncio.wait({serving_mqtt})

    def _receive(self, kind: MessageKind, number: int, body: bytes) -> None:
        if self._silent >= SILENT_TIMES:
            logs.logger().info("the process that drives migrations answers again")
        self._silent = 0
        if self._mqtt is not None:
            self._mqtt.mqtt.available(True)
        match kind:
            case MessageKind.SETTINGS:
                settings: EntranceSettings = pickle.loads(body)  # noqa: S301 - from the process that started this one
                logs.configure(verbose=True, json=settings.json_log, level=settings.log_level)
                if not self._settings.done():
                    self._settings.set_result(settings)
            case MessageKind.REPLY:
                self._requests.receive(number, body)
            case MessageKind.CLOSE:
                self._end.set()
            case MessageKind.SERVICE:
                self._role.receive(body)
            case _:
                try:
                    with faults.contained("what the process that drives migrations has told"):
                        self._state.receive(kind, body)
                except MigratorError:
                    pass  # it is in the log; what it was about stays as it was

    def _lost(self, why: str) -> None:
        if not self._end.is_set():
            logs.logger().warning("the process that drives migrations has gone; nothing is answered", why=why)
            os._exit(1)  # every connection ends with it, as with a service that died

    async def _say_alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            self._channel.send(MessageKind.ALIVE)
            # Counted, not timed: when this process itself did not run, nothing was missed by the other.
            self._silent += 1
            if self._silent == SILENT_TIMES:
                logs.logger().warning("the process that drives migrations does not answer")
                if self._mqtt is not None:
                    self._mqtt.mqtt.available(False)

    def _why_silent(self) -> str:
        """Why the other process cannot be believed to drive anything; empty while it can."""
        if self._silent < SILENT_TIMES:
            return ""
        return f"the process that drives migrations has not answered for {self._silent * ALIVE_SECONDS:.0f} s"

    def _complaints(self) -> Sequence[str]:
        return [why] if (why := self._why_silent()) else self._role.complaints()

    def _service(self) -> ServiceDocument:
        document = self._role.document()
        if self._mqtt is None:
            return document
        return document.model_copy(update={"broker_connected": self._mqtt.mqtt.connected})

    def _look(self, queries: ReplicaQueries, settings: EntranceSettings) -> GaugeSnapshot:
        service = self._role.document()
        own = GaugeSnapshot(
            controller_migrations={
                each.instance: each.migrations for each in service.controllers if each.present
            },
            lease_ages={each.name: each.age_seconds for each in service.leases},
            planner_present=service.acting is not None,
            complaints=len(queries.complaints()),
            broker=self._mqtt.gauges if self._mqtt is not None else None,
            version=__version__,
            page_url=settings.page_url,
            runbook_url=settings.runbook_url,
        )
        if service.role not in ("acting", "alone"):
            return own  # the site's figures are shown by the one that acts
        return replace(
            own,
            migrations=queries.active_migrations(),
            evacuations=queries.active_evacuations(),
            hosts=queries.hosts(),
            guests=queries.guests(),
        )

    async def _counts(self, accept: str) -> Counts:
        if self._mqtt is not None:
            with contextlib.suppress(TimeoutError):  # a journal that does not answer keeps no figures back
                async with asyncio.timeout(_NOTE_SECONDS):
                    await self._mqtt.note()
        return Counts.from_json(await self._requests.ask("metrics", accept=accept))


def main(arguments: Sequence[str]) -> None:
    """Serve at the sockets whose descriptors are given."""
    parser = argparse.ArgumentParser(prog="python -m migrator.service.entrance", description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--listener", action="append", default=[], metavar="ENTRANCE=DESCRIPTOR")
    given = parser.parse_args(arguments)
    # Whatever becomes of the service, this process does not outlive it, and keeps no socket from the next one.
    if not end_with(given.parent):
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the service, which says what shall be done
    with contextlib.suppress(OSError):  # a sandbox may forbid it; then both are treated alike
        os.nice(_NICE)
    inherited = {
        name: socket.socket(fileno=int(descriptor))
        for name, _, descriptor in (listener.partition("=") for listener in given.listener)
    }
    end = socket.socket(fileno=given.channel)
    try:
        with faults.contained("the process that answers requests"):
            asyncio.run(_serve(inherited, end))
    except MigratorError as error:
        logs.logger().warning("entrances cannot answer", error=str(error))
        sys.exit(1)


async def _serve(inherited: dict[str, socket.socket], end: socket.socket) -> None:
    await _Entrance(inherited).run(end)


if __name__ == "__main__":
    main(sys.argv[1:])
