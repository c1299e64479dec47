"""The configuration that the service runs by, and another one taken over while it runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from migrator import logs
from migrator import settings as configuration
from migrator.errors import MigratorError
from migrator.settings import Settings, reloading

#: Makes ready to take a configuration over, which may be refused; what it returns does it, and cannot fail.
Prepare = Callable[[Settings], Callable[[], None]]


class InForce:
    """What holds now.

    :param path: the file that it is read from.
    :param parts: whatever runs by it.
    """

    def __init__(self, settings: Settings, path: Path | None, *, parts: Sequence[Prepare] = ()) -> None:
        self.settings = settings
        self._path, self._parts = path, tuple(parts)

    def extend(self, *parts: Prepare) -> None:
        """These run by it too."""
        self._parts += parts

    async def reload(self) -> list[tuple[str, str]]:
        """Read it again and put all of it in force; each key that is different, and when it is in force.

        :raise MigratorError: something is wrong in it, or takes a restart: nothing is changed.
        """
        new = await asyncio.to_thread(configuration.reload, self.settings, self._path)
        changed = list(reloading.changes(self.settings, new))
        ready = [prepare(new) for prepare in self._parts]
        self.settings = new
        for take_over in ready:
            take_over()
        return changed

    async def reload_on_hup(self) -> None:
        """SIGHUP: everything of the new configuration, or nothing."""
        log, asked = logs.logger(), asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
        while True:
            await asked.wait()
            asked.clear()
            try:
                changed = await self.reload()
            except MigratorError as error:
                log.warning("configuration not reloaded", error=str(error))
                continue
            files = [str(file) for file in self.settings.files]
            log.info("configuration reloaded", files=files, changed=[key for key, _ in changed])
