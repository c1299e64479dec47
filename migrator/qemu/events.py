"""The events of one QEMU: kept until somebody reads them, and what they tell of the guest's end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from migrator.core.model import MigrationStatus
from migrator.ports import QemuEvent

#: More events than this unread means that nobody reads; the oldest go, as the truth is in a query anyway.
_EVENTS_KEPT = 1000
#: Near the switch one pass over dirty memory follows the other within milliseconds: they wake somebody once in a while.
_BETWEEN_PASSES_SECONDS = 0.02
#: A guest that stands still is mostly on its way to its switch, which is told within milliseconds; and nothing can be
#: asked until then.
_STOPS_SECONDS = 0.02


class EventBuffer:
    """Events of one QEMU in the order in which they came.

    :param ran: the guest has run in this process.
    :ivar ended: the guest has shut down; the end of a process that only waited for one says nothing of it.
    :ivar quitting: QEMU was told to end: that is not the guest's doing.
    :ivar all: its process is gone, and what it had said was waited for.
    :ivar notify: called after every event that tells of something to be done. Not for passes that follow each other
        closely; nor when the switch goes on as it was told to, or a job pauses and goes on: a look then would be
        answered when the next has come already; and a moment after the guest has stopped.
    """

    def __init__(self, *, ran: bool) -> None:
        self.ended = self.quitting = self.all = False
        self.notify: Callable[[], None] = lambda: None
        self._ran = ran
        self._events: deque[QemuEvent] = deque(maxlen=_EVENTS_KEPT)
        self._passed_at = 0.0
        self._later: asyncio.TimerHandle | None = None

    def take(self) -> Sequence[QemuEvent]:
        """Return the events since the last call, oldest first, and forget them."""
        taken = tuple(self._events)
        self._events.clear()
        return taken

    def record(self, message: Mapping[str, Any]) -> None:
        """Record an event in QMP's form."""
        stamp = message.get("timestamp", {})
        stamped = stamp.get("seconds", -1) + stamp.get("microseconds", 0) / 1e6
        name = str(message.get("event", ""))
        data = message.get("data", {})
        self._ran = self._ran or name == "RESUME"
        # The end of a process in which the guest never ran is not the guest's end, unless the guest itself says so.
        if name == "SHUTDOWN" and not self.quitting and (self._ran or data.get("guest")):
            self.ended = True
        now = time.monotonic()
        self._events.append(QemuEvent(name=name, arrived=now, stamped=stamped, data=data))
        if name == "MIGRATION_PASS":
            if now - self._passed_at < _BETWEEN_PASSES_SECONDS:
                return
            self._passed_at = now
        if (name == "MIGRATION" and data.get("status") == MigrationStatus.DEVICE) or (
            name == "JOB_STATUS_CHANGE"
        ):
            return
        if name == "STOP":
            self._later = asyncio.get_running_loop().call_later(_STOPS_SECONDS, self._notify)
        else:
            self._notify()

    def _notify(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self.notify()
