"""Handles on processes of a host that is not this machine: watched and killed by commands there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import PurePosixPath
from typing import Any, Protocol

from migrator.core.process.qemu_program import is_qemu
from migrator.errors import HostError
from migrator.hosts.access import Output

# A process is known by its start time beside its pid. It is dead when the pid is gone from a /proc that is there, when
# it belongs to another start time, or when it is a zombie without threads; what cannot be read proves nothing.
FUNCTIONS = r"""
boot() {
  boot=
  IFS= read -r boot </proc/sys/kernel/random/boot_id
  [ -n "$boot" ] || exit 4
}
look() {
  stat=
  while IFS= read -r line || [ -n "$line" ]; do stat=$line; done 2>/dev/null <"/proc/$1/stat"
  [ -n "$stat" ] || return 1
  set -- ${stat##*) }
  state=$1 threads=${18} started=${20}
}
dead() {
  if look "$1"; then
    [ "$started" = "$2" ] || return 0
    case $state in
      [ZX]) [ "$threads" -le 1 ] ;;
      *) return 1 ;;
    esac
  else
    [ -d "/proc/$$" ] && ! [ -d "/proc/$1" ]
  fi
}
"""
# Arguments: boot, pid, start time, tenths of a second to wait.
_KILL = (
    FUNCTIONS
    + r"""
boot
[ "$boot" = "$1" ] || { echo dead; exit; }
shift
look "$1" && [ "$started" = "$2" ] && kill -9 "$1"
n=0
until dead "$1" "$2"; do
  [ $n -lt "$3" ] || exit 1
  sleep 0.1
  n=$((n + 1))
done
echo dead
"""
)


class CommandRunner(Protocol):
    """Host on which commands run; every call raises :class:`~migrator.errors.HostError` when it cannot be reached."""

    name: str

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        """Run a command there and wait for its end."""

    async def ask_sockets(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request about sockets of a process there answered."""

    def stream(self, argv: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Run a command there for as long as the block lasts; yield its lines as they come."""


class RemoteProcess:
    """One process of another host; see :class:`~migrator.ports.GuestProcess` for what each call promises.

    What was read of it is from when it was taken hold of. Between the look at its start time and the ``kill`` that
    follows lie some microseconds of one shell there: a process that ends just then, and whose pid is given to another
    in that very time, would be mistaken. The kernel gives pids out in turn, so all others would have to be used first.
    """

    def __init__(
        self,
        host: CommandRunner,
        pid: int,
        *,
        boot_id: str,
        start_time: int,
        executable: str,
        binary: str,
        stderr: tuple[str, int],
        arguments: Sequence[str],
        let_go: Callable[[RemoteProcess], None],
        read_at: float,
    ) -> None:
        self._host = host
        self.pid = pid
        self.boot_id = boot_id
        self.start_time = start_time
        self._executable = executable.removesuffix(" (deleted)")
        self._binary = binary
        #: File of its standard error and how long that was; ("", 0) where it is none.
        self.stderr = stderr
        self._arguments = list(arguments)
        self._let_go = let_go
        self._read_at = read_at
        self._dead = asyncio.Event()
        self._reached = True
        self._seen = False
        self._words: list[str] = []

    @property
    def identity(self) -> dict[str, Any]:
        """Pid, start time, and the boot of its host."""
        return {"pid": self.pid, "start_time": self.start_time, "boot_id": self.boot_id}

    @property
    def is_qemu(self) -> bool:
        """True where its program is a QEMU."""
        program = PurePosixPath(self._executable).name.removesuffix(" (deleted)")
        return is_qemu(program, self._arguments)

    @property
    def alive(self) -> bool | None:
        """False is proof of its death; ``None`` where the host cannot be asked now."""
        if self._dead.is_set():
            return False
        return True if self._reached else None

    def binary_identity(self) -> str:
        """Return the identity of its program, which tells one build from another, also from those of other hosts."""
        return f"{self._host.name}:{self._binary}" if self._binary else ""

    def arguments(self) -> list[str]:
        """Return its command line."""
        return list(self._arguments)

    def stderr_tail(self) -> str:
        """Return what it wrote to its standard error since this handle was made; known once it is dead."""
        return "; ".join(word for word in self._words if word)

    async def wait_dead(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end; return True only with proof of it."""
        try:
            async with asyncio.timeout(timeout):
                await self._dead.wait()
        except TimeoutError:
            return False
        return True

    async def kill(self, timeout: float) -> bool:
        """Send SIGKILL; return True only when it was seen dead within `timeout` seconds."""
        if self._dead.is_set():
            return True
        words = (self.boot_id, str(self.pid), str(self.start_time), str(max(1, round(timeout * 10))))
        try:
            output = await self._host.run(["sh", "-c", _KILL, "sh", *words], timeout=timeout + 1.0)
        except HostError:
            return False
        if output.stdout.strip() == b"dead":
            self.note_dead()
        return self._dead.is_set()

    async def ask_sockets(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request about its sockets answered: see :func:`migrator.process_sockets.answer`."""
        return await self._host.ask_sockets({**request, "process": self.identity})

    def close(self) -> None:
        """Stop watching it; the process is left alone."""
        self._let_go(self)

    # for its watch

    @property
    def key(self) -> tuple[int, int]:
        """Pid and start time."""
        return self.pid, self.start_time

    def known_at(self, since: float) -> bool:
        """Return whether the watch tells that it lives, or it was read after `since` and was not told of yet."""
        if self._dead.is_set() or not self._reached:
            return False
        return self._seen or self._read_at >= since

    def another(self) -> RemoteProcess:
        """Return one more handle on the same process, with what was read for this one."""
        made = RemoteProcess(
            self._host,
            self.pid,
            boot_id=self.boot_id,
            start_time=self.start_time,
            executable=self._executable,
            binary=self._binary,
            stderr=self.stderr,
            arguments=self._arguments,
            let_go=self._let_go,
            read_at=self._read_at,
        )
        if self._seen:
            made.note_reached(self._reached)
        return made

    def note_dead(self) -> None:
        """Note the proof that it is dead."""
        self._dead.set()

    def note_reached(self, reached: bool) -> None:
        """Note whether its host can be asked."""
        self._reached = reached
        self._seen = self._seen or reached

    def note_stderr_line(self, line: str) -> None:
        """Note a line of its standard error."""
        self._words.append(line.strip())
