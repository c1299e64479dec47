"""Connections to monitors on unix sockets that have not been greeted yet: one at most to each socket.

QEMU serves one client at a time and lets two more wait. A connection that is given up before QEMU took it stays in that
queue all the same, so whoever connects again and again to a QEMU that is stopped, or whose monitor another client
holds, fills it, and then even a person cannot get in. Therefore a connection that was not greeted in time is kept, and
the next who wants the same monitor goes on waiting with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable

from migrator.machine import wait_readable
from migrator.qemu.socket_peer import peer_pid


def _nobody(path: str) -> None:
    pass


class PendingConnects:
    """The connections of one controller, or of one monitor, that QEMU has not greeted yet; used on one event loop.

    :param on_answer: called with the path when one that nobody waits for any more is greeted, or hung up; it is closed
        by then.
    """

    def __init__(self, on_answer: Callable[[str], None] = _nobody) -> None:
        self.on_answer = on_answer
        self._kept: dict[str, socket.socket] = {}
        #: Lock of each socket, and how many callers want it.
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._closed = False

    def is_pending(self, path: str) -> bool:
        """Tell whether a connection of ours is in the queue of that socket."""
        return path in self._kept

    async def connect(
        self, path: str, *, timeout: float, note_pid: Callable[[int | None], None]
    ) -> socket.socket:
        """Connect to the socket at `path`, and return once there is something to read from it.

        :param timeout: seconds; when they have passed, the connection is kept for the next call.
        :param note_pid: told the pid of the process that listens, as soon as it is known.
        :raise TimeoutError: QEMU did not greet in time; the connection is kept.
        :raise BlockingIOError: the queue is full: nothing was connected.
        :raise OSError: it cannot be connected to.
        """
        async with asyncio.timeout(timeout), self._turn(path):
            sock = self._kept.pop(path, None)
            if sock is not None:
                asyncio.get_running_loop().remove_reader(sock)
            else:
                sock = _connect(path)
            note_pid(peer_pid(sock))
            try:
                if await wait_readable(sock.fileno(), timeout):
                    return sock
                raise TimeoutError
            except BaseException:
                self._keep(path, sock)
                raise

    @contextlib.asynccontextmanager
    async def _turn(self, path: str) -> AsyncIterator[None]:
        """Let callers at one socket go one after the other; nothing is kept of sockets at which nobody waits."""
        lock = self._turns.setdefault(path, asyncio.Lock())
        self._waiting[path] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[path] -= 1
            if not self._waiting[path]:
                del self._waiting[path], self._turns[path]

    def _keep(self, path: str, sock: socket.socket) -> None:
        if self._closed:
            sock.close()
            return
        self._kept[path] = sock
        asyncio.get_running_loop().add_reader(sock, self._answered, path)

    def _answered(self, path: str) -> None:
        self._drop(path)
        self.on_answer(path)

    def _drop(self, path: str) -> None:
        sock = self._kept.pop(path)
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    def close(self) -> None:
        """Give up the connections that are kept; none is kept from now on."""
        self._closed = True
        for path in list(self._kept):
            self._drop(path)


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        sock.connect(path)  # never waits: a queue that is full refuses at once
    except BaseException:
        sock.close()
        raise
    return sock
