"""One connection: who is at the other end of a Unix socket, and patience with those that say nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from migrator import logs
from migrator.http.problems import MEDIA_TYPE, Problem

#: Of one entrance at a time; a further one is closed at once.
_CONNECTIONS = 1024
#: For the first bytes of a connection to become a whole request head.
_HEAD_SECONDS = 15.0
_PEER = struct.Struct("3i")


class Connection(H11Protocol):
    """As uvicorn's, with the peer's uid as the client's address, and a limit to how long a request head may take."""

    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the base does
        """See asyncio."""
        super().connection_made(transport)
        if len(self.connections) > _CONNECTIONS:
            transport.abort()
            return
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

    def on_response_complete(self) -> None:
        """A further request may have begun to come meanwhile."""
        super().on_response_complete()
        self._wait_for_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._wait_for_head(False)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # an answer is under way, and nothing can be put into it
            return
        problem = Problem(title="Bad Request", status=400, detail=msg, code="bad-request")
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
        self._wait_for_head(self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0]))

    def _wait_for_head(self, waiting: bool) -> None:
        if waiting and self._impatience is None:
            self._impatience = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)
        elif not waiting and self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


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
