"""A guest of libvirt that moves between two real libvirtd, driven in this process."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from migrator.core.model import State
from migrator.core.policy import Policy, PostcopyMode, builtin
from migrator.engine.migration.managed_driver import UNSAFE_CACHE, ManagedDriver
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.libvirt.connection import LibvirtConnection
from migrator.libvirt.migration import DomainDestination, DomainSource
from migrator.store.records import FileRecord
from migrator.store.step_records import StepRecords
from migrator.testing.guest import Habit
from migrator.testing.lab import until
from migrator.testing.libvirtd import LibvirtDaemon

MIB = 1 << 20
PLAIN = builtin("gentle").but(max_downtime_seconds=0.3)
#: The guest stays in precopy until somebody has it go faster.
SLOW = PLAIN.but(max_bandwidth_bytes_per_second=MIB)
SLOW_POSTCOPY = SLOW.but(postcopy=PostcopyMode.ALLOW)
#: Writes to as much memory as takes half a minute at that bandwidth.
WRITES = Habit(region_bytes=24 * MIB, bytes_per_second=float(4 * MIB))


@dataclass(kw_only=True)
class Controller:
    """One controller that drives one guest's move; a second one of the same record takes it up."""

    driver: ManagedDriver
    source: DomainSource
    destination: DomainDestination
    record: FileRecord
    seen: list[MigrationProgress] = field(default_factory=list)

    async def move(self) -> MigrationOutcome:
        """Check, and move it."""
        found = await self.driver.check()
        assert not found
        return await self.driver.run()

    async def take_up(self, records: Path) -> MigrationOutcome:
        """Go on with what another controller left in its record."""
        left = await StepRecords(records).take_up("m-1")
        assert left is not None
        record, facts, intent = left
        self.driver._intent_log._record = record
        try:
            return await self.driver.take_up(facts, intent)
        finally:
            StepRecords(records).release(record)

    @property
    def state(self) -> State:
        return self.seen[-1].state if self.seen else State.QUEUED

    async def until_copies(self, rounds: int = 1) -> None:
        """Wait until memory is on its way."""
        await until(
            lambda: any(each.sample is not None and each.sample.round >= rounds for each in self.seen),
            what="memory on its way",
            within=60,
        )


def _connection(daemon: LibvirtDaemon) -> LibvirtConnection:
    async def uris() -> list[str]:
        return [daemon.uri]

    return LibvirtConnection(daemon.host.name, uris)


@asynccontextmanager
async def controller(
    here: LibvirtDaemon,
    there: LibvirtDaemon,
    uuid: str,
    *,
    state: Path,
    policy: Policy = PLAIN,
    peer_to_peer: bool = True,
    timeouts: PhaseTimeouts | None = None,
) -> AsyncIterator[Controller]:
    """A controller between two hosts; what it holds is let go of in the end, whatever became of the guest."""
    connections = _connection(here), _connection(there)
    source = DomainSource(connections[0], uuid)
    destination = DomainDestination(connections[1], uuid, peer_uri=there.uri if peer_to_peer else "")
    record = FileRecord("m-1", directory=state / "records")
    seen: list[MigrationProgress] = []
    driver = ManagedDriver(
        name="m-1",
        source=source,
        destination=destination,
        policy=policy,
        listen=f"tcp:{there.host.address}:0",
        record=record,
        timeouts=timeouts,
        offers_postcopy=True,
        on_status=seen.append,
    )
    # The image is one file, though libvirt cannot know that: somebody accepts it.
    driver.result.warn(UNSAFE_CACHE, "on no file system that is known to be shared", "accept it")
    try:
        yield Controller(driver=driver, source=source, destination=destination, record=record, seen=seen)
    finally:
        record.close()
        for end in (source, destination):
            await end.close()
        for connection in connections:
            await connection.close()


async def definition(daemon: LibvirtDaemon, name: str) -> str:
    """Return the definition of a guest that does not depend on where, or whether, it runs."""
    text = await daemon.virsh("dumpxml", "--inactive", name)
    return re.sub(r"\s+", " ", text)


async def has(daemon: LibvirtDaemon, name: str) -> dict[str, str]:
    """Return what a daemon says of a guest; empty where it has none."""
    with contextlib.suppress(Exception):
        lines = (await daemon.virsh("dominfo", name)).splitlines()
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


@dataclass(frozen=True, kw_only=True)
class Busy:
    """A guest that is copied slowly."""

    name: str
    uuid: str
    alpha: LibvirtDaemon
    beta: LibvirtDaemon
    state: Path

    @property
    def records(self) -> Path:
        return self.state / "records"

    def controller(
        self, *, policy: Policy = SLOW, peer_to_peer: bool = True
    ) -> AbstractAsyncContextManager[Controller]:
        return controller(
            self.alpha, self.beta, self.uuid, state=self.state, policy=policy, peer_to_peer=peer_to_peer
        )

    @asynccontextmanager
    async def moving(self, ours: Controller) -> AsyncIterator[asyncio.Task[MigrationOutcome]]:
        """Have it move; a move that has not ended in the end is broken off."""
        move = asyncio.create_task(ours.move(), name="move")
        try:
            yield move
        finally:
            move.cancel()
            await asyncio.wait({move})

    async def runs_only_at(self, daemon: LibvirtDaemon) -> None:
        """Assert that it runs there, and that the other knows nothing of it."""
        other = self.beta if daemon is self.alpha else self.alpha
        assert await daemon.state(self.name) == "running"
        await daemon.wait_beating(self.name)
        assert await other.state(self.name) == ""
