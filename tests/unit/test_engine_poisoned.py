"""A row that cannot be read is left out and said; everything else is shown, and the service goes on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from migrator import logs
from migrator.api.commands import Evacuate
from migrator.testing.simulated_service import SimulatedService
from tests.unit.test_engine import fill, service  # noqa: F401 - a fixture

pytestmark = pytest.mark.looptime
NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


async def test_rows_of_an_older_version_that_cannot_be_read_end_nothing(
    service: SimulatedService,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(service, 2)
    bad: dict[str, Any] = {"created_at": NOW, "ended_at": None, "state": "precopy"}
    await service.journal.save(
        ("migration", bad | {"id": "m-bad", "_private": {}}),
        ("migration", bad | {"id": "m-none"}),
        ("evacuation", bad | {"id": "e-bad", "host": 7, "_private": {"entries": 5}}),
        ("host", {"id": "a", "state": "upside-down", "ended_at": None}),
    )
    logs.configure(verbose=True, json=True)
    try:
        for host in ("a", "b"):
            async with service.running() as running:
                run = await running.ask(Evacuate(host=host))
                assert (await running.end_of(run)).state == "completed"
                for kind in ("migrations", "evacuations"):
                    shown = await getattr(running.queries, kind)(limit=100)
                    assert shown
                    assert not any(each.id.endswith(("bad", "none")) for each in shown)
                assert await running.queries.migration("m-bad") is None
    finally:
        logs.configure(verbose=False, json=False)
    said = capsys.readouterr().err
    assert "left out: it cannot be read" in said
    assert said.count("m-bad") == 2  # once in each life


async def test_a_guest_that_cannot_be_shown_is_left_out_and_the_others_are_there(
    service: SimulatedService,  # noqa: F811 - the fixture
) -> None:
    fill(service, 3)
    async with service.running() as running:
        known_hosts = running.engine.inventory._known
        first, *rest = known_hosts["a"].guests
        wrong: Any = {"memory_bytes": float("nan"), "name": 5}
        known_hosts.replace(known_hosts["a"], (replace(first, **wrong), *rest))
        assert [guest.name for guest in running.queries.guests()] == [guest.name for guest in rest]
        assert len(running.queries.hosts()) == 3
