"""Cyclic garbage of the service goes away, and Python's own collection is as before at its end."""

from __future__ import annotations

import asyncio
import gc
import weakref

from migrator.service.garbage import GarbageCollection
from migrator.testing.process import until


class _Thing:
    def __init__(self) -> None:
        self.itself = self


async def test_garbage_goes_away_while_the_service_runs() -> None:
    before = gc.get_threshold()
    running = asyncio.create_task(GarbageCollection().run())
    thing = weakref.ref(_Thing())

    async def gone() -> bool:
        return thing() is None

    try:
        await until(gone, what="the end of garbage")
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
