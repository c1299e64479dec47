"""The client below a session: what comes over a monitor's socket is bounded here, before anybody sees it.

A QEMU that speaks no QMP loses its session, and nothing else happens. One that says too much is read more slowly than
it speaks, and of its events those above a rate are dropped: they are hints, and the truth is asked for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json
from qemu.qmp import EventListener, Message, QMPClient, Runstate
from qemu.qmp.error import ProtocolError
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import BadReplyError, ExecInterruptedError, ExecuteError, NegotiationError

from migrator import logs
from migrator.qemu.replies import wrong_with_event
from migrator.text import clean, shortened

# qemu.qmp logs every failed connection as an error; here that is an answer, raised to whoever asked.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False

#: Bytes of the longest message that is honest: a QEMU's whole schema has 200 to 300 kB.
MESSAGE_BYTES = 4 * 2**20
#: Bytes a second that are read for long, and at once; a message costs so much besides.
_BYTES_PER_SECOND, _BURST_BYTES, _MESSAGE_COSTS = 4 * 2**20, 16 * 2**20, 512
#: Events a second that are handed on for long, and at once.
EVENTS_PER_SECOND, EVENTS_AT_ONCE = 200.0, 4_000.0
#: How an event begins, as QEMU writes it: then it need not be read to be dropped.
_EVENT = re.compile(rb'\s*\{\s*"timestamp"')
#: Messages that a client which has just been greeted may get before the first that is meant for it.
_NOT_MEANT_FOR_US = 16
#: Seconds between two lines on one QEMU that floods.
_SAID_EVERY = 60.0
_json = json.JSONEncoder(separators=(",", ":")).encode


class _Bucket:
    """A token bucket: `per_second` on average, and `at_once` after a pause."""

    def __init__(self, per_second: float, at_once: float) -> None:
        self._per_second, self._at_once = per_second, at_once
        self._left, self._at = at_once, time.monotonic()

    def take(self, cost: float) -> float:
        """Take `cost`; return the seconds until it would have been there, 0 where it was."""
        now = time.monotonic()
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_second) - cost
        self._at = now
        return max(0.0, -self._left / self._per_second)

    def give_back(self, cost: float) -> None:
        """Give back what was taken and not used."""
        self._left += cost


class Tap(EventListener):
    """Hand every event on at once and keep none: qemu.qmp's own queues grow without bound."""

    def __init__(self, hand_on: Callable[[Message], None]) -> None:
        super().__init__()
        self._hand_on = hand_on

    async def put(self, event: Message) -> None:
        self._hand_on(event)


class _ToTheEnd(asyncio.Protocol):
    """Reads what a QEMU said before it hung up to its end, also where the end is noticed by writing.

    asyncio gives up a connection that cannot be written to with all that came and was not read yet. A QEMU that ends
    says why just before, so that a command sent at that moment would cost the word on the guest's end.

    :param stream: the protocol of the connection's stream.
    """

    def __init__(self, transport: asyncio.Transport, stream: asyncio.Protocol) -> None:
        self._transport, self._stream = transport, stream

    def data_received(self, data: bytes) -> None:
        self._stream.data_received(data)

    def eof_received(self) -> bool | None:
        return self._stream.eof_received()

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, BrokenPipeError | ConnectionResetError):
            exc = None
            if self._transport.get_extra_info("sslcontext") is None:
                self._read_rest()
        self._stream.connection_lost(exc)

    def _read_rest(self) -> None:
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        left = MESSAGE_BYTES
        try:
            while left > 0 and (data := os.read(descriptor, 65536)):
                left -= len(data)
                self._stream.data_received(data)
        except OSError:
            pass  # there is no more


class QmpClient(QMPClient):
    """Drops its session at once when it is told to, whatever is unsent: a stalled QEMU reads nothing, and over TLS
    asyncio cannot flush a buffer down to nothing, nor close without the other side's consent.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, MESSAGE_BYTES)
        #: Why its session broke, where that was said by what came; else empty.
        self.broke_by = ""
        self._log = logs.logger(monitor=name)
        self._reading = _Bucket(_BYTES_PER_SECOND, _BURST_BYTES)
        self._events = _Bucket(EVENTS_PER_SECOND, EVENTS_AT_ONCE)
        self._dropped = 0
        self._said_at = -_SAID_EVERY
        #: Answers that are waited for, by the ids of their commands.
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def _negotiate(self) -> None:
        enable = ["oob"] if self._greeting is not None and "oob" in self._greeting.QMP.capabilities else []
        message = self.make_execute_msg("qmp_capabilities", {"enable": enable} if enable else None)
        message["id"] = "negotiate"
        await self._send(message)
        # QEMU gives an answer that was meant for the client before to this one, and 10.0 may greet it twice.
        reply = Message({})
        for _ in range(_NOT_MEANT_FOR_US):
            reply = await self._recv()
            if reply.get("id", "negotiate") == "negotiate" and ("return" in reply or "error" in reply):
                break
        if "return" not in reply:
            raise NegotiationError(
                "Negotiation failed", ProtocolError(f"it answers {clean(shortened(dict(reply)))}")
            )

    async def _do_connect(self, address: Any, ssl: ssl.SSLContext | None = None) -> None:
        await super()._do_connect(address, ssl)
        assert self._writer is not None
        transport: Any = self._writer.transport
        transport.set_protocol(_ToTheEnd(transport, transport.get_protocol()))

    async def _bh_flush_writer(self) -> None:
        pass  # what was not sent is given up

    async def _bh_close_stream(self, error_pathway: bool = False) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        await super()._bh_close_stream(error_pathway)

    def _get_exec_id(self) -> str:
        # QEMU reads what it is sent a byte at a time: 4 us of its processor for each.
        self._execute_id += 1
        return str(self._execute_id)

    # The library writes every message out for its log, whether there is one or not.
    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def send(
        self, cmd: str, arguments: Mapping[str, object] | None = None, oob: bool = False
    ) -> asyncio.Future[dict[str, Any]]:
        """Send a command at once; :meth:`answer` waits for what it returns, or whoever sent it cancels the future.

        The library has a queue for each command, two copies of each message, and a task that sends them.

        :raise ExecInterruptedError: there is no session.
        """
        if self.runstate is not Runstate.RUNNING:
            raise ExecInterruptedError(f"the session is {self.runstate.name.lower()}")
        name = self._get_exec_id()
        message: dict[str, object] = {"exec-oob" if oob else "execute": cmd, "id": name}
        if arguments is not None:
            message["arguments"] = arguments
        self._write_line(_json(message).encode())
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[name] = reply
        reply.add_done_callback(lambda _: self._replies.pop(name, None))
        return reply

    async def answer(self, reply: asyncio.Future[dict[str, Any]]) -> object:
        """Return what a command returns that was sent.

        :raise ExecuteError: it was refused.
        :raise BadReplyError: what came is no answer.
        :raise ExecInterruptedError: the session broke before the answer.
        """
        found = await reply
        if "error" in found:
            message = Message(found, eager=False)
            try:
                refusal = ErrorResponse(message)
            except (KeyError, TypeError) as error:
                raise BadReplyError("QMP error reply is malformed", message, message) from error
            raise ExecuteError(refusal, message, message)
        if "return" not in found:
            message = Message(found, eager=False)
            raise BadReplyError("QMP reply is missing a 'error' or 'return' member", message, message)
        return found["return"]

    async def _bh_disconnect(self) -> None:
        try:
            await super()._bh_disconnect()
        finally:
            for reply in tuple(self._replies.values()):
                if not reply.done():
                    reply.set_exception(ExecInterruptedError("Disconnected"))
                    reply.exception()  # whoever sent it may have stopped waiting for it

    def _do_send(self, msg: Message) -> None:
        self._write_line(bytes(msg))

    def _write_line(self, line: bytes) -> None:
        if self._writer is not None:
            self._writer.write(line)

    async def _do_recv(self) -> Message:
        """Return the next message that is no answer to what was sent: those are given to whoever waits for them."""
        while True:
            try:
                line = await self._readline()
            except ValueError as error:
                raise self._breaks(f"a message of more than {MESSAGE_BYTES} bytes") from error
            if pause := self._reading.take(len(line) + _MESSAGE_COSTS):
                await asyncio.sleep(pause)
            # One too many is not even read, where it is seen to be an event.
            is_event = _EVENT.match(line) is not None
            if is_event and self._too_many():
                continue
            found = self._read(line)
            if "event" in found:
                if is_event or not self._too_many():
                    return Message(found, eager=False)
            elif (reply := self._replies.get(found.get("id", ""))) is None:
                return Message(found, eager=False)
            elif not reply.done():  # it may answer twice
                reply.set_result(found)

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            found = from_json(line, allow_inf_nan=False)
        except ValueError as error:
            raise self._breaks(f"no JSON ({error})") from error
        if not isinstance(found, dict):
            raise self._breaks(f"no message ({clean(shortened(found))})")
        if "event" in found:
            if wrong := wrong_with_event(found):
                raise self._breaks(f"no event ({wrong})")
        elif not isinstance(found.get("id"), str | None):
            raise self._breaks(f"an answer to what was never asked (id {clean(shortened(found['id']))})")
        return found

    def _too_many(self) -> bool:
        if not self._events.take(1.0):
            if self._dropped and time.monotonic() - self._said_at > _SAID_EVERY:
                self._said_at = time.monotonic()
                self._log.warning("this QEMU sends too many events: some were dropped", dropped=self._dropped)
                self._dropped = 0
            return False
        self._events.give_back(1.0)
        self._dropped += 1
        return True

    def _breaks(self, what: str) -> ProtocolError:
        self.broke_by = what[:500]
        return ProtocolError(f"it sent {self.broke_by}")

    async def end(self, within_seconds: float = 1.0) -> None:
        """End the session; a broken one is no error. Whatever broke it is raised by the library once more, here."""
        if self.runstate is Runstate.IDLE:
            return
        ending: asyncio.Task[Any] = asyncio.create_task(self.disconnect(), name=f"end {self.name}")
        try:
            await asyncio.wait({ending}, timeout=within_seconds)
        finally:
            ending.cancel()
            ending.add_done_callback(_heard)


class TlsClient(QmpClient):
    """Over TLS, QEMU 7.2 leaves the end of what it was sent unread until more comes: send white space after it."""

    def _write_line(self, line: bytes) -> None:
        super()._write_line(line)
        super()._write_line(b"\n")  # in a record of its own


def _heard(ended: asyncio.Task[Any]) -> None:
    if not ended.cancelled():
        ended.exception()
