"""Requests from the process that answers to the one that drives migrations: each gets one reply."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from migrator.errors import JournalError, MigratorError, Unavailable
from migrator.faults import contained
from migrator.replica.channel import Channel, MessageKind

#: Requests that are being carried out at a time; more are refused. The entrances let fewer through.
_MOST = 512

#: Carries out one request, whose fields it gets; what it returns is JSON.
Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]


class RequestServer:
    """Carries out requests of the other process. Each goes on to its end, whatever becomes of who asked.

    :param handlers: by what is asked for.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._tasks: set[asyncio.Task[None]] = set()

    def receive(self, channel: Channel, number: int, body: bytes) -> None:
        """Begin to carry a request out; its reply goes to `channel`, if that is open then."""
        if len(self._tasks) >= _MOST:
            channel.send(
                MessageKind.REPLY, _failure("busy", "too many requests are being carried out"), number
            )
            return
        task = asyncio.create_task(self._carry_out(channel, number, body), name="request of an entrance")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, channel: Channel, number: int, body: bytes) -> None:
        try:
            with contained("a request of an entrance"):
                asked = json.loads(body)
                found = await self._handlers[asked["do"]](asked)
                reply = json.dumps({"found": found}, allow_nan=False).encode()
        except JournalError as error:
            reply = _failure("journal", str(error))
        except MigratorError as error:
            reply = _failure("fault", str(error))
        channel.send(MessageKind.REPLY, reply, number)

    async def wait(self, timeout: float) -> None:
        """Wait until everything that was begun has been replied to, at most so many seconds."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)


def _failure(kind: str, message: str) -> bytes:
    return json.dumps({"failed": kind, "message": message}).encode()


class SteeringRequests:
    """Asks the process that drives migrations."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def use(self, channel: Channel) -> None:
        """Ask over this channel."""
        self._channel = channel

    def receive(self, number: int, body: bytes) -> None:
        """Take the reply to a request; whoever asked may have gone away."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(json.loads(body))

    async def ask(self, what: str, **given: Any) -> Any:
        """Have something done, and return what comes of it.

        :raise JournalError: the journal could not be read or written there.
        :raise Unavailable: it could not be done, or there is nobody to do it; it says why.
        """
        if self._channel is None or not self._channel.open:
            raise Unavailable("the process that drives migrations has gone")
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(MessageKind.REQUEST, json.dumps({"do": what, **given}).encode(), number)
            reply = await waiting
        finally:
            self._waiting.pop(number, None)
        if "failed" in reply:
            raise (JournalError if reply["failed"] == "journal" else Unavailable)(reply["message"])
        return reply["found"]
