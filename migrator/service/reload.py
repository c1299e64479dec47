"""SIGHUP: everything of a new configuration, or nothing."""

from __future__ import annotations

import asyncio
import signal

from migrator import logs
from migrator.errors import MigratorError
from migrator.settings import LiveSettings


async def reload_on_hup(live: LiveSettings) -> None:
    """Read the configuration again at each SIGHUP, and say what came of it; until cancelled."""
    log, asked = logs.logger(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    while True:
        await asked.wait()
        asked.clear()
        try:
            changed = await live.reload()
        except MigratorError as error:
            log.warning("configuration not reloaded", error=str(error))
            continue
        files = [str(file) for file in live.settings.files]
        log.info("configuration reloaded", files=files, changed=[key for key, _ in changed])
