"""The engine's clock: the event loop's, so that a test can let an hour pass in a moment."""

from __future__ import annotations

import asyncio
import time


def now() -> float:
    """Return the loop's time in seconds; without a running loop that of the clock that loops go by."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


def wall() -> float:
    """Return the seconds since the epoch, which a record and another controller can make use of."""
    return time.time() - time.monotonic() + now()
