"""An evacuation whose own document in the journal is older than its migrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.api.commands import Evacuate
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import fill

pytestmark = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=200 * MIB)
    return service


async def test_what_was_begun_and_ended_after_it_was_written_is_known_and_not_done_again(
    service: SimulatedService,
) -> None:
    fill(service, 4, workload=steady(200 * MIB, 10 * MIB), memory_bytes=512 * MIB)
    async with service.running(killed=True) as running:
        run = await running.ask(Evacuate(host="a"))
        await running.engine.journal_writer.flush(5)
        as_asked = service.journal._documents["evacuation", run.id]
        await running.until(lambda: any(each.state is State.COMPLETED for each in running.sessions()))
        await running.until(lambda: any(each.state is State.PRECOPY for each in running.sessions()))
        await running.engine.journal_writer.flush(5)
        begun = {each.guest.key for each in running.sessions()}
    service.journal._documents["evacuation", run.id] = as_asked
    async with service.running() as running:
        entries = running.run(run.id).entries
        assert {key for key, entry in entries.items() if entry.attempts} == begun
        assert {entry.attempts for entry in entries.values() if entry.attempts} == {1}
        standings = {entry.standing for entry in entries.values()}
        assert {GuestStanding.MOVED, GuestStanding.MIGRATING} <= standings
        end = await running.end_of(run)
        assert (end.state, end.guests_left) == (EvacuationState.COMPLETED, 0)
        migrations = await running.queries.migrations(limit=50)
        assert len(migrations) == len(end.guests) == 4
        assert {each.migration for each in end.guests} == {each.id for each in migrations}
