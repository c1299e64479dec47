"""The engine's clock: the event loop's, so that a test can let an hour pass in a moment."""

from __future__ import annotations

import asyncio
import time


def now() -> float:
    """Seconds; without a running loop the clock that loops go by."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


def wall() -> float:
    """Seconds since the epoch: what a record, and another controller, can make something of."""
    return time.time() - time.monotonic() + now()
