"""Reception of commands: what a connection delivers is read, admitted, carried out in its turn, and acknowledged."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from datetime import datetime

from migrator import logs
from migrator.api.commands import COMMANDS, Role
from migrator.mqtt.command_queues import CommandQueues
from migrator.mqtt.config import MqttConfig
from migrator.mqtt.connection import BrokerConnection, Received
from migrator.mqtt.inbound import IncomingCommand, RejectedMessage, read, too_many
from migrator.mqtt.receipts import Receipts, nothing
from migrator.mqtt.replies import Replies
from migrator.mqtt.topics import Topics
from migrator.ports.commands import Commands

#: Of the commands that are carried out at a time one user may have this part.
_SHARE = 4


class Reception:
    """Takes commands until :meth:`close`; those that are not taken wait at the broker for the next of us.

    :param see: is given what is no command.
    """

    def __init__(
        self,
        *,
        config: MqttConfig,
        commands: Commands,
        replies: Replies,
        topics: Topics,
        see: Callable[[Received], None],
        now: Callable[[], datetime],
    ) -> None:
        self._config, self._commands, self._replies, self._topics = config, commands, replies, topics
        self._see, self._now = see, now
        self._log = logs.logger(broker=config.address)
        self._taking = True
        self._queues = CommandQueues(
            concurrency=config.section.max_commands,
            concurrency_per_user=max(1, config.section.max_commands // _SHARE),
            max_waiting_per_user=config.section.max_waiting_commands,
        )

    async def receive(
        self, connection: BrokerConnection, receipts: Receipts, tasks: asyncio.TaskGroup
    ) -> None:
        """Take what a connection delivers until it is lost.

        :param tasks: carries commands out.
        """
        async for received in connection.messages():
            if not self._topics.is_command(received.topic):
                self._see(received)
                continue
            if not self._taking:
                continue
            done = receipts.expect(received)
            try:
                incoming = read(received, topics=self._topics, config=self._config, now=self._now())
                held = self._admit(incoming, received)
            except RejectedMessage as rejected:
                self._refuse(rejected, received, done)
                continue
            if held is None:
                # It changes nothing, so nothing is lost with it; what takes its time must not keep the commands of
                # others at the broker, which sends only so many that have no receipt.
                done()
                done = nothing
            # Once it returns the command is in the journal. It is acknowledged when the reply is with the broker too: a
            # crash before that brings both again.
            work = functools.partial(self._replies.execute, incoming, then=done)
            self._queues.put(incoming.user, f"mqtt command {incoming.id}", work, tasks, held=held)

    def _admit(self, incoming: IncomingCommand, received: Received) -> int | None:
        """Return the bytes that a command takes while the broker has no receipt for it; ``None``: it gets one now.

        :raise RejectedMessage: it would wait behind too many.
        """
        if COMMANDS[incoming.envelope.verb].role is Role.VIEWER or not received.qos:
            if self._queues.full(incoming.user):
                most = self._config.section.max_waiting_commands
                raise too_many(incoming, f"{most} commands of yours wait already (mqtt.max_waiting_commands)")
            return None
        if self._queues.holds_too_much(len(received.payload)):
            raise too_many(incoming, "too many commands wait already")
        return len(received.payload)

    def _refuse(self, rejected: RejectedMessage, received: Received, done: Callable[[], None]) -> None:
        self._commands.count("mqtt", rejected.verb if rejected.verb in COMMANDS else "unknown", "refused")
        self._log.warning("command refused", topic=received.topic[:256], reason=str(rejected.refusal))
        if rejected.reply_to is None:
            done()
        else:
            self._replies.give(rejected.reply(), rejected.reply_to, then=done)

    def lost(self) -> None:
        """Begin none any more that waits without receipt: the next connection delivers it again."""
        self._queues.drop_held()

    async def close(self, timeout: float) -> None:
        """Take and begin nothing more, and wait so many seconds for what is being carried out."""
        self._taking = False
        self._queues.drop_waiting()  # they stay at the broker, which has no receipt for them
        if self._queues.tasks:
            await asyncio.wait(set(self._queues.tasks), timeout=timeout)
