"""What an evacuation foretells of its end: preparing counts, and what has not ended does not end in the past."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from migrator.api.commands import Activate, Evacuate, Plan, Restore
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.core.drain.states import EvacuationState
from migrator.core.inventory import HostState
from migrator.engine.evacuation_documents import evacuation_document
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import fill

pytestmark = pytest.mark.looptime
SLOW_SECONDS = 30.0


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name, link=1000 * MIB)
        service.site.hosts[name].start_seconds = SLOW_SECONDS
    fill(service, 1, workload=steady(64 * MIB, 1 * MIB))
    return service


async def emptied(running: RunningEngine) -> list[tuple[float, float, float]]:
    """Empties a: at each moment the seconds that were foretold (median, and how wide), and those that were right."""
    run = await running.ask(Evacuate(host="a"))
    clock = asyncio.get_running_loop().time
    seen: list[tuple[float, EvacuationDocument, datetime]] = []
    while not running.run(run.id).ended:
        seen.append((clock(), evacuation_document(running.run(run.id)), datetime.now(UTC)))
        await asyncio.sleep(0.5)
    assert running.run(run.id).state is EvacuationState.COMPLETED
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


async def test_preparing_is_part_of_it(service: SimulatedService) -> None:
    async with service.running() as running:
        first = await emptied(running)
        # Nobody knew how slow it is; once that shows, it is never said to end at once.
        assert all(median > 2 for median, _, left in first if SLOW_SECONDS - 15 > left > 5)
        await running.ask(Activate(host="a"))
        back = await running.ask(Restore(host="a"))
        await running.end_of(back)
        plan = await running.ask(Plan(host="a"))
        assert plan.takes_p50_seconds > SLOW_SECONDS
        again = await emptied(running)
        median, wide, left = again[0]
        assert left > SLOW_SECONDS - 1
        assert left - 5 < median < left + 5
        assert wide > 10, "an interval of a second would say that it is known exactly"


async def test_it_is_known_after_a_restart_too(service: SimulatedService) -> None:
    async with service.running() as running:
        await emptied(running)
        assert running.queries.host("a").state is HostState.MAINTENANCE
        back = await running.ask(Restore(host="a"))
        await running.end_of(back)
    async with service.running() as running:
        assert (await running.ask(Plan(host="a"))).takes_p50_seconds > SLOW_SECONDS
