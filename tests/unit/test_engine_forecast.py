"""What an evacuation foretells of its end: preparing counts, and what has not ended does not end in the past."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from migrator.api.commands import Activate, Evacuate, Plan, Restore
from migrator.api.documents import EvacuationDocument
from migrator.core.drain.states import EvacuationState
from migrator.core.inventory import HostState
from migrator.engine.evacuation_documents import evacuation_document
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import Driver, World, fill

pytestmark = pytest.mark.looptime
SLOW_SECONDS = 30.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for name in ("a", "b"):
        world.site.add_host(name, link=1000 * MIB)
        world.site.hosts[name].start_seconds = SLOW_SECONDS
    fill(world, 1, workload=steady(64 * MIB, 1 * MIB))
    return world


async def emptied(driver: Driver) -> list[tuple[float, float, float]]:
    """Empties a: at each moment the seconds that were foretold (median, and how wide), and those that were right."""
    run = await driver.ask(Evacuate(host="a"))
    clock = asyncio.get_running_loop().time
    seen: list[tuple[float, EvacuationDocument, datetime]] = []
    while not driver.run(run.id).ended:
        seen.append((clock(), evacuation_document(driver.run(run.id)), datetime.now(UTC)))
        await asyncio.sleep(0.5)
    assert driver.run(run.id).state is EvacuationState.COMPLETED
    told = []
    for at, document, now in seen:
        low, middle, high = (
            document.forecast_end_p10_at,
            document.forecast_end_at,
            document.forecast_end_p90_at,
        )
        if middle is None or low is None or high is None:
            continue
        assert now <= low <= middle <= high, "in the past"
        wide = (high - low).total_seconds()
        told.append(((middle - now).total_seconds(), wide, clock() - at))
    return told


async def test_preparing_is_part_of_it(world: World) -> None:
    async with world.engine() as driver:
        first = await emptied(driver)
        # Nobody knew how slow it is; once that shows, it is never said to end at once.
        assert all(median > 2 for median, _, left in first if SLOW_SECONDS - 15 > left > 5)
        await driver.ask(Activate(host="a"))
        back = await driver.ask(Restore(host="a"))
        await driver.end_of(back)
        plan = await driver.ask(Plan(host="a"))
        assert plan.takes_p50_seconds > SLOW_SECONDS
        again = await emptied(driver)
        median, wide, left = again[0]
        assert left > SLOW_SECONDS
        assert left - 5 < median < left + 5
        assert wide > 10, "an interval of a second would say that it is known exactly"


async def test_it_is_known_after_a_restart_too(world: World) -> None:
    async with world.engine() as driver:
        await emptied(driver)
        assert driver.queries.host("a").state is HostState.MAINTENANCE
        back = await driver.ask(Restore(host="a"))
        await driver.end_of(back)
    async with world.engine() as driver:
        assert (await driver.ask(Plan(host="a"))).takes_p50_seconds > SLOW_SECONDS
