"""Commands of the entrances, carried out by the process that drives migrations."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from migrator.api.commands import COMMANDS, Role
from migrator.api.replies import Reply
from migrator.api.requests import CommandKey, Envelope
from migrator.errors import JournalError, Unavailable
from migrator.ports.commands import CommandExecutor
from migrator.replica.requests import SteeringRequests
from migrator.service.entrance_requests import ENVELOPE

#: Commands of one entrance that change nothing and are carried out at a time: each looks at hosts, or thinks for a
#: while. The others wait here, not in the process that drives migrations.
_LOOKS = 4


class EntranceCommands:
    """Has the commands of one entrance carried out; see :class:`migrator.ports.commands.CommandExecutor`.

    :param why_silent: why nobody would carry a command out now; empty: somebody would.
    """

    def __init__(self, requests: SteeringRequests, why_silent: Callable[[], str]) -> None:
        self._requests, self._why_silent = requests, why_silent
        self._looks = asyncio.Semaphore(_LOOKS)

    async def execute(self, envelope: Envelope) -> Reply:
        if why := self._why_silent():  # else it would be carried out when nobody counts on it any more
            return _refused(envelope, why)
        try:
            async with self._looks if _looks(envelope) else contextlib.nullcontext():
                found = await self._requests.ask(
                    "execute", envelope=ENVELOPE.dump_python(envelope, mode="json")
                )
        except (JournalError, Unavailable) as error:
            return _refused(envelope, str(error))
        return Reply.model_validate(found)


class MqttCommands:
    """Commands by MQTT; see :class:`migrator.ports.commands.Commands`.

    :param executor: has them carried out, whoever acts.
    """

    def __init__(self, executor: CommandExecutor, requests: SteeringRequests) -> None:
        self._executor, self._requests = executor, requests
        self._looks = asyncio.Semaphore(_LOOKS)
        #: Commands that were refused here, by verb; whoever reads it counts them.
        self.refused: Counter[str] = Counter()

    async def execute(self, envelope: Envelope) -> Reply:
        async with self._looks if _looks(envelope) else contextlib.nullcontext():
            return await self._executor.execute(envelope)

    def count(self, interface: str, verb: str, result: str) -> None:
        """Count a command that did not get as far as the dispatcher."""
        del interface, result  # always the same
        self.refused[verb] += 1

    async def keep_outcome(self, *, key: CommandKey, reply: Reply, told: bool = True) -> None:
        await self._requests.ask(
            "keep_outcome", user=key.user, id=key.id, reply=reply.model_dump(mode="json"), told=told
        )


def _looks(envelope: Envelope) -> bool:
    """Tell whether a command changes nothing."""
    command = COMMANDS.get(envelope.verb)
    return command is not None and command.role is Role.VIEWER


def _refused(envelope: Envelope, why: str) -> Reply:
    return Reply(kind="refused", id=envelope.id, verb=envelope.verb, code="unavailable", message=why)
