"""Real QEMU processes for tests, the demo and benchmarks: up in a tenth of a second, and gone afterwards.

::

    async with Lab() as lab:
        pair = await lab.pair(Machine(habit=Habit(region_bytes=64 << 20)))
        ...  # move the guest from pair.source.qmp to pair.destination.qmp
        await pair.destination.check_memory()
        assert await lab.counting() == [pair.destination]

Every QEMU has two monitors: ``qmp`` is for what is being tested, ``rescue`` is for the test to look without
being in the way. Whatever happens to the test, nothing survives it: the lab kills what it started when it is
closed and when the interpreter ends, and the kernel does when the thread that started a QEMU dies.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from migrator.testing.guest import IDLE, Habit, write_image
from migrator.testing.process import WAIT_SECONDS, GuestMachine, LabError, LabQemu, until
from migrator.testing.raw_qmp import RawMonitor, RawQmpError
from migrator.testing.stale import owned, stale

__all__ = [
    "IDLE",
    "WAIT_SECONDS",
    "GuestMachine",
    "Habit",
    "Lab",
    "LabError",
    "LabQemu",
    "Pair",
    "RawMonitor",
    "RawQmpError",
    "RunWatch",
    "binaries",
    "until",
]

#: Where a 10.0 is looked for beside the system's QEMU: this variable, then ``.build`` in the tree, then here.
QEMU_10_VARIABLE = "MIGRATOR_QEMU_10"


@functools.cache
def binaries() -> dict[str, Path]:
    """Return the QEMUs on this machine by version, as ``7.2`` or ``10.0``; the system's own comes first."""
    found: dict[str, Path] = {}
    system, named = shutil.which("qemu-system-x86_64"), os.environ.get(QEMU_10_VARIABLE)
    candidates = [Path(path) for path in (system, named) if path]
    for root in (Path(__file__).parents[2], Path.cwd()):
        candidates += sorted(root.glob(".build/qemu-*/qemu-system-x86_64"))
    for path in candidates:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                [path, "--version"], stdout=subprocess.PIPE, text=True, timeout=30, check=True
            )
            if version := re.search(r"version (\d+\.\d+)", said.stdout):
                found.setdefault(version[1], path.absolute())
    return found


@dataclass(frozen=True)
class Pair:
    """A guest that runs and the QEMU that waits for it."""

    source: LabQemu
    destination: LabQemu


class Lab:
    """Starts QEMUs and sees to their end. A context manager, plain or ``async``; or call :meth:`close`.

    Start QEMUs from the thread that stays till the end, usually the main one: when it dies, they are killed.
    """

    def __init__(self) -> None:
        # Paths of Unix sockets have at most 107 characters, which a test's own tmp_path easily fills.
        short = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
        for path in stale(short):
            shutil.rmtree(path, ignore_errors=True)
        self.directory = Path(tempfile.mkdtemp(prefix=owned(""), dir=short))
        self.qemus: list[LabQemu] = []
        self._numbers = itertools.count(1)
        atexit.register(self.close)

    def image(self, machine: GuestMachine) -> Path:
        """Return the machine's disk, made when it is first asked for."""
        path = machine.image or self.directory / f"{machine.uuid}.img"
        if not path.exists():
            write_image(path, machine.habit)
        return path

    async def start(
        self,
        machine: GuestMachine | None = None,
        *,
        binary: Path | None = None,
        incoming: bool = False,
        paused: bool | None = None,
        prefix: Sequence[str] = (),
        label: str | None = None,
        extra: Sequence[str] = (),
    ) -> LabQemu:
        """Start a QEMU and return once it answers; its guest may still be in its firmware, see :meth:`boot`.

        :param machine: what to start; an idle guest by default.
        :param binary: the system's QEMU by default; see :func:`binaries`.
        :param incoming: wait for a migration (``-incoming defer``).
        :param paused: with ``-S``; by default if ``incoming``.
        :param prefix: a command to run QEMU through, such as :attr:`migrator.testing.network.LabHost.prefix`; it
            has to exec.
        :param label: names its files.
        :param extra: further options of this QEMU alone, after those of the machine.
        :raise LabError: with QEMU's own words when it does not start.
        """
        machine = machine or GuestMachine()
        if binary is None:
            binary = next(iter(binaries().values()), None)
        if binary is None:
            raise LabError(
                "there is no qemu-system-x86_64 on this machine: install the package qemu-system-x86"
            )
        qemu = LabQemu(machine, binary, self.directory, f"{next(self._numbers)}-{label or 'qemu'}")
        self.qemus.append(qemu)
        options = qemu.options(self.image(machine))
        if incoming:
            options += ["-incoming", "defer"]
        if incoming if paused is None else paused:
            options.append("-S")
        await qemu.launch([*prefix, "setpriv", "--pdeathsig", "KILL", str(binary), *options, *extra])
        return qemu

    async def boot(self, machine: GuestMachine | None = None, **how: Any) -> LabQemu:
        """Start a QEMU as :meth:`start` does, and wait until the guest runs and has cleared its region."""
        qemu = await self.start(machine, **how)
        await qemu.wait_beating()
        return qemu

    async def pair(
        self,
        machine: GuestMachine | None = None,
        *,
        source: Path | None = None,
        destination: Path | None = None,
        destination_machine: GuestMachine | None = None,
        source_prefix: Sequence[str] = (),
        destination_prefix: Sequence[str] = (),
    ) -> Pair:
        """Start a guest, and a QEMU that waits for it.

        :param source: the binary that runs it.
        :param destination: the binary that waits.
        :param destination_machine: where it is to differ: ``dataclasses.replace(machine, ...)``.
        """
        machine = machine or GuestMachine()
        waiting = self.start(
            destination_machine or machine,
            binary=destination,
            incoming=True,
            prefix=destination_prefix,
            label="destination",
        )
        running = self.boot(machine, binary=source, prefix=source_prefix, label="source")
        return Pair(*await asyncio.gather(running, waiting))

    async def counting(self, within: float = 10.0, *, at_least: int = 1) -> list[LabQemu]:
        """The QEMUs whose guests are seen to run now; of a migration's two, always at most one.

        Returns once `at_least` so many have beaten three times (about 60 ms), with every other that has beaten
        meanwhile; or after `within` seconds.
        """
        before = {qemu: qemu.beats for qemu in self.qemus}

        def beaten(times: int) -> list[LabQemu]:
            return [qemu for qemu, beats in before.items() if qemu.beats >= beats + times]

        with contextlib.suppress(TimeoutError):
            await until(lambda: len(beaten(3)) >= at_least, what="a guest that counts", within=within)
        return beaten(1)

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[RunWatch]:
        """Watch where guests run from here to the end of the block; see :class:`RunWatch`."""
        watch = RunWatch(self)
        task = asyncio.create_task(watch.run(), name="watch of the lab's guests")
        try:
            yield watch
        finally:
            watch.look()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def report(self) -> str:
        """How each QEMU was started, how it ended and what it said: for a test that failed."""
        lines = []
        for qemu in self.qemus:
            state = "alive" if qemu.alive else f"ended {qemu.exit_status}"
            lines += [f"{qemu.label}: pid {qemu.pid}, {state}, {qemu.boots} boots, {qemu.beats} beats"]
            lines += [f"  {' '.join(qemu.command)}"]
            lines += [f"  {line}" for line in qemu.log.read_text(errors="replace").splitlines()]
        return "\n".join(lines)

    def close(self) -> None:
        """Kill every QEMU, wait for its end, remove all files. May be called again."""
        for qemu in self.qemus:
            qemu.kill()
        for qemu in self.qemus:
            qemu.discard()
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RunWatch:
    """A record of where the guest was seen to run, in order: shows that it never ran in two places.

    ::

        async with lab.watch() as watch:
            await pair.source.wait_beating()  # a quick migration falls between two beats
            ...  # migrate
            await pair.destination.wait_beating()
        assert watch.course == [pair.source, pair.destination]
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._seen = {qemu: _said_bytes(qemu) for qemu in lab.qemus}
        #: QEMUs in the order in which their guests beat, consecutive beats of one taken together. One that
        #: stands here twice has run before and after another: that guest was doubled.
        self.course: list[LabQemu] = []
        #: The longest time without a beat from anywhere, about what a guest's user notices. The beat's own
        #: period and the watch's are in it, some 25 ms.
        self.longest_silence_seconds = 0.0
        self._last: float | None = None

    async def run(self) -> None:
        """Look every few milliseconds until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(0.004)

    def look(self) -> None:
        """Take note of who has beaten since the last look."""
        now = asyncio.get_running_loop().time()
        beaten = []
        for qemu in self._lab.qemus:
            size = _said_bytes(qemu)
            if size > self._seen.setdefault(qemu, 0):
                self._seen[qemu] = size
                beaten.append(qemu)
        # Of two that beat between two looks, the one that ran before came first.
        for qemu in sorted(beaten, key=lambda qemu: qemu not in self.course[-1:]):
            if qemu not in self.course[-1:]:
                self.course.append(qemu)
        if beaten or self._last is None:
            if self._last is not None:
                self.longest_silence_seconds = max(self.longest_silence_seconds, now - self._last)
            self._last = now


def _said_bytes(qemu: LabQemu) -> int:
    return qemu.serial.stat().st_size if qemu.serial.exists() else 0


def main() -> int:
    """``python -m migrator.testing.lab``: which QEMUs a test would find here."""
    for version, path in binaries().items():
        print(version, path)
    return 0 if binaries() else 1


if __name__ == "__main__":
    sys.exit(main())
