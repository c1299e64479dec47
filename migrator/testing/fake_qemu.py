"""A QEMU that is none: it speaks QMP over real sockets, and a migration between two of them takes its time.

For tests of whatever drives migrations, ours and yours; hundreds fit into one process::

    async with (
        FakeQemu(workload=steady(64 * MIB, 10 * MIB)) as source,
        FakeQemu(incoming=True) as destination,
    ):
        ...  # move the guest from source.qmp to destination.qmp with any QMP client
        assert destination.running and not source.running

What it does is decided by :mod:`migrator.testing.simulator`; what it answers about itself was recorded from QEMU 7.2
and 10.0; in which order it announces what, what it refuses and in which words is that of the version it is told to be,
quirks included, and compared with the real ones in a test. ``migrate-incoming`` and ``migrate`` with ``tcp:`` addresses
join two fakes of one process; those ports are no real ones.

Faults, at any time: :meth:`FakeQemu.kill`, :meth:`~FakeQemu.freeze` and :meth:`~FakeQemu.thaw`,
:meth:`~FakeQemu.stall`, :meth:`~FakeQemu.answer_late`, :meth:`~FakeQemu.cut_answer`, :meth:`~FakeQemu.answer_with`,
:meth:`~FakeQemu.die_at`,
:meth:`~FakeQemu.reject_stream`, :meth:`~FakeQemu.lose_return_path`, :meth:`~FakeQemu.cut_off`,
:meth:`~FakeQemu.power_off`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from migrator.testing import fake_network
from migrator.testing.fake_commands import FakeCommands
from migrator.testing.fake_monitor import FakeMonitor
from migrator.testing.fake_node import FakeNode, MigrationFaults
from migrator.testing.simulator import Costs, Link, Simulator
from migrator.testing.workload import MIB, Workload, idle

#: Loopback and the processor; between hosts give a :class:`Link` of your own.
LOOPBACK_BYTES_PER_SECOND = 1000.0 * MIB


class FakeQemu:
    """One fake QEMU process. An async context manager; or call :meth:`start` and :meth:`close`.

    :param version: as which it behaves: ``7.2`` or ``10.0``.
    :param workload: what its guest does; see :mod:`migrator.testing.workload`. None for a destination.
    :param memory_bytes: the guest's; the destination's has to be the same.
    :param incoming: it waits for a migration (``-incoming defer``).
    :param paused: with ``-S``; by default if `incoming`.
    :param link: from here to wherever it migrates; sources may share one. By default each has loopback to itself.
    :param time_factor: how much faster than the clock its world goes; the same for both ends of a migration.
    :param rest_seconds: a stream that has long to go does nothing for so long unless it is asked, where thousands
        share a processor; what others do to it then takes so long to show.
    """

    def __init__(
        self,
        *,
        version: str = "10.0",
        workload: Workload | None = None,
        memory_bytes: int = 128 * MIB,
        incoming: bool = False,
        paused: bool | None = None,
        name: str = "guest",
        uuid: UUID | None = None,
        link: Link | None = None,
        costs: Costs | None = None,
        time_factor: float = 1.0,
        rest_seconds: float = 0.0,
    ) -> None:
        self.version = version
        self.name = name
        self.uuid = uuid or uuid4()
        self.memory_bytes = memory_bytes
        #: Change its speed at any time; 0 is a black hole for all who share it.
        self.link = link or Link(LOOPBACK_BYTES_PER_SECOND)
        self._guest = Simulator(workload or idle(), memory_bytes=memory_bytes, link=self.link, costs=costs)
        self._incoming = incoming
        self._autostart = not (incoming if paused is None else paused)
        self._time_factor, self._rest_seconds = time_factor, rest_seconds
        self._directory: Path | None = None
        self._own_directory = False
        self._fence: int | None = None
        self._node: FakeNode | None = None
        self._tcp_port = 0

    # --- to connect to -----------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Directory of its sockets."""
        assert self._directory is not None, "start() comes first"
        return self._directory

    @property
    def qmp(self) -> Path:
        """Socket of the monitor for whatever is being tested."""
        return self.directory / "qmp"

    @property
    def rescue(self) -> Path:
        """Socket of a second monitor."""
        return self.directory / "rescue"

    @property
    def tcp_port(self) -> int:
        """TCP port of the first monitor on 127.0.0.1, where ``start(tcp=True)`` asked for it; else 0."""
        return self._tcp_port

    @property
    def fence_command(self) -> str:
        """A shell command that kills it and exits with 0 once it is dead, for whoever cannot kill it otherwise."""
        pipe, dead = shlex.quote(str(self.directory / "fence")), shlex.quote(str(self.directory / "dead"))
        return f"[ -e {dead} ] || echo > {pipe}; until [ -e {dead} ]; do sleep 0.01; done"

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """True from its start to its end."""
        return self._node is not None and self._node.alive

    @property
    def exit_status(self) -> int | None:
        """``None`` while it lives, negative for a signal."""
        return None if self._node is None else self._node.exit_status

    @property
    def running(self) -> bool:
        """True while the guest runs here; of two ends never both, if all is well."""
        return self.alive and self._there.run == "running"

    @property
    def run_state(self) -> str:
        """Run state that query-status shows."""
        return self._there.run

    @property
    def migration_status(self) -> str | None:
        """Migration status that query-migrate shows."""
        return self._there.status

    @property
    def guest(self) -> Simulator | None:
        """The guest, while it is here: its memory, its work, the figures of its migration."""
        return self._there.guest

    @property
    def _there(self) -> FakeNode:
        assert self._node is not None, "start() comes first"
        return self._node

    # --- life and death ----------------------------------------------------------------------------------------------

    async def start(self, directory: Path | None = None, *, tcp: bool = False) -> Self:
        """Listen on its sockets.

        :param directory: for them, of its own; made if need be, one below ``/tmp`` by default.
        :param tcp: on a TCP port too.
        """
        if directory is None:
            directory, self._own_directory = Path(tempfile.mkdtemp(prefix="fake-qemu-")), True
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        node = self._node = FakeNode(
            version=self.version,
            guest=self._guest,
            incoming=self._incoming,
            autostart=self._autostart,
            time_factor=self._time_factor,
            on_exit=self._ended,
        )
        node.rest_seconds = self._rest_seconds
        commands = FakeCommands(node, self._answers(node))
        greeting = node.recorded["greeting"]
        node.ports = [
            FakeMonitor(greeting, node.manners, commands.execute, commands.oob) for _ in range(2 + tcp)
        ]
        await node.ports[0].listen_unix(self.qmp)
        await node.ports[1].listen_unix(self.rescue)
        if tcp:
            self._tcp_port = await node.ports[2].listen_tcp("127.0.0.1", 0)
        os.mkfifo(directory / "fence")
        # Open for writing too, else it would be at its end as soon as the first writer closes it.
        self._fence = os.open(directory / "fence", os.O_RDWR | os.O_NONBLOCK)
        node.loop.add_reader(self._fence, self.kill)
        return self

    def kill(self) -> None:
        """End it as SIGKILL does. Nothing happens to one that has ended."""
        if self._node is not None:
            self._node.exit(-9)

    async def wait_dead(self, within: float = 20.0) -> int:
        """Wait for its end and return its exit status.

        :raise TimeoutError: when it still lives.
        """
        async with asyncio.timeout(within):
            while self.alive:
                await asyncio.sleep(0.002)
        return self.exit_status or 0

    def _ended(self) -> None:
        fake_network.stop_listening(self._there)
        (self.directory / "dead").touch()
        self._close_fence()

    def _close_fence(self) -> None:
        if self._fence is not None:
            self._there.loop.remove_reader(self._fence)
            os.close(self._fence)
            self._fence = None

    async def close(self) -> None:
        """Kill it and remove its sockets. May be called again."""
        self.kill()
        await asyncio.sleep(0)  # what was answered last is on its way
        if self._directory is not None and self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- faults ------------------------------------------------------------------------------------------------------

    @property
    def _faults(self) -> MigrationFaults:
        return self._there.faults

    def freeze(self) -> None:
        """Stop it as SIGSTOP does: guest, monitors and migration stand still; nobody is greeted any more."""
        self._there.catch_up()
        self._there.manners.frozen = True

    def stall(self) -> None:
        """Block its main loop: only out-of-band commands are answered; guest and migration go on."""
        self._there.manners.stalled = True

    def thaw(self) -> None:
        """Undo :meth:`freeze` and :meth:`stall`: what was asked meanwhile is carried out now."""
        node = self._there
        node.catch_up()
        node.manners.frozen = node.manners.stalled = False
        for port in node.ports:
            port.wake()

    def answer_late(self, seconds: float) -> None:
        """Carry out commands at once, but let every answer wait; 0: no more."""
        self._there.manners.late_seconds = seconds

    def cut_answer(self, command: str) -> None:
        """Hang up in the middle of each answer to `command`, which is carried out."""
        self._there.manners.cut.add(command)

    def answer_with(self, distort: Callable[[str, Any], bytes | None]) -> None:
        """Carry out commands, and say something else instead of their answers.

        :param distort: given a command and its id; ``None``: the answer itself.
        """
        self._there.manners.distort = distort

    def die_at(self, status: str) -> None:
        """Die as soon as the migration has this status here."""
        self._faults.die_at.add(status)

    def reject_stream(self) -> None:
        """Let this destination find, at the switch, that the devices do not fit."""
        self._faults.reject = True

    def lose_return_path(self) -> None:
        """Let this destination take over the guest without the source ever hearing of it."""
        self._faults.lose_return_path = True

    def cut_off(self, *, healed: bool = False) -> None:
        """Every packet from and to it disappears, monitors aside; `healed` undoes it."""
        self._there.catch_up()
        self._there.cut_off = not healed

    def power_off(self) -> None:
        """The guest powers off by itself, and the process ends."""
        self._there.catch_up()
        self._there.shut_down("guest-shutdown", guest=True)

    # --- what was recorded, for this guest ---------------------------------------------------------------------------

    def _answers(self, node: FakeNode) -> dict[str, Any]:
        answers: dict[str, Any] = deepcopy(node.recorded["answers"])
        answers["query-name"] = {"name": self.name}
        answers["query-uuid"] = {"UUID": str(self.uuid)}
        answers["query-memory-size-summary"]["base-memory"] = self.memory_bytes
        for backend in answers["query-memdev"]:
            backend["size"] = self.memory_bytes
        for block in answers["query-block"]:
            with contextlib.suppress(KeyError):
                block["inserted"]["file"] = f"/images/{self.name}.img"
        return answers
