"""How fast guests write their memory, measured before it is decided where and when they go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from migrator import logs
from migrator.core.drain.forecast import PROBE_SECONDS
from migrator.core.inventory import Guest
from migrator.engine.inventory import Inventory
from migrator.engine.registry import Registry
from migrator.errors import MigratorError, QemuError
from migrator.ports import Site, SourceQemu

#: A probe's answer is waited for so long.
_ANSWER_SECONDS = 5.0
#: Guests measured at the same time.
_AT_A_TIME = 32


class DirtyRates:
    """Measures them, and tells the inventory."""

    def __init__(self, *, site: Site, inventory: Inventory, registry: Registry) -> None:
        self._site, self._inventory, self._registry = site, inventory, registry
        self._log = logs.logger()

    async def measure(self, guests: Iterable[Guest]) -> None:
        """Measure all of these at the same time; what cannot be asked is left out."""
        slots = asyncio.Semaphore(_AT_A_TIME)

        async def one(guest: Guest) -> None:
            async with slots:
                try:
                    source = await self._site.open(guest.host, guest.socket, role="source")
                    try:
                        rate = await _measured(source)
                    finally:
                        await source.close()
                except MigratorError as error:
                    self._log.info("no dirty-rate probe", guest=guest.key, error=str(error))
                    return
            if rate is not None:
                self._inventory.note_dirty_rate(guest.key, rate)

        async with asyncio.TaskGroup() as group:
            for guest in guests:
                if not guest.obstacle and self._registry.of_guest(guest.key) is None:
                    group.create_task(one(guest), name=f"probe {guest.key}")


async def _measured(source: SourceQemu) -> float | None:
    await source.start_dirty_rate(PROBE_SECONDS, exact=True)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await asyncio.sleep(PROBE_SECONDS)
            while (rate := await source.dirty_rate()) is None:
                await asyncio.sleep(0.1)
            return rate
    except (TimeoutError, QemuError):
        return None
