"""Jobs and exports of the guest's disks: waited for before a migration, and seen before its switch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeAlias

import pytest

from migrator.cli.direct_network import DirectGuestNetworks
from migrator.cli.direct_pair import GivenGuest, GivenPair
from migrator.cli.direct_records import PairRecords
from migrator.cli.direct_tls import DirectTls
from migrator.cli.over_ssh import OverSsh
from migrator.core.findings import accept
from migrator.core.model import MigrationStatus, State
from migrator.core.policy import BlockJobs, Policy, builtin
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.services import SessionServices
from migrator.engine.migration.session import MigrationSession
from migrator.errors import Refused
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.store.records import FileRecord
from migrator.testing.lab import Habit, Lab, Pair, RawMonitor, until
from tests.command import ACCEPTED_CODES
from tests.conftest import MakePair

Begin: TypeAlias = Callable[[RawMonitor, Path], Awaitable[None]]
GENTLE = builtin("gentle").but(max_downtime_seconds=1.0)
#: Dirtied so fast that it takes a while under the bandwidth that the test gives.
BUSY = Habit(region_bytes=16 << 20, bytes_per_second=8 << 20)


class Move:
    """One migration between two QEMUs, with what it showed."""

    def __init__(self, pair: Pair, policy: Policy, *, source: type[Endpoint] = Endpoint) -> None:
        self.source = source(Address(kind="unix", path=str(pair.source.qmp)), role="source")
        there = Address(kind="unix", path=str(pair.destination.qmp))
        self.destination = Endpoint(there, role="destination")
        self.record = FileRecord("move")
        self.states: list[State] = []
        self.migration = MigrationDriver(
            name="move",
            source=self.source,
            destination=self.destination,
            policy=policy,
            listen="tcp:127.0.0.1:0",
            record=self.record,
            on_status=self._note,
        )

    def _note(self, status: MigrationProgress) -> None:
        if status.state not in self.states[-1:]:
            self.states.append(status.state)

    async def __aenter__(self) -> Self:
        await asyncio.gather(self.source.connect(), self.destination.connect())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.record.close()
        await asyncio.gather(self.source.close(), self.destination.close())


class Driven:
    """The same by a session, from its request on."""

    def __init__(self, pair: Pair, policy: Policy) -> None:
        here, there = (Address(kind="unix", path=str(end.qmp)) for end in (pair.source, pair.destination))
        self._pair = GivenPair(
            Endpoint(here, role="source"),
            Endpoint(there, role="destination"),
            networks=DirectGuestNetworks(OverSsh(), here, there),
            tls=DirectTls(OverSsh(), here, there, directory=None, name=None, listen="tcp:127.0.0.1:0"),
            listen="tcp:127.0.0.1:0",
            tell=print,
        )
        self._records = PairRecords(None)
        self.states: list[State] = []
        self.session = MigrationSession(
            identifier="move",
            guest=GivenGuest(host=str(here), socket=str(here)),
            target=str(there),
            policy=policy,
            services=SessionServices(
                site=self._pair, records=self._records, accept=accept, keep=_keep, claims_before_start=False
            ),
            accepted=ACCEPTED_CODES,
            on_status=self._note,
        )
        self.session.admit()

    def _note(self, status: MigrationProgress) -> None:
        if status.state not in self.states[-1:]:
            self.states.append(status.state)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._records.close()
        await self._pair.close()


async def _keep(session: MigrationSession) -> None:
    """Nothing keeps it."""


async def mirror(monitor: RawMonitor, directory: Path) -> None:
    """A job that is ready for ever."""
    target = {"driver": "null-co", "node-name": "copy", "size": 1 << 20, "read-zeroes": True}
    await monitor.execute("blockdev-add", target)
    await monitor.execute(
        "blockdev-mirror", {"device": "disk0", "target": "copy", "sync": "none", "job-id": "copying"}
    )


async def export(monitor: RawMonitor, directory: Path) -> None:
    listen = {"type": "unix", "data": {"path": str(directory / "nbd.sock")}}
    await monitor.execute("nbd-server-start", {"addr": listen})
    await monitor.execute("block-export-add", {"type": "nbd", "id": "fleece", "node-name": "disk0"})


class TestBefore:
    async def test_a_job_and_an_export_are_waited_for(
        self, pair: MakePair, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        made = await pair(one_crossing)
        async with Driven(made, GENTLE) as move:
            async with made.source.monitor() as monitor:
                await mirror(monitor, lab.directory)
                await export(monitor, lab.directory)
            waiting = asyncio.create_task(move.session.drive())
            await until(lambda: State.WAITING in move.states, what="it waits")
            # There is nobody at its monitor meanwhile but for a moment.
            async with RawMonitor(made.source.qmp) as monitor:
                await monitor.execute("block-export-del", {"id": "fleece"})
                await monitor.execute("block-job-cancel", {"device": "copying", "force": True})
            await asyncio.wait_for(waiting, 40)
            assert move.states[move.states.index(State.WAITING) + 1] is State.PREPARING
            result = move.session.result
        assert result.state is State.COMPLETED, result.error
        waits = [each.reason for each in result.decisions if each.action == "wait"]
        assert waits[0].startswith("waits for mirror copying")
        assert "nbd export fleece" in waits[0]
        assert await lab.counting() == [made.destination]

    async def test_not_for_longer_than_the_policy_allows_nor_when_it_says_refuse(
        self, pair: MakePair, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        made = await pair(one_crossing)
        async with made.source.monitor() as monitor:
            await mirror(monitor, lab.directory)
        async with Driven(made, GENTLE.but(max_duration_seconds=0.2)) as move:
            await move.session.drive()
            assert isinstance(move.session.failure, Refused)
            assert re.search(r"mirror copying.* max_duration .*job-cancel", str(move.session.failure))
        async with Driven(made, replace(GENTLE, block_jobs=BlockJobs.REFUSE)) as move:
            await move.session.drive()
            assert move.session.refused
            assert {"block-job"} <= {each.code for each in move.session.result.findings}
            assert State.WAITING not in move.states
        assert await lab.counting() == [made.source]


class LateJob(Endpoint):
    """A source in which a job begins as late as one can: it is at the last safe point already."""

    begin: Callable[[], Coroutine[None, None, None]]
    begun: asyncio.Task[None] | None = None

    async def disk_users(self) -> DiskUsers:
        if (await self.observe()).status is MigrationStatus.PRE_SWITCHOVER:
            self.begun = self.begun or asyncio.create_task(self.begin())
            await asyncio.shield(self.begun)  # who asks waits for a moment only, and asks again
        return await super().disk_users()


class TestMeanwhile:
    @pytest.mark.parametrize("late", [mirror, export])
    async def test_what_begins_while_memory_is_copied_ends_the_migration(
        self, pair: MakePair, lab: Lab, each_qemu: Path, late: Begin
    ) -> None:
        made = await pair((each_qemu, each_qemu), habit=BUSY)
        async with Move(made, GENTLE.but(max_bandwidth_bytes_per_second=4 << 20)) as move:
            await move.migration.check()
            running = asyncio.create_task(move.migration.run())
            await until(lambda: State.PRECOPY in move.states, what="it copies")
            async with made.source.monitor() as monitor:
                await late(monitor, lab.directory)
            result = await asyncio.wait_for(running, 40)
        await self.stays(made, lab, result)
        assert State.SWITCHOVER not in move.states

    @pytest.mark.parametrize("late", [mirror, export])
    async def test_so_does_what_begins_at_the_last_safe_point(
        self, pair: MakePair, lab: Lab, each_qemu: Path, late: Begin
    ) -> None:
        made = await pair((each_qemu, each_qemu))

        async def begin() -> None:
            async with made.source.monitor() as monitor:
                await late(monitor, lab.directory)

        async with Move(made, GENTLE, source=LateJob) as move:
            move.source.begin = begin  # type: ignore[attr-defined]
            await move.migration.check()
            result = await asyncio.wait_for(move.migration.run(), 40)
        await self.stays(made, lab, result)

    async def stays(self, made: Pair, lab: Lab, result: MigrationOutcome) -> None:
        assert result.state is State.FAILED, result.error
        assert "has begun at the source meanwhile" in (result.error or "")
        assert await lab.counting() == [made.source]
        async with made.source.monitor() as monitor:
            jobs, exports = [await monitor.execute(f"query-{each}") for each in ("jobs", "block-exports")]
            assert jobs or exports  # which went on as if nothing had been
