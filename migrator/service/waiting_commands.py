"""Commands that other controllers have received, carried out by this one, which acts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from migrator import logs
from migrator.api.received import ENVELOPE
from migrator.api.replies import Reply
from migrator.api.requests import Envelope
from migrator.errors import JournalError, MigratorError
from migrator.faults import contained
from migrator.ports import Signals
from migrator.ports.controllers import COMMANDS_CHANNEL, WaitingCommands

#: It is looked without a signal so often: one may be missed.
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 1.0
#: One that says nothing else is not begun later than that after it was received.
_EXPIRES = timedelta(minutes=10)
#: Carried out at a time; the others wait where they are.
_MOST = 64


class Dispatch(Protocol):
    """Carries commands out; the engine's dispatcher is one."""

    async def carry_out_waiting(self, envelope: Envelope, *, begun_before: bool) -> Reply | None: ...


class WaitingCommandJournal(Protocol):
    """The part of the journal that this needs."""

    @property
    def signals(self) -> Signals: ...

    @property
    def waiting(self) -> WaitingCommands: ...

    async def answer_command(self, *, key: str, reply: Mapping[str, Any]) -> None: ...


class WaitingCommandRunner:
    """Carries out what waits, once, and journals the reply, from which whoever received it has it.

    :param name: of this controller.
    """

    def __init__(self, journal: WaitingCommandJournal, dispatcher: Dispatch, *, name: str) -> None:
        self._journal, self._dispatcher, self._name = journal, dispatcher, name
        self._under_way: dict[str, asyncio.Task[None]] = {}
        #: There were too many at once: all that wait are looked at with the next signal.
        self._left_some = False
        self._log = logs.logger()

    async def run(self) -> None:
        """Carry out what waits, and what comes, until cancelled; what is under way then is finished."""
        async with self._journal.signals.listen(COMMANDS_CHANNEL, poll_seconds=_POLL_SECONDS) as signals:
            async for signal in signals:
                keys = [signal.payload]
                if not signal.payload or self._left_some:
                    try:
                        keys = [command.key for command in await self._journal.waiting.waiting()]
                    except JournalError:
                        continue  # it is looked again before long; who writes says what is wrong
                self._left_some = False
                for key in keys:
                    if key not in self._under_way:
                        self._begin(key)

    def _begin(self, key: str) -> None:
        if len(self._under_way) >= _MOST:
            self._left_some = True
            return
        task = asyncio.create_task(self._carry_out(key), name="command of another controller")
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key, None))

    async def _carry_out(self, key: str) -> None:
        # A journal that is away, or a fault of our own: it is found waiting again.
        with suppress(MigratorError), contained("a command of another controller"):
            command = await self._journal.waiting.take(key, by=self._name)
            if command is None:
                return
            envelope = ENVELOPE.validate_json(command.envelope)
            if envelope.expires_at is None:  # its age is the database's: machines may have different times
                left = _EXPIRES - timedelta(seconds=command.age_seconds)
                envelope = replace(envelope, expires_at=datetime.now(UTC) + left)
            reply = await self._dispatcher.carry_out_waiting(envelope, begun_before=command.taken)
            while reply is not None:
                try:
                    await self._journal.answer_command(key=command.key, reply=reply.model_dump(mode="json"))
                    return
                except JournalError as error:
                    self._log.warning("reply not journalled", error=str(error))
                    await asyncio.sleep(_RETRY_SECONDS)
