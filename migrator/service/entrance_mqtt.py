"""MQTT in the process that answers: joined with the state, the journal and the process that drives migrations."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from pathlib import Path

from migrator.errors import JournalError, Unavailable
from migrator.metrics.gauges import BrokerGauges
from migrator.mqtt import Mqtt, MqttConfig
from migrator.mqtt.client_id import keep, read
from migrator.mqtt.retained_states import StateQueries
from migrator.ports.commands import CommandExecutor
from migrator.replica.requests import SteeringRequests
from migrator.service.entrance_commands import MqttCommands
from migrator.service.entrance_requests import PUBLISHED
from migrator.service.left_sessions import LeftSessions
from migrator.store.journal import SqlJournal

#: What was counted and published is told to the process that drives migrations so often.
_NOTE_SECONDS = 1.0


class EntranceMqtt:
    """MQTT, and what the process that drives migrations is told of it: figures, and how far events are published.

    :param directory: where the client's id is kept.
    :param acts: set once this controller acts; until then it takes commands and publishes nothing.
    """

    def __init__(
        self,
        config: MqttConfig,
        *,
        directory: Path,
        commands: CommandExecutor,
        queries: StateQueries,
        journal: SqlJournal,
        requests: SteeringRequests,
        acts: asyncio.Event,
    ) -> None:
        self._journal, self._requests, self._acts = journal, requests, acts
        self._commands = MqttCommands(commands, requests)
        self._taken = 0
        #: As they were told last.
        self._dropped, self._published = 0, -1
        self.mqtt = Mqtt(
            config=config,
            commands=self._commands,
            queries=queries,
            journal=journal,
            client_id=read(directory),
            keep_client_id=functools.partial(keep, directory),
            published_until=self._published_until,
            taken=self._was_taken,
            acts=acts.is_set(),
        )
        self._left = (
            LeftSessions(self.mqtt, journal, directory=directory, acts=acts) if config.shared else None
        )

    @property
    def gauges(self) -> BrokerGauges:
        """The broker as this process sees it."""
        return BrokerGauges(connected=self.mqtt.connected, waiting=self.mqtt.waiting)

    async def run(self) -> None:
        """Serve until cancelled; then what waits is sent, and how far that came is noted."""
        work = {"mqtt notes": self._note_regularly, "mqtt role": self._act}
        if self._left is not None:
            work["mqtt sessions of others"] = self._left.run
        beside = [asyncio.create_task(each(), name=name) for name, each in work.items()]
        try:
            await self.mqtt.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NOTE_SECONDS):
                    await self.note()

    async def _act(self) -> None:
        await self._acts.wait()
        self.mqtt.act(True)

    async def note(self) -> None:
        """Tell the other process what was counted and published since the last time; never raises."""
        refused, taken = dict(self._commands.refused), self._taken
        dropped, published = self.mqtt.dropped, self.mqtt.published
        news = published is not None and published != self._published
        if not refused and not taken and dropped == self._dropped and not news:
            return
        if not self._acts.is_set():
            return  # it is told once there is somebody to tell
        self._commands.refused.clear()
        self._taken = 0
        dropped, self._dropped = dropped - self._dropped, dropped
        with contextlib.suppress(JournalError, Unavailable):
            await self._requests.ask(
                "note_mqtt",
                refused=refused,
                taken=taken,
                dropped=dropped,
                published=published if news else None,
            )
            if published is not None:
                self._published = published

    async def _note_regularly(self) -> None:
        while True:
            await asyncio.sleep(_NOTE_SECONDS)
            await self.note()

    async def _published_until(self) -> int | None:
        kept = await self._journal.meta(PUBLISHED)
        return int(kept) if kept and kept.isdecimal() else None

    def _was_taken(self) -> None:
        self._taken += 1
