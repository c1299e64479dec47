"""The stream of a postcopy migration that broke: given up at an end, and taken up again."""

from __future__ import annotations

from migrator.addresses import bracketed
from migrator.errors import CommandFailed
from migrator.qemu.monitor import Monitor

#: Where kernels take ports that nobody asks for by number. Port 0 would do for QEMU, but which one it then has is told
#: by a query that a destination does not answer while its main loop waits for a page.
_PORTS = range(32_768, 60_999)
_TRIES = 10
_SECONDS = 3.0


async def pause(monitor: Monitor) -> None:
    """Have this end close its stream; both commands here are out of band, as its main loop may wait for a page.

    :raise CommandFailed: it has no stream that could be paused, or (before 9.1) is in the midst of a recovery.
    :raise QemuError: it cannot be told.
    """
    await monitor.execute("migrate-pause", oob=True, timeout=_SECONDS)


async def listen_again(monitor: Monitor, address: str) -> str:
    """Have a destination whose stream is paused listen there anew, and return where; what it listened at is closed.

    :raise CommandFailed: it cannot listen at that address, or its stream is not paused.
    :raise QemuError: it cannot be told.
    """
    import random  # noqa: PLC0415 - slow, and streams break seldom

    tries = _TRIES
    while True:
        tries -= 1
        uri = f"tcp:{bracketed(address)}:{random.choice(_PORTS)}"  # noqa: S311 - no secret
        try:
            await monitor.execute("migrate-recover", {"uri": uri}, oob=True, timeout=_SECONDS)
        except CommandFailed as error:
            if "in use" not in error.description or not tries:
                raise
            continue
        return uri
