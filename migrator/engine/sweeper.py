"""Removes the directories that guests which ended by themselves left at their hosts, some minutes later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from migrator import logs
from migrator.core.inventory import Host
from migrator.errors import MigratorError
from migrator.ports import Site

#: Between two rounds over all hosts.
_PAUSE_SECONDS = 300.0


class Sweeper:
    """Sweeps every host that answers, one after the other.

    :param under_way: whether a migration of that id has not ended: nothing of it is touched.
    """

    def __init__(
        self, site: Site, *, hosts: Callable[[], Iterable[Host]], under_way: Callable[[str], bool]
    ) -> None:
        self._site, self._hosts, self._under_way = site, hosts, under_way
        self._log = logs.logger()

    async def run(self) -> None:
        """Sweep all hosts again and again, until cancelled."""
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            for host in list(self._hosts()):
                if host.up:
                    await self._sweep(host.name)

    async def _sweep(self, host: str) -> None:
        try:
            removed = await self._site.sweep(host, under_way=self._under_way)
        except MigratorError as error:
            self._log.info("not swept", host=host, error=str(error))
            return
        if removed:
            self._log.info("removed what ended guests left", host=host, directories=removed)
