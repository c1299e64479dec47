"""Cyclic garbage of the service goes away, and Python's own collection is as before at its end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from migrator.service.garbage import GarbageCollection, is_due
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


@pytest.mark.parametrize(
    ("more", "how", "due"),
    [
        (100_000, {"under_way": 0}, True),
        (20_000, {"under_way": 0}, False),
        (100_000, {"under_way": 10}, False),
        (600_000, {"under_way": 10}, True),
        (600_000, {"under_way": 10, "switching": True}, False),
        (6_000_000, {"under_way": 10, "switching": True}, True),
        (4_000_000, {"under_way": 1000, "begun": 1000}, False),
        (4_000_000, {"under_way": 1000, "begun": 0}, True),
    ],
)
def test_what_a_thousand_migrations_take_that_begin_is_not_looked_through(
    more: int, how: dict[str, Any], due: bool
) -> None:
    # Nobody is steered meanwhile, and no lease is renewed.
    assert is_due(more, left=1_000_000, **{"begun": 0, "switching": False, **how}) is due
