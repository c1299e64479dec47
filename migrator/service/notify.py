"""Tells systemd that the service is ready, lives, or stops (sd_notify(3)); does nothing where nobody asked."""

from __future__ import annotations

import asyncio
import os
import socket


def notify(state: str) -> None:
    """Send `state` to ``$NOTIFY_SOCKET``; a message that cannot be sent is of no importance."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    address = f"\0{where[1:]}" if where.startswith("@") else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return


async def watchdog() -> None:
    """Feed the watchdog for as long as the event loop turns; until cancelled."""
    seconds = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    while seconds > 0:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds / 3)
