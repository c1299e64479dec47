"""Accepts connections of one listening socket through a gate, and agrees upon TLS with those that were let in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
import struct
from collections.abc import Callable

from migrator import logs
from migrator.http.admission import Factory, Gate, address_of

#: Accepted in one turn of the loop; others have their turn then.
_AT_ONCE = 32
#: Without a free descriptor there is nothing to do but to wait for one.
_PAUSE_SECONDS = 0.5
#: Closed without lingering: whoever is refused is told by a reset, and leaves no state in the kernel.
_RESET = struct.pack("ii", 1, 0)
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """Accepts as long as it is open.

    :param listener: bound and listening, non-blocking; stays the caller's.
    :param factory: makes the protocol of a connection.
    :param tls: ``None``: the bytes are the protocol's as they come.
    """

    def __init__(
        self, listener: socket.socket, gate: Gate, factory: Factory, *, tls: ssl.SSLContext | None
    ) -> None:
        self._listener, self._gate, self._factory, self._tls = listener, gate, factory, tls
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._open = True
        self._loop.add_reader(listener.fileno(), self._ready)

    def close(self) -> None:
        """Take no more connections; those that are there go on, those that are still at TLS end."""
        if not self._open:
            return
        self._open = False
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listener.fileno())
        for task in self._beginning:
            task.cancel()

    def _ready(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                self._gate.exhausted(error)
                self._pause()
                return
            address = address_of(connection)
            if not self._gate.enter(address):
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.close()
                continue
            connection.setblocking(False)
            leave = _leaving(self._gate, address)
            begin = self._begin(connection, address, leave)
            task = self._loop.create_task(begin, name=f"http connection of {address}")
            self._beginning.add(task)
            task.add_done_callback(functools.partial(self._begun, connection, leave))

    def _pause(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._paused = None
        if self._open:
            self._loop.add_reader(self._listener.fileno(), self._ready)

    async def _begin(self, connection: socket.socket, address: str, leave: Callable[[], None]) -> None:
        await self._loop.connect_accepted_socket(
            lambda: self._factory(address, leave),
            connection,
            ssl=self._tls,
            ssl_handshake_timeout=self._gate.admission.handshake_seconds if self._tls is not None else None,
        )

    def _begun(self, connection: socket.socket, leave: Callable[[], None], task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        if task.cancelled() or (error := task.exception()) is not None:
            # After whatever asyncio still has to do about it.
            self._loop.call_soon(connection.close)
            leave()
            if not task.cancelled() and not isinstance(
                error, (OSError, EOFError)
            ):  # an SSLError is an OSError
                logs.logger(part="http").warning("a connection could not be begun", error=repr(error))


def _leaving(gate: Gate, address: str) -> Callable[[], None]:
    """Gives the place back, once."""
    left = False

    def leave() -> None:
        nonlocal left
        if not left:
            left = True
            gate.leave(address)

    return leave
