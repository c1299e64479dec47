"""A QEMU process of the lab: the machine it is to be, how it is started, stopped, looked into and found dead."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import select
import signal
import socket
import subprocess
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from migrator.testing.guest import COUNTERS_ADDRESS, IDLE, PAGE_BYTES, GuestCounters, Habit, check_memory
from migrator.testing.raw_qmp import RawMonitor, RawQmpError
from migrator.testing.vcpu_time import VcpuTime

#: How long a QEMU may take to start or to answer the lab; a limit for a machine under load, not an expectation.
WAIT_SECONDS = 60.0


class LabError(RuntimeError):
    """The lab could not do what was asked; says what QEMU said."""


#: Between two questions of :func:`until`.
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.003, 0.1
#: What has taken long is noticed later by so much of that.
_LATE_RATIO = 0.05


async def until(probe: Callable[[], object], *, what: str, within: float = WAIT_SECONDS) -> None:
    """Ask ``probe``, a plain or an ``async`` function, again and again until it returns something true.

    It is asked every few milliseconds at first, then ever less often; one that takes its time no more than a third of
    the time: what is waited for needs the processor too.

    :raise TimeoutError: saying ``what`` did not come true.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    deadline = began + within
    while True:
        asked_at = loop.time()
        answer = probe()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        now = loop.time()
        if now > deadline:
            raise TimeoutError(f"waited {within:g} s in vain: {what}")
        pause = max(_SHORTEST_PAUSE_SECONDS, 2 * (now - asked_at), _LATE_RATIO * (now - began))
        await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, pause))


@dataclass(frozen=True, kw_only=True)
class GuestMachine:
    """A machine and the guest in it. Source and destination get the same one, or one that differs where it should.

    The same ``uuid`` means the same disk image, unless ``image`` names another.
    """

    habit: Habit = IDLE
    #: Understood by 7.2 and by 10.0.
    type: str = "pc-q35-7.2"
    memory_bytes: int = 128 << 20
    cpu: str = "qemu64"
    smp: int = 1
    #: As after ``-accel``. For KVM: ``kvm``, with a ``cpu`` to suit.
    accelerator: str = "tcg,tb-size=32"
    name: str = "guest"
    uuid: UUID = field(default_factory=uuid4)
    image: Path | None = None
    #: Whether QEMU locks the image: ``auto`` or ``off``. The lock can hide that a guest would run twice.
    image_locking: str = "auto"
    #: Address of a network card, whose frames the lab receives (:meth:`LabQemu.announcements`); ``None``: no card.
    mac: str | None = None
    #: Further options of QEMU.
    extra: tuple[str, ...] = ()

    def options(self, image: Path) -> list[str]:
        """QEMU's options for this machine, monitors and serial port aside."""
        if self.memory_bytes < self.habit.needed_bytes:
            raise LabError(
                f"a region of {self.habit.region_bytes} bytes needs {self.habit.needed_bytes} of memory"
            )
        name, path = (text.replace(",", ",,") for text in (self.name, str(image)))
        return [
            *("-no-user-config", "-nodefaults", "-display", "none"),
            *("-name", f"guest={name},debug-threads=on", "-uuid", str(self.uuid)),
            *("-machine", self.type, "-accel", self.accelerator),
            *("-cpu", self.cpu, "-smp", str(self.smp), "-m", f"size={self.memory_bytes >> 10}k"),
            *("-blockdev", f"driver=file,node-name=disk0-file,filename={path},locking={self.image_locking}"),
            *("-blockdev", "driver=raw,node-name=disk0,file=disk0-file"),
            *("-device", "virtio-blk-pci,id=disk0,drive=disk0,addr=0x4,bootindex=1"),
            *self.extra,
        ]


class LabQemu:
    """One QEMU process of a :class:`Lab`. Its files stay readable until the lab is closed."""

    def __init__(self, machine: GuestMachine, binary: Path, directory: Path, label: str) -> None:
        self.machine = machine
        self.binary = binary
        self.label = label
        self.directory = directory
        #: For the thing under test.
        self.qmp = directory / f"{label}.qmp"
        #: For a look from outside, see :meth:`query`.
        self.rescue = directory / f"{label}.rescue"
        self.serial = directory / f"{label}.serial"
        #: QEMU's stderr.
        self.log = directory / f"{label}.log"
        self.command: list[str] = []
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._wire: socket.socket | None = None
        self._looking = asyncio.Lock()

    @functools.cached_property
    def vcpu_time(self) -> VcpuTime:
        """CPU time of its vCPUs; for a process that was started."""
        return VcpuTime(self.pid)

    @classmethod
    def attach(cls, machine: GuestMachine, pid: int, rescue: Path) -> LabQemu:
        """Return a QEMU that somebody else started, to look at: its process and a monitor that nobody else uses.

        :raise ProcessLookupError: there is no such process.
        """
        pidfd = os.pidfd_open(pid)
        try:
            binary = Path(f"/proc/{pid}/exe").resolve()
        except FileNotFoundError:  # it ends at this moment
            os.close(pidfd)
            raise ProcessLookupError(pid) from None
        found = cls(machine, binary, rescue.parent, f"pid-{pid}")
        found.pid, found.rescue = pid, rescue
        found._pidfd = pidfd
        weakref.finalize(found, os.close, found._pidfd)  # it is nobody's to discard
        return found

    def __repr__(self) -> str:
        return f"<Qemu {self.label} pid {self.pid} {'alive' if self.alive else f'ended {self.exit_status}'}>"

    # its process

    @property
    def alive(self) -> bool:
        """True until the process has ended; by its pidfd, so never taken in by a reused pid."""
        if self._pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    @property
    def exit_status(self) -> int | None:
        """Exit status; ``None`` while it lives, negative for a signal."""
        return self._process.poll() if self._process else None

    def kill(self) -> None:
        """SIGKILL; does not wait (:meth:`wait_dead` does). Nothing happens to one that has ended."""
        self._signal(signal.SIGKILL)

    @property
    def frozen(self) -> bool:
        """True while the process is stopped (:meth:`sigstop`)."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def sigstop(self) -> None:
        """Freeze the whole process: guest, monitors, migration."""
        self._signal(signal.SIGSTOP)

    def sigcont(self) -> None:
        """Undo :meth:`sigstop`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait_dead(self, within: float = WAIT_SECONDS) -> int:
        """Wait for the end of the process and return its exit status.

        :raise TimeoutError: when it still lives.
        """
        await until(lambda: self.exit_status is not None, what=f"the end of {self!r}", within=within)
        return self.exit_status or 0

    # its guest

    async def query(self, command: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> Any:
        """Connect to the rescue monitor, do one command, let go of the monitor.

        Underscores in ``more`` become hyphens: ``query("migrate-set-parameters", max_bandwidth=0)``.

        :raise RawQmpError: when QEMU refuses the command.
        :raise WrongProcess: another process listens at that path; nothing was asked.
        :raise OSError: (TimeoutError is one) when it does not answer.
        """
        async with self.monitor() as monitor:
            return await monitor.execute(command, arguments, **more)

    async def pause(self) -> None:
        """Stop the guest, as an operator does it."""
        await self.query("stop")

    @contextlib.asynccontextmanager
    async def monitor(self, *, timeout: float = WAIT_SECONDS) -> AsyncIterator[RawMonitor]:
        """Open the rescue monitor for several commands, or for events. One at a time, others wait.

        :param timeout: seconds that the greeting and each answer may take.
        """
        async with self._looking, RawMonitor(self.rescue, timeout=timeout, pid=self.pid) as monitor:
            yield monitor

    async def runs(self) -> bool:
        """Tell whether its guest runs now, in this very process.

        Where its monitor cannot be asked (its path may lead to the guest's next process by now), the CPU time of its
        vCPUs tells.
        """
        try:
            return await self.run_state() == "running"
        except (OSError, RawQmpError):
            return await self.vcpu_time.grows()

    async def run_state(self) -> str:
        """``running``, ``paused``, ``inmigrate``, ``postmigrate``..."""
        return str((await self.query("query-status"))["status"])

    async def migration_status(self) -> str | None:
        """``active``, ``completed``...; ``None`` when there was no migration."""
        status = (await self.query("query-migrate")).get("status")
        return None if status is None else str(status)

    @property
    def boots(self) -> int:
        """How often the guest has said here that it starts: ``A`` on its serial port."""
        return self._serial_text.count(b"A")

    @property
    def beats(self) -> int:
        """How often the guest has said here that it lives: ``B`` on its serial port."""
        return self._serial_text.count(b"B")

    @property
    def _serial_text(self) -> bytes:
        return self.serial.read_bytes() if self.serial.exists() else b""

    async def wait_beating(self, within: float = WAIT_SECONDS) -> None:
        """Wait until the guest is seen to run: for a beat that was not there yet.

        :raise TimeoutError: when none comes.
        :raise LabError: when QEMU ends.
        """
        before = self.beats

        def beaten() -> bool:
            if not self.alive and self.beats == before:
                raise LabError(self.explain_exit())
            return self.beats > before

        await until(beaten, what=f"a beat of the guest in {self!r}", within=within)

    async def counters(self) -> GuestCounters:
        """Read the guest's counters; it may run."""
        return GuestCounters.parse(await self._memory(COUNTERS_ADDRESS, PAGE_BYTES))

    async def check_memory(self) -> GuestCounters:
        """Check every byte of the guest's region; a running guest is stopped for it and then goes on.

        :raise MemoryDamaged: with the first page that is wrong.
        """
        running = (await self.query("query-status"))["running"]
        if running:
            await self.query("stop")
        try:
            memory = await self._memory(COUNTERS_ADDRESS, self.machine.habit.span_bytes)
        finally:
            if running:
                await self.query("cont")
        return check_memory(memory, self.machine.habit)

    async def _memory(self, address: int, size: int) -> bytes:
        dump = self.directory / f"{self.label}.memory"
        try:
            await self.query("pmemsave", val=address, size=size, filename=str(dump))
            return dump.read_bytes()
        finally:
            dump.unlink(missing_ok=True)

    def announcements(self) -> list[str]:
        """Addresses that QEMU has announced for the guest since the last call (RARP), the oldest ten at most."""
        sent = []
        with contextlib.suppress(BlockingIOError):
            while self._wire is not None:
                frame = self._wire.recv(2048)
                if frame[12:14] == b"\x80\x35":
                    sent.append(frame[6:12].hex(":"))
        return sent

    # for the lab

    def options(self, image: Path) -> list[str]:
        """QEMU's options: the machine's, and what belongs to this process alone."""
        options = self.machine.options(image)
        for path in (self.qmp, self.rescue):
            options += ["-qmp", f"unix:{path},server=on,wait=off"]
        options += ["-serial", f"file:{self.serial}"]
        if self.machine.mac is not None:
            wire, here = self.directory / f"{self.label}.wire", self.directory / f"{self.label}.card"
            self._wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._wire.bind(str(wire))
            ends = f"local.type=unix,local.path={here},remote.type=unix,remote.path={wire}"
            card = f"virtio-net-pci,id=net0-device,netdev=net0,mac={self.machine.mac},addr=0x5,romfile="
            options += ["-netdev", f"dgram,id=net0,{ends}", "-device", card]
        return options

    async def launch(self, command: list[str]) -> None:
        """Start the process and wait until its rescue monitor greets.

        :raise LabError: with QEMU's own words when it does not come up.
        """
        self.command = command
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

        async def greets() -> bool:
            if not self.alive:
                raise LabError(self.explain_exit())
            try:
                await self.query("query-name")
            except (FileNotFoundError, ConnectionError):
                return False
            return True

        await until(greets, what=f"the start of {self!r}")

    def explain_exit(self) -> str:
        """Describe a process that ended: its status and its stderr."""
        said = self.log.read_text(errors="replace").strip() or "nothing"
        return f"{self.label} ended with status {self.exit_status}; it said: {said}"

    def discard(self) -> None:
        """Kill and reap it.

        :raise subprocess.TimeoutExpired: when the kernel does not let go of it.
        """
        if self._process is not None and self._pidfd >= 0:
            self.kill()
            self._process.wait(timeout=WAIT_SECONDS)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._wire is not None:
            self._wire.close()
