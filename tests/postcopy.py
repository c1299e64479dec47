"""What the tests of postcopy share: guests that make it last, and a controller that can be asked more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from migrator.core.model import MigrationStatus, View
from migrator.core.policy import Policy, builtin
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.ports import QemuEvent, UnprobedPath
from migrator.store.records import FileRecord
from migrator.testing.lab import GuestMachine, Habit, LabQemu, Pair, until
from tests.driven import MIB, Drive

#: Slow enough that precopy has not ended before postcopy begins.
IMMEDIATE = builtin("postcopy-first").but(max_bandwidth_bytes_per_second=32 * MIB)
#: Nobody waits for a broken stream.
GIVEN_UP = PhaseTimeouts(fetching=0.5, broken=0.5, recovery=2.0)
#: Both QEMUs are on this machine, in one network.
HERE = UnprobedPath(addresses=("127.0.0.1",))
#: It asks for pages all the time.
BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB))
#: It has filled its memory and rests: what is not asked for is sent as fast as the limit allows.
FULL = GuestMachine(habit=Habit(region_bytes=24 * MIB, passes=1))


async def slowly(pair: Pair) -> None:
    """Of postcopy, what is not asked for takes seconds; the switch itself takes longer too."""
    await pair.source.query("migrate-set-parameters", max_postcopy_bandwidth=12 * MIB)


async def quickly(pair: Pair) -> None:
    """Undo :func:`slowly`."""
    await pair.source.query("migrate-set-parameters", max_postcopy_bandwidth=0)


async def shows(qemu: LabQemu, *, run: str, status: str) -> None:
    """Wait until it does."""

    async def both() -> bool:
        return (await qemu.run_state(), await qemu.migration_status()) == (run, status)

    await until(both, what=f"{run} and {status} at {qemu!r}", within=10)


class Between:
    """A way between the hosts that the test can make deaf, and break.

    ::

        async with Between() as between:
            between.join(drive)
    """

    def __init__(self) -> None:
        #: Nothing that the destination says reaches the source any more.
        self.deaf = False
        self._target: tuple[str, int] = ("", 0)
        self._ways: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for way in self._ways:
            for writer in way:
                writer.transport.abort()

    def join(self, drive: Drive) -> None:
        """Have the stream go this way."""
        plain = drive.destination.listen

        async def listen(uri: str) -> str:
            _, host, port = (await plain(uri)).split(":")
            self._target = host, int(port)
            return "tcp:{}:{}".format(*self._server.sockets[0].getsockname())

        drive.destination.listen = listen  # type: ignore[method-assign]

    def reset(self) -> None:
        """The source is told that the connection is broken; the destination is told nothing."""
        for to_source, _ in self._ways:
            to_source.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            to_source.transport.abort()

    async def _accept(self, from_source: asyncio.StreamReader, to_source: asyncio.StreamWriter) -> None:
        from_destination, to_destination = await asyncio.open_connection(*self._target)
        self._ways.append((to_source, to_destination))
        ways = ((from_source, to_destination, False), (from_destination, to_source, True))
        self._tasks |= {
            asyncio.create_task(self._forward(*way), name=f"way {number}") for number, way in enumerate(ways)
        }

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                if not (back and self.deaf):
                    writer.write(data)
                    await writer.drain()


class PostcopyDrive(Drive):
    """A controller that tells what it showed, and can be cancelled."""

    migration: MigrationDriver

    def __init__(self, pair: Pair, *, policy: Policy = IMMEDIATE, **how: Any) -> None:
        super().__init__(pair, policy=policy, **how)
        self._beside: list[asyncio.Task[None]] = []
        #: Every status that the source has shown or announced.
        self.source_was: set[MigrationStatus] = set()
        self._observe, self.source.observe = self.source.observe, self._note_status  # type: ignore[method-assign]
        self._take, self.source.take_events = self.source.take_events, self._note_events  # type: ignore[method-assign]

    async def _note_status(self, **how: float) -> View:
        view = await self._observe(**how)
        self.source_was.add(view.status)
        return view

    def _migration(self, record: FileRecord, policy: Policy) -> MigrationDriver:
        self.migration = super()._migration(record, policy)
        return self.migration

    def _note_events(self) -> Sequence[QemuEvent]:
        events = self._take()
        self.source_was |= {MigrationStatus(event.data.get("status", "none")) for event in events}
        return events

    def background(self, what: Coroutine[None, None, None]) -> None:
        """Do this beside the migration."""
        self._beside.append(asyncio.create_task(what, name="beside the migration"))

    async def until_looked(self, times: int) -> None:
        """Wait until the destination was looked at so often."""
        await until(lambda: self.destination.looks >= times, what="a look at the destination")

    async def close(self) -> None:
        await asyncio.gather(*self._beside)
        await super().close()

    async def run_against_advice(self) -> MigrationOutcome:
        """As :meth:`run`, whatever preflight finds."""
        await asyncio.gather(self.source.connect(), self.destination.connect())
        migration = self._migration(FileRecord("under-test"), self._policy)
        await migration.check()
        return await migration.run()

    def make_it_last(self) -> None:
        """See :func:`slowly`."""
        # Not later: 7.2 reads the limit before it stops the guest. The first look is the one right before `migrate`.
        self.source.before_look(lambda: slowly(self.pair))

    @property
    def was_postcopy(self) -> bool:
        """It did not only say so: the source has served pages."""
        return MigrationStatus.POSTCOPY_ACTIVE in self.source_was

    @property
    def was_cancelled(self) -> bool:
        """``migrate_cancel`` was sent, which in postcopy destroys the guest."""
        return self.source.given["cancel"] > 0


@asynccontextmanager
async def driven(pair: Pair, **how: Any) -> AsyncIterator[PostcopyDrive]:
    """As :func:`tests.driven.driven`, by postcopy."""
    drive = PostcopyDrive(pair, **how)
    try:
        yield drive
    finally:
        await drive.close()
