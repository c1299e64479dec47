"""How fast guests write their memory, measured before it is decided where and when they go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from migrator import logs
from migrator.core.drain.forecast import PROBE_SECONDS
from migrator.core.inventory import Guest
from migrator.engine import clock
from migrator.engine.guest_experiences import GuestExperiences
from migrator.engine.inventory import Inventory
from migrator.engine.migration.quiet_wait import measured_rate
from migrator.engine.registry import Registry
from migrator.errors import MigratorError
from migrator.ports import Site

#: Guests measured at the same time.
_AT_A_TIME = 32


class DirtyRates:
    """Measures them, and tells the inventory."""

    def __init__(
        self, *, site: Site, inventory: Inventory, registry: Registry, experiences: GuestExperiences
    ) -> None:
        self._experiences = experiences
        self._site, self._inventory, self._registry = site, inventory, registry
        self._log = logs.logger()

    async def measure(self, guests: Iterable[Guest]) -> None:
        """Measure all of these at the same time; what cannot be asked is left out, what cannot be measured
        is taken to write as it did at this hour before."""
        slots = asyncio.Semaphore(_AT_A_TIME)

        async def one(guest: Guest) -> None:
            async with slots:
                try:
                    source = await self._site.open(guest.host, guest.socket, role="source")
                    try:
                        rate = await measured_rate(source, seconds=PROBE_SECONDS)
                    finally:
                        await source.close()
                except MigratorError as error:
                    self._log.info("no dirty-rate probe", guest=guest.key, error=str(error))
                    return
            if rate is not None:
                self._experiences.note_rate(guest.key, rate)
            elif (known := self._experiences.of(guest.key)) is not None:
                rate = known.expected_rate(clock.wall())  # what it wrote at this hour before
            if rate is not None:
                self._inventory.note_dirty_rate(guest.key, rate)

        async with asyncio.TaskGroup() as group:
            for guest in guests:
                if not guest.obstacle and self._registry.of_guest(guest.key) is None:
                    group.create_task(one(guest), name=f"probe {guest.key}")
