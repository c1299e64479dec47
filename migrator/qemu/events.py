"""The events of one QEMU: kept until somebody reads them, and what they tell of the guest's end."""

from __future__ import annotations

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


class EventBuffer:
    """Events of one QEMU in the order in which they came.

    :param ran: the guest has run in this process.
    :ivar ended: the guest has shut down; the end of a process that only waited for one says nothing of it.
    :ivar quitting: QEMU was told to end: that is not the guest's doing.
    :ivar all: its process is gone, and what it had said was waited for.
    :ivar notify: called after every event, but for passes that follow each other closely, and for the one that tells
        that the switch goes on as it was told to: a look then would be answered when the end has come already.
    """

    def __init__(self, *, ran: bool) -> None:
        self.ended = self.quitting = self.all = False
        self.notify: Callable[[], None] = lambda: None
        self._ran = ran
        self._events: deque[QemuEvent] = deque(maxlen=_EVENTS_KEPT)
        self._passed_at = 0.0

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
        if name == "MIGRATION" and data.get("status") == MigrationStatus.DEVICE:
            return
        self.notify()
