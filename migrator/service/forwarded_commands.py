"""Commands that a controller receives which does not act: left in the journal for the one that does, and answered here.

A command is claimed by its key before anything else, and is carried out once, whoever dies: it stays in the journal
until it is answered. While nobody acts it waits for as long as taking over may take, and is then taken back and
refused: so whoever asked knows that nothing was begun, and may ask again, with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from migrator import logs
from migrator.api import received
from migrator.api.commands import Command, Role
from migrator.api.replies import Refusal, Reply
from migrator.api.requests import Envelope
from migrator.errors import JournalError
from migrator.ports import Claim, Signals
from migrator.ports.controllers import ANSWERS_CHANNEL, REPLIES_CHANNEL, WaitingCommands

#: What a takeover may take at most, with the time to look at every host.
TIMEOUT_SECONDS = 20.0
#: It is looked without a signal so often: one may be missed.
_POLL_SECONDS = 0.5


class ForwardingJournal(Protocol):
    """The part of the journal that this needs."""

    @property
    def signals(self) -> Signals: ...

    @property
    def waiting(self) -> WaitingCommands: ...


class ForwardedCommands:
    """See :class:`migrator.ports.commands.CommandExecutor`. :meth:`run` has to run, or nobody is answered.

    :param acting: the instance of the controller that acts, or empty.
    """

    def __init__(
        self,
        journal: ForwardingJournal,
        *,
        acting: Callable[[], str],
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._journal, self._acting, self._timeout_seconds = journal, acting, timeout_seconds
        self._waiting: dict[str, set[asyncio.Future[Reply]]] = {}

    async def run(self) -> None:
        """Answer those who wait, until cancelled."""
        channels = (ANSWERS_CHANNEL, REPLIES_CHANNEL)
        async with self._journal.signals.listen(*channels, poll_seconds=_POLL_SECONDS) as signals:
            async for signal in signals:
                if signal.channel == REPLIES_CHANNEL:
                    if signal.payload:
                        self._answer(*json.loads(signal.payload))
                    continue  # where one may have been missed the other channel says so too
                keys = list(self._waiting) if not signal.payload else [signal.payload]
                keys = [key for key in keys if key in self._waiting]
                if not keys:
                    continue
                with contextlib.suppress(JournalError):  # it is looked again before long
                    for key, reply in (await self._journal.waiting.replies(keys)).items():
                        self._answer(key, reply)

    def _answer(self, key: str, reply: Mapping[str, Any]) -> None:
        for waiting in self._waiting.pop(key, ()):
            if not waiting.done():
                waiting.set_result(Reply.model_validate(reply))

    async def execute(self, envelope: Envelope) -> Reply:
        """See :meth:`migrator.ports.commands.CommandExecutor.execute`."""
        try:
            command = received.parse(envelope)
            received.in_time(envelope)
        except Refusal as refusal:
            return received.refused(envelope, refusal)
        named = envelope
        if envelope.key is None:
            named = replace(envelope, id=f"received-{secrets.token_hex(8)}")
        reply = await asyncio.shield(
            asyncio.create_task(self._forward(command, named), name=f"command {command.verb}")
        )
        if envelope.id is None and command.role is Role.VIEWER:
            await self._forget(str(named.key))
        return reply.model_copy(update={"id": envelope.id})

    async def _forward(self, command: Command, envelope: Envelope) -> Reply:
        key = str(envelope.key)
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(answered)
        try:
            claim = await self._leave(command, envelope, key)
            if claim.other_body:
                return received.reused(envelope)
            if claim.reply is not None:
                return Reply.model_validate(claim.reply)
            await asyncio.wait({answered}, timeout=self._timeout_seconds)
            if answered.done():
                return answered.result()
            return await self._give_up(envelope, key)
        except JournalError as error:
            return received.refused(envelope, Refusal("unavailable", self._unreachable(error)))
        finally:
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.discard(answered)
                if not waiting:
                    del self._waiting[key]

    async def _leave(self, command: Command, envelope: Envelope, key: str) -> Claim:
        caller = envelope.caller
        return await self._journal.waiting.leave(
            key=key,
            verb=command.verb,
            body_hash=received.digest(command),
            body=command.model_dump(mode="json"),
            caller={
                "user": caller.user,
                "role": caller.role,
                "interface": caller.interface,
                "origin": caller.origin,
            },
            envelope=received.ENVELOPE.dump_json(envelope).decode(),
        )

    async def _give_up(self, envelope: Envelope, key: str) -> Reply:
        acting = self._acting()
        who = f"the controller that acts, {acting}, has not answered" if acting else "no controller acts"
        if await self._journal.waiting.take_back(key):
            why = f"{who} for {self._timeout_seconds:.0f} s: it was not begun and will not be; ask again"
            return received.refused(envelope, Refusal("unavailable", why))
        if reply := (await self._journal.waiting.replies([key])).get(key):
            return Reply.model_validate(reply)
        why = (
            f"{who} for {self._timeout_seconds:.0f} s, and had begun to carry it out: whoever acts next finishes it; "
            "ask again with the same id to hear what became of it"
        )
        return received.refused(envelope, Refusal("unavailable", why))

    def _unreachable(self, error: JournalError) -> str:
        acting = self._acting()
        where = f"; or ask {acting}, which acted last" if acting else ""
        return f"this controller stands by and cannot pass it on: {error}. Ask again with the same id{where}"

    async def _forget(self, key: str) -> None:
        """A look of which nobody can ask again what it found."""
        try:
            await self._journal.waiting.forget(key)
        except JournalError as error:
            logs.logger().info("command not forgotten", error=str(error))
