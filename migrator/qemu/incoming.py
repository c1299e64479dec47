"""A destination that begins to listen for the stream of a migration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from migrator.addresses import bracketed
from migrator.core.model import RunState
from migrator.errors import CommandFailed
from migrator.qemu.claim import DriverClaim
from migrator.qemu.features import Features
from migrator.qemu.monitor import Monitor

#: So often, and so many seconds apart, is asked whether it listens.
_ASKED, _PAUSE_SECONDS = 50, 0.01


async def listen(
    monitor: Monitor, claim: DriverClaim, features: Callable[[], Awaitable[Features]], uri: str
) -> str:
    """Disarm the destination (it must not run by itself), have it listen, and return the address to migrate to.

    :param features: reads what this QEMU knows; asked once it is disarmed.
    :param uri: where it shall listen.
    :raise CommandFailed: it does not wait for a guest, or cannot listen there.
    :raise QemuError: it cannot be asked.
    """
    run = RunState((await monitor.execute("query-status")).get("status", "other"))
    if run is not RunState.INMIGRATE:  # "stop" would halt a guest that runs there
        raise CommandFailed(
            monitor.name, "stop", "GenericError", f"it does not wait for a guest (it is {run})"
        )
    # Disarms a destination that was started without -S: in inmigrate this clears its autostart.
    await claim.execute("stop")
    arguments: dict[str, Any] = {"uri": uri}
    if (await features()).takes("migrate-incoming", "exit-on-error"):
        arguments["exit-on-error"] = False  # it stays to tell why it failed
    try:
        await claim.execute("migrate-incoming", arguments)
    except CommandFailed as error:  # QEMU does not always say which address it could not have
        raise CommandFailed(
            monitor.name, f"migrate-incoming {uri}", error.error_class, error.description
        ) from error
    for _ in range(_ASKED):
        migrate = await monitor.execute("query-migrate")
        for address in migrate.get("socket-address", ()):
            if address.get("type") == "inet":
                return f"tcp:{bracketed(address['host'])}:{address['port']}"
            if address.get("type") == "unix":
                return f"unix:{address['path']}"
        await asyncio.sleep(_PAUSE_SECONDS)
    raise CommandFailed(monitor.name, "migrate-incoming", "GenericError", f"it never listened at {uri}")
