"""Sessions at the broker of controllers that are gone: the broker gives them their share of commands all the same.

So each controller writes down which session is its own, and the one that acts empties those of others.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from migrator import logs
from migrator.errors import JournalError
from migrator.mqtt import Mqtt
from migrator.mqtt.connection import BrokerError
from migrator.store.journal import SqlJournal
from migrator.store.step_records import controller_id

#: Values of the journal itself: the client id of a controller's session, by its name.
_CLIENT = "mqtt_client/"
#: A controller is gone when it was found to be so two times, with so much between them.
_LOOK_SECONDS = 2.0


class LeftSessions:
    """Looks for them while it runs.

    :param directory: of this controller's state.
    :param acts: set once it acts.
    """

    def __init__(self, mqtt: Mqtt, journal: SqlJournal, *, directory: Path, acts: asyncio.Event) -> None:
        self._mqtt, self._journal, self._acts = mqtt, journal, acts
        self._name = controller_id(directory)
        self._told = ""
        self._gone: set[str] = set()
        self._log = logs.logger(interface="mqtt")

    async def run(self) -> None:
        """Write down this controller's session, and empty those of others that are gone; until cancelled."""
        while True:
            try:
                await self._look()
            except (JournalError, BrokerError) as error:
                self._log.info("sessions of other controllers are looked at later", error=str(error))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        if self._told != self._mqtt.client_id:
            client_id = self._mqtt.client_id
            await self._journal.keep_meta(f"{_CLIENT}{self._name}", client_id)
            self._told = client_id
        if not self._acts.is_set() or not self._mqtt.connected:
            return
        there = {each.info.name for each in await self._journal.controllers.all() if each.present}
        kept = await self._journal.metas(_CLIENT)
        sessions = {key.removeprefix(_CLIENT): client_id for key, client_id in kept.items() if client_id}
        gone = sessions.keys() - there - {self._name}
        for name in sorted(gone & self._gone):
            await self._mqtt.take_commands_of(sessions[name])
            await self._journal.keep_meta(f"{_CLIENT}{name}", "")  # until it is there again
        self._gone = set(gone)
