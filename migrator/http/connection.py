"""One connection: who is at the other end, how soon each of its requests is begun, and when silence ends it."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from migrator import logs
from migrator.http.admission import Gate
from migrator.http.problems import MEDIA_TYPE, Problem

_PEER = struct.Struct("3i")


class ClientConnection(H11Protocol):
    """A connection like uvicorn's, with the peer's uid as the client's address, and bounds to what one address may ask.

    :param address: whose connection it is (:func:`migrator.http.admission.address_of`).
    :param leave: called once it has ended.
    """

    def __init__(self, *, gate: Gate, address: str, leave: Callable[[], None], **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._gate, self._address, self._leave = gate, address, leave
        self._head_timeout: asyncio.TimerHandle | None = None
        #: Set while the next request waits for its turn.
        self._turn: asyncio.TimerHandle | None = None
        #: How often the next request was counted: at its address, then among all.
        self._counted = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the base does
        """See asyncio."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            try:
                pid, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
                self.client = (f"unix:{uid}", pid)
            except OSError:
                self.client = ("unix", 0)
        self._wait_for_head(True)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        self._wait_for_rest()

    def handle_events(self) -> None:
        """Begin what has come, once it is this address' turn; until then nothing more is read of it."""
        if self._turn is not None:
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            while self._counted < 2:
                wait = self._gate.turn() if self._counted else self._gate.request(self._address)
                self._counted += 1
                if wait > 0:
                    self.flow.pause_reading()
                    self._turn = self.loop.call_later(wait, self._have_turn)
                    return
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._counted = 0

    def _have_turn(self) -> None:
        self._turn = None
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.handle_events()
            self._wait_for_rest()

    def on_response_complete(self) -> None:
        """A further request may have begun to come meanwhile."""
        super().on_response_complete()
        if self._turn is not None:
            self.flow.pause_reading()
        self._wait_for_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._wait_for_head(False)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        super().connection_lost(exc)
        self._leave()

    def send_400_response(self, msg: str) -> None:
        """Answer something that is not HTTP."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # an answer is under way, and nothing can be put into it
            return
        problem = Problem(
            type="urn:migrator:problem:bad-request",
            title="Bad Request",
            status=400,
            detail=msg,
            code="bad-request",
        )
        body = problem.model_dump_json().encode()
        headers = [
            ("content-type", MEDIA_TYPE),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            sent = self.conn.send(event)
            if sent:
                self.transport.write(sent)
        self.transport.close()

    def _wait_for_rest(self) -> None:
        coming = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        self._wait_for_head(coming and self._turn is None)

    def _wait_for_head(self, waiting: bool) -> None:
        if waiting and self._head_timeout is None:
            self._head_timeout = self.loop.call_later(self._gate.admission.head_seconds, self.transport.abort)
        elif not waiting and self._head_timeout is not None:
            self._head_timeout.cancel()
            self._head_timeout = None


class _OurLog(logging.Handler):
    """Takes what uvicorn has to say into our log: what is not HTTP, and the traceback of every fault of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        fields = {}
        if record.exc_info:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        logs.logger(part="http").warning(record.getMessage().strip(), **fields)


def log_as_we_do() -> None:
    """Once a process."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    if not any(isinstance(handler, _OurLog) for handler in logger.handlers):
        logger.addHandler(_OurLog())
