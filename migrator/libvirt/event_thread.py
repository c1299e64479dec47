"""libvirt's event loop, on a thread of its own: one for the whole process, as libvirt has it."""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import Any

from migrator.libvirt.binding import load

#: Seconds after which a loop that failed goes on.
_AGAIN_SECONDS = 1.0


#: It is begun once, whichever thread opens the first connection.
_beginning = threading.Lock()


def run_events() -> None:
    """Have events delivered from now on; before the first connection is opened.

    :raise UsageError: the binding is not installed.
    """
    with _beginning:
        _begun()


@cache
def _begun() -> None:
    module = load()
    module.virEventRegisterDefaultImpl()
    threading.Thread(target=_run, args=(module,), name="libvirt events", daemon=True).start()


def _run(module: Any) -> None:
    while True:
        try:
            module.virEventRunDefaultImpl()
        except module.libvirtError:
            time.sleep(_AGAIN_SECONDS)
