"""What an evacuation under way says of guests that cannot end inside their policy; over a simulated site."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Evacuate
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.cli.show_service import evacuation_lines
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.engine.evacuation_documents import evacuation_document
from migrator.settings.models import LimitsSettings
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name, link=1000 * MIB)
    service.site.add_guest("quiet", host="a", memory_bytes=8192 * MIB, workload=steady(16 * MIB, 1 * MIB))
    service.site.add_guest("wild", host="a", memory_bytes=8192 * MIB, workload=steady(4096 * MIB, 2000 * MIB))
    return service


async def begun(running: RunningEngine, policy: str, **how: Any) -> EvacuationDocument:
    """As it is once there is a forecast."""
    rules = running.engine.rules
    running.engine.rules = replace(rules, limits=LimitsSettings(attempts=1))
    run = await running.ask(Evacuate(host="a", policy=policy, **how))
    await running.until(
        lambda: any(each.starts_in_seconds is not None for each in running.run(run.id).forecasts.values()), 30
    )
    return evacuation_document(running.run(run.id))


def of(run: EvacuationDocument, name: str) -> Any:
    return next(each for each in run.guests if each.guest_name == name)


async def test_guest_that_will_not_end_under_its_policy_is_told_before_it_is_tried(
    service: SimulatedService,
) -> None:
    async with service.running() as running:
        run = await begun(running, "gentle", deadline=datetime.now(UTC) + timedelta(days=1))
        wild = of(run, "wild")
        assert wild.doubt.startswith("not expected to end: it dirties 2")
        assert "policy gentle allows nothing" in wild.doubt
        assert of(run, "quiet").doubt == ""
        assert run.at_risk
        # The forecast is of those that can go: the other would need as long as it is given.
        assert run.forecast_end_at is not None
        assert run.forecast_end_at < run.created_at + timedelta(minutes=2)
        said = evacuation_lines(run.model_dump(mode="json"))
        assert any("deadline" in line and line.endswith(": at risk") for line in said)
        assert any("forecast to end" in line and "without those" in line for line in said)
        assert any("wild" in line and "not expected to end" in line for line in said)

        end = await running.end_of(run)
        assert end.state is EvacuationState.INCOMPLETE
        assert of(end, "wild").standing is GuestStanding.SET_ASIDE
        assert of(end, "wild").doubt == ""  # what came of it is said instead
        assert end.at_risk


async def test_doubt_stays_while_it_is_tried(service: SimulatedService) -> None:
    async with service.running() as running:
        run = await begun(running, "gentle", deadline=datetime.now(UTC) + timedelta(days=1))
        lost = []

        def tried() -> bool:
            live = running.run(run.id)
            key, wild = next(each for each in live.entries.items() if each[1].guest.name == "wild")
            if key not in live.forecasts or not live.forecasts[key].doubt or not live.at_risk:
                lost.append((wild.standing, wild.reason))
            return wild.standing is GuestStanding.SET_ASIDE

        await running.until(tried)
        assert lost == []


async def test_where_the_policy_lets_everyone_end_nothing_is_doubted(service: SimulatedService) -> None:
    async with service.running() as running:
        run = await begun(running, "must-finish", deadline=datetime.now(UTC) + timedelta(days=1))
        doubted: list[str] = []

        def ended() -> bool:
            doubted.extend(each.doubt for each in running.run(run.id).forecasts.values() if each.doubt)
            return running.run(run.id).ended

        await running.until(ended)
        assert doubted == []
        assert not running.run(run.id).at_risk
        assert running.run(run.id).state is EvacuationState.COMPLETED


async def test_what_a_running_migration_finds_out_is_believed(service: SimulatedService) -> None:
    """Nobody knew how fast it writes when it was begun."""
    async with service.running() as running:
        run = await begun(running, "gentle")
        (wild,) = [key for key, entry in running.run(run.id).entries.items() if entry.guest.name == "wild"]
        await running.until(
            lambda: any(job.guest.name == "wild" for job in running.engine.registry.migrations.values())
        )
        (job,) = [each for each in running.engine.registry.migrations.values() if each.guest.name == "wild"]
        job.guest = replace(job.guest, dirty_rate_bytes_per_second=None)
        running.engine.registry.change(run.id, lambda run: replace(run, forecasts={}))
        forecasts = lambda: running.run(run.id).forecasts  # noqa: E731
        await running.until(lambda: (wild in forecasts() and bool(forecasts()[wild].doubt)) or job.ended)
        assert job.state is State.PRECOPY
        assert "it will not end while the guest goes on like that" in forecasts()[wild].doubt
        assert not running.run(run.id).at_risk  # nothing is missed where nobody said by when
