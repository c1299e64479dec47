"""Connections of libvirt's, opened by whoever needs one, or ahead of that: while the program still loads itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from typing import Any

from migrator.errors import UsageError
from migrator.libvirt.binding import load
from migrator.libvirt.event_thread import run_events

#: Seconds between two signs of life, and how many may be missed: a daemon that is silent for longer is taken for gone.
_ALIVE_SECONDS, _ALIVE_MISSED = 5, 3
#: Seconds that those may take to be closed which nobody used.
_CLOSE_SECONDS = 0.2


class _Opening:
    """One that is being opened on a thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None
        self._thread = threading.Thread(target=self._open, name=f"open {uri} ahead", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        with contextlib.suppress(UsageError):  # whoever needs it meets that again, and tells it
            module = load()
            run_events()
            with contextlib.suppress(module.libvirtError):
                self._connection = _connect(self._uri)

    def close(self) -> None:
        """Close it once it is open."""
        with contextlib.suppress(load().libvirtError):
            if (connection := self.taken()) is not None:
                connection.close()

    def taken(self) -> Any:
        """Return the connection once it is open; ``None`` where it could not be opened, or is lost again."""
        self._thread.join()
        with contextlib.suppress(load().libvirtError):
            if self._connection is not None and self._connection.isAlive():
                return self._connection
        return None


#: What nobody has taken yet, by URI.
_openings: defaultdict[str, list[_Opening]] = defaultdict(list)


def open_ahead(uri: str, *, count: int) -> None:
    """Begin to open connections that :func:`connect` will return; returns at once, and tells of no failure."""
    _openings[uri] += [_Opening(uri) for _ in range(count)]


def connect(uri: str) -> Any:
    """Return a connection that notices when its daemon is silent; events are to be delivered already. On a thread.

    :raise libvirt.libvirtError: it cannot be opened.
    """
    with contextlib.suppress(IndexError):  # none was opened ahead, or others have taken them
        if (connection := _openings[uri].pop().taken()) is not None:
            return connection
    return _connect(uri)


def close_unused() -> None:
    """Close what was opened ahead and nobody took; a daemon that does not answer is not waited for."""
    unused = [opening for openings in _openings.values() for opening in openings]
    _openings.clear()
    closing = [threading.Thread(target=each.close, name="close libvirt", daemon=True) for each in unused]
    for each in closing:
        each.start()
    until = time.monotonic() + _CLOSE_SECONDS
    for each in closing:
        each.join(max(0.0, until - time.monotonic()))


def _connect(uri: str) -> Any:
    module = load()
    connection = module.open(uri)
    with contextlib.suppress(module.libvirtError):  # one that is too old for it is noticed later
        connection.setKeepAlive(_ALIVE_SECONDS, _ALIVE_MISSED)
    return connection
