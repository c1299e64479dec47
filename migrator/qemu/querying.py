"""Queries to a QEMU that may be too old, or too new, for them."""

from __future__ import annotations

from typing import Any

from migrator.errors import CommandFailed
from migrator.qemu.monitor import Monitor

#: Seconds that one answer may take.
QUERY_SECONDS = 20.0


async def query(monitor: Monitor, command: str, *, otherwise: Any = None, **arguments: Any) -> Any:
    """Execute a query; return `otherwise`, if that is given, where this QEMU has no such thing.

    :raise CommandFailed: QEMU refused, and there is no `otherwise`.
    :raise QemuError: when it cannot be asked.
    """
    try:
        return await monitor.execute(command, arguments or None, timeout=QUERY_SECONDS)
    except CommandFailed:
        if otherwise is None:
            raise
        return otherwise
