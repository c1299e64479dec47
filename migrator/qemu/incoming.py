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
    if uri.startswith("file:"):
        return uri  # nobody connects: it reads
    for _ in range(_ASKED):
        if listening := await addresses(monitor):
            return listening[0]
        await asyncio.sleep(_PAUSE_SECONDS)
    raise CommandFailed(monitor.name, "migrate-incoming", "GenericError", f"it never listened at {uri}")


async def addresses(monitor: Monitor) -> list[str]:
    """Return the addresses at which it takes, or took, a stream.

    :raise QemuError: it cannot be asked.
    """
    migrate = await monitor.execute("query-migrate")
    found = []
    for address in migrate.get("socket-address", ()):
        if address.get("type") == "inet":
            found.append(f"tcp:{bracketed(address['host'])}:{address['port']}")
        if address.get("type") == "unix":
            found.append(f"unix:{address['path']}")
    return found
