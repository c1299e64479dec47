"""A guest of libvirt that moves between two real libvirtd, driven in this process."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

from migrator.core.model import State
from migrator.core.policy import Policy, PostcopyMode, builtin
from migrator.core.preflight.stream_tls import StreamTls
from migrator.engine.migration.managed_driver import ManagedDriver
from migrator.engine.migration.managed_state import UNSAFE_CACHE
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.libvirt.binding import load
from migrator.libvirt.connection import DomainEvent, LibvirtConnection
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

    async def at_stop(self, act: Callable[[], object]) -> None:
        """Do something the moment that the guest stops at its source."""
        happened = asyncio.Event()

        def hear(event: DomainEvent) -> None:
            if event.kind == "lifecycle" and event.event == load().VIR_DOMAIN_EVENT_SUSPENDED:
                unsubscribe()
                act()
                happened.set()

        unsubscribe = self.source.connection.subscribe(hear)
        async with asyncio.timeout(60):
            await happened.wait()

    async def until_copies(self, rounds: int = 1) -> None:
        """Wait until memory is on its way."""
        await until(
            lambda: any(each.sample is not None and each.sample.round >= rounds for each in self.seen),
            what="memory on its way",
            within=60,
        )


class Relay:
    """Carries what is said to a daemon and what it answers, until it is muted: then nothing of what it answers.

    :param path: of the socket that it listens on.
    """

    def __init__(self, daemon: LibvirtDaemon, path: Path) -> None:
        self._daemon, self._path = daemon, path
        self._muted = False
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.uri = f"qemu+unix:///system?socket={path}"

    def mute(self) -> None:
        """Carry no answer from now on; nobody is told."""
        self._muted = True

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._join, self._path)
        return self

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._daemon.socket)
        self._writers += [writer, far_writer]
        for one, other, answers in ((reader, far_writer, False), (far_reader, writer, True)):
            task = asyncio.create_task(self._pump(one, other, answers=answers), name="relay")
            self._pumps.add(task)

    async def _pump(self, one: asyncio.StreamReader, other: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await one.read(1 << 16):
                if not (answers and self._muted):
                    other.write(data)
                    await other.drain()
        other.close()

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._pumps:
            task.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _connection(daemon: LibvirtDaemon, uri: str = "") -> LibvirtConnection:
    async def uris() -> list[str]:
        return [uri or daemon.uri]

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
    peer_uri: str = "",
    asked: str = "",
    new_images: Sequence[str] = (),
    moved_images: Mapping[str, str] = MappingProxyType({}),
    timeouts: PhaseTimeouts | None = None,
    tls: StreamTls | None = None,
) -> AsyncIterator[Controller]:
    """A controller between two hosts; what it holds is let go of in the end, whatever became of the guest.

    :param peer_uri: by which the source reaches the target, if it is not the usual one.
    :param asked: the URI by which the controller reaches the target, if it is not the usual one.
    """
    if not peer_to_peer:
        asked = asked or peer_uri
    connections = _connection(here), _connection(there, asked)
    source = DomainSource(connections[0], uuid)
    destination = DomainDestination(
        connections[1], uuid, peer_uri=(peer_uri or there.peer_uri) if peer_to_peer else ""
    )
    destination.moved_images = moved_images
    record = FileRecord("m-1", directory=state / "records")
    seen: list[MigrationProgress] = []
    driver = ManagedDriver(
        name="m-1",
        source=source,
        destination=destination,
        policy=policy,
        listen=f"tcp:{there.host.address}:0",
        record=record,
        new_images=new_images,
        timeouts=timeouts,
        tls=tls,
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
        self,
        *,
        policy: Policy = SLOW,
        peer_to_peer: bool = True,
        there: str = "",
        asked: str = "",
        tls: StreamTls | None = None,
        timeouts: PhaseTimeouts | None = None,
    ) -> AbstractAsyncContextManager[Controller]:
        return controller(
            self.alpha,
            self.beta,
            self.uuid,
            state=self.state,
            policy=policy,
            peer_to_peer=peer_to_peer,
            peer_uri=there,
            asked=asked,
            tls=tls,
            timeouts=timeouts,
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
