"""Two versions on one journal: the newer one acts, and what the older one cannot read it leaves as it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from migrator.api.commands import Migrate
from migrator.core.inventory import Guest
from migrator.core.model import State
from migrator.core.policy import builtin, from_fields, to_fields
from migrator.ports.controllers import ControllerInfo
from migrator.store.journal import SqlJournal
from migrator.store.presence import Heartbeat
from migrator.store.sole_use import SoleUse
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB, steady
from tests.journals import run_sql
from tests.unit.test_engine import fill

_SECONDS = 6.0


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


class Controllers:
    """Processes of several versions that use one journal."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self._path, self._stack = path, stack

    async def begin(self, version: str) -> tuple[SqlJournal, Heartbeat]:
        journal = await SqlJournal.open(self._path, alone=False)
        await self._stack.enter_async_context(journal)
        info = ControllerInfo(name=version, instance=f"with-{version}", version=version, role="standby")
        heartbeat = Heartbeat(journal, info=info, seconds=_SECONDS)
        await heartbeat.beat()
        return journal, heartbeat

    async def acts(self, journal: SqlJournal, heartbeat: Heartbeat) -> bool:
        """Tell whether it gets the journal at its first attempt."""
        asked = asyncio.Event()

        async def stop() -> None:
            await asked.wait()

        await heartbeat.beat()
        sole_use = await SoleUse.begin(
            journal,
            owner=heartbeat.name,
            seconds=_SECONDS,
            stop=stop,
            standing_by=asked.set,
            may=heartbeat.holds,
            newer=heartbeat.newer,
        )
        return sole_use is not None


async def test_older_one_acts_only_where_no_newer_one_is_there(tmp_path: Path, stack: AsyncExitStack) -> None:
    path = tmp_path / "journal.db"
    controllers = Controllers(path, stack)
    older, newer = await controllers.begin("1.9.0"), await controllers.begin("1.10.0")
    assert not await controllers.acts(*older)
    assert older[1].newer() == "with-1.10.0 (1.10.0)"
    assert newer[1].newer() == ""
    late = round((_SECONDS + 1) * 1e6)
    await run_sql(path, f"UPDATE leases SET ends_at = ends_at - {late} WHERE name = 'controller/1.10.0'")
    assert await controllers.acts(*older)


def test_policy_is_written_so_that_older_versions_read_all_that_they_know() -> None:
    for name in ("default", "offline", "postcopy-first"):
        assert from_fields(to_fields(builtin(name))) == builtin(name)
        assert from_fields(asdict(builtin(name))) == builtin(name), "as it was written before"
    assert "disks" not in to_fields(builtin("default"))
    with pytest.raises(TypeError, match="unheard_of"):
        from_fields(to_fields(builtin("default")) | {"unheard_of": "must"})


def test_what_a_newer_version_knows_of_a_guest_is_left_out() -> None:
    guest = Guest(key="k", uuid="u", name="vm", host="a")
    assert Guest.from_fields(guest.fields() | {"unheard_of": 1}) == guest


@pytest.mark.looptime
async def test_migration_that_cannot_be_read_is_left_as_it_is_with_its_record(tmp_path: Path) -> None:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name, link=200 * MIB)
    fill(service, 1, workload=steady(200 * MIB, 10 * MIB), memory_bytes=512 * MIB)
    async with service.running(killed=True) as running:
        asked = await running.ask(Migrate(guest="vm-0", to="b"))
        await running.until(lambda: running.sessions()[0].state is State.PRECOPY)
        await running.engine.journal_writer.flush(5)
    documents, key = service.journal._documents, ("migration", asked.id)
    written = json.loads(documents[key])
    newer = json.loads(documents[key])
    newer["_private"]["policy"]["unheard_of"] = "must"
    documents[key] = json.dumps(newer)
    async with service.running() as running:
        assert running.engine.unread == [asked.id]
        assert running.sessions() == []
        assert running.engine.registry.is_under_way(asked.id), (
            "nothing of it is swept, or taken from its driver"
        )
        [left] = running.engine.left_records
        assert "this version cannot read it" in left
    assert json.loads(documents[key]) == newer
    documents[key] = json.dumps(written)
    async with service.running() as running:
        [again] = running.sessions()
        await running.until(lambda: again.state is State.COMPLETED)
