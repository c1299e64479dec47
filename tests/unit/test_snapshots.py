"""What a plan is made of: a migration is seen as it is, though a snapshot is kept where nothing of it is different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from migrator.core.drain.preparations import Preparations
from migrator.core.policy import builtin
from migrator.engine.registry import Registry
from migrator.engine.remote_sessions import RemoteSession
from migrator.engine.reservations import Reservations
from migrator.engine.snapshots import Snapshots
from migrator.ports.assignments import Assignment
from migrator.testing.simulated_service import SimulatedService


async def test_one_that_another_controller_drives_is_seen_to_be_ready(tmp_path: Path) -> None:
    service = SimulatedService(tmp_path)
    service.site.add_host("a")
    service.site.add_host("b")
    service.site.add_guest("vm-1", host="a")
    async with service.running() as running:
        engine, registry = running.engine, Registry()
        await running.until(lambda: bool(engine.inventory.guests()))
        saved = engine.sessions.make(engine.inventory.guests()[0], "b", builtin("default")).journalled()
        given = Assignment(
            migration=saved["id"],
            driver="other",
            driver_token=1,
            number=1,
            session=saved | {"state": "preparing"},
        )
        session = RemoteSession.of(
            given.session, given, services=engine.services, request=lambda _: None, on_ready=lambda _: None
        )
        registry.add(session)
        snapshots = Snapshots(
            registry=registry,
            inventory=engine.inventory,
            reservations=Reservations(),
            preparations=Preparations(),
            rules=lambda: service.rules,
        )
        report = {
            "session": given.session,
            "trail": [],
            "ready": False,
            "refusal": None,
            "unreachable": False,
            "left_behind": [],
        }
        session.take(replace(given, report=report))
        [first] = snapshots.take().migrations
        assert snapshots.take().migrations == [first]
        assert not first.ready
        session.take(replace(given, report=report | {"ready": True}))
        [then] = snapshots.take().migrations
        assert then.ready
