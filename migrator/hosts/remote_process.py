"""Handles on processes of a host that is not this machine: watched and killed by commands there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import PurePosixPath
from typing import Any, Protocol

from migrator.core.process.qemu_program import is_qemu
from migrator.errors import HostError
from migrator.hosts.access import Output
from migrator.hosts.host_output import reading_output

# A process is known by its start time beside its pid. It is dead when the pid is gone from a /proc that is there, when
# it belongs to another start time, or when it is a zombie without threads; what cannot be read proves nothing.
_FUNCTIONS = r"""
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
_HOLD = (
    _FUNCTIONS
    + r"""
boot
if ! look "$1"; then
  [ -d "/proc/$$" ] && ! [ -d "/proc/$1" ] && exit 3
  exit 4
fi
dead "$1" "$started" && exit 3
first=$started
printf '%s\0' "$boot" "$started" "$(readlink "/proc/$1/exe")" \
  "$(stat -L -c '%d:%i:%.9Y:%s' "/proc/$1/exe" 2>/dev/null)"
if [ -f "/proc/$1/fd/2" ]; then
  printf '%s\0' "$(readlink "/proc/$1/fd/2")" "$(stat -L -c %s "/proc/$1/fd/2")"
else
  printf '\0\0'
fi
cat "/proc/$1/cmdline"
look "$1" && [ "$started" = "$first" ]
"""
)
# Arguments: pid, start time, file of its standard error and how long that was, of each process. Ends with its input,
# that is with the connection: nothing is left behind on a host that lost its controller.
_WATCH = (
    _FUNCTIONS
    + r"""
watch() {
  boot
  turn=0
  while [ $# -gt 0 ]; do
    [ $((turn % 30)) = 0 ] && printf 'boot %s\n' "$boot"
    turn=$((turn + 1))
    n=$#
    while [ $n -gt 0 ]; do
      if dead "$1" "$2"; then
        if [ -n "$3" ]; then
          timeout 1 tail -c "+$(($4 + 1))" -- "$3" 2>/dev/null | tail -c 2000 | tail -n 5 | sed "s/^/words $1 $2 /"
          printf '\n'
        fi
        printf 'dead %s %s\n' "$1" "$2"
      else
        set -- "$@" "$1" "$2" "$3" "$4"
      fi
      shift 4
      n=$((n - 4))
    done
    sleep 0.1
  done
}
{ watch "$@"; kill $$; } &
cat >/dev/null 2>&1
kill $!
"""
)
# Arguments: boot, pid, start time, tenths of a second to wait.
_KILL = (
    _FUNCTIONS
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
#: The watch says every few seconds that it is there; one that was silent for longer is not.
SILENCE_SECONDS = 15.0
#: Exit status of the first of these where there is certainly no such process.
_ABSENT = 3
#: Seconds between two attempts to watch a host that cannot be reached; doubled up to the second.
_PAUSES_SECONDS = (0.2, 5.0)


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
        self._dead = asyncio.Event()
        self._reached = True
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

    def note_dead(self) -> None:
        """Note the proof that it is dead."""
        self._dead.set()

    def note_reached(self, reached: bool) -> None:
        """Note whether its host can be asked."""
        self._reached = reached

    def note_stderr_line(self, line: str) -> None:
        """Note a line of its standard error."""
        self._words.append(line.strip())


class ProcessWatch:
    """The handles on all processes of one host, watched by one command there.

    :param silence_seconds: after which the command is taken to hang, and begun again.
    """

    def __init__(self, host: CommandRunner, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._host = host
        self._silence_seconds = silence_seconds
        self._watched: list[RemoteProcess] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def hold(self, pid: int) -> RemoteProcess | None:
        """Return a handle on a process; ``None`` when there is none of that pid.

        :raise HostError: when the host cannot be asked.
        """
        output = await self._host.run(["sh", "-c", _HOLD, "sh", str(pid)], timeout=10.0)
        if output.status == _ABSENT:
            return None
        parts = os.fsdecode(output.stdout).split("\0")
        if output.status != 0 or len(parts) < 7:  # anything else proves nothing
            raise HostError(
                self._host.name, f"pid {pid} cannot be looked at: {output.complaint or 'it changed'}"
            )
        with reading_output(self._host.name, f"pid {pid}"):
            process = RemoteProcess(
                self._host,
                pid,
                boot_id=parts[0],
                start_time=int(parts[1]),
                executable=parts[2],
                binary=parts[3],
                stderr=(parts[4], int(parts[5] or 0)),
                arguments=parts[6:-1],
                let_go=self._drop,
            )
        self._watched.append(process)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"watch processes of {self._host.name}")
        return process

    @property
    def needed(self) -> bool:
        """True while somebody holds a process."""
        return bool(self._watched)

    def _drop(self, process: RemoteProcess) -> None:
        if process in self._watched:
            self._watched.remove(process)
            self._changed.set()

    async def close(self) -> None:
        """Stop watching; nothing is known any more of what was watched."""
        for process in self._watched:
            process.note_reached(False)
        self._watched.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        shortest, longest = _PAUSES_SECONDS
        pause = shortest
        while self._watched:
            self._changed.clear()
            watched = [process for process in self._watched if process.alive is not False]
            try:
                reached = await self._once(watched) if watched else await self._wait_changed()
            except HostError:
                reached = False
            if reached:
                pause = shortest
                continue
            for process in self._watched:
                process.note_reached(False)
            await asyncio.sleep(pause)
            pause = min(longest, 2 * pause)

    async def _wait_changed(self) -> bool:
        await self._changed.wait()
        return True

    async def _once(self, watched: Sequence[RemoteProcess]) -> bool:
        """Watch these until there are others to watch; return False when that ended otherwise."""
        words = [
            word
            for process in watched
            for word in (str(process.pid), str(process.start_time), process.stderr[0], str(process.stderr[1]))
        ]
        async with self._host.stream(["sh", "-c", _WATCH, "sh", *words]) as lines:
            reading = asyncio.create_task(
                _each(lines, watched, self._silence_seconds), name=f"read watch of {self._host.name}"
            )
            changed = asyncio.create_task(self._changed.wait(), name=f"changes of {self._host.name}")
            try:
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
            finally:
                await _cancel(reading, changed)
        return self._changed.is_set() or all(process.alive is False for process in watched)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    waiting: Awaitable[Any] = asyncio.wait(set(tasks))
    await waiting


async def _each(
    lines: AsyncIterator[bytes], watched: Sequence[RemoteProcess], silence_seconds: float
) -> None:
    known = {(process.pid, process.start_time): process for process in watched}
    while True:
        try:
            async with asyncio.timeout(silence_seconds):
                line = await anext(lines)
        except (TimeoutError, StopAsyncIteration):
            return
        kind, _, rest = os.fsdecode(line).rstrip("\n").partition(" ")
        if kind == "boot":
            for process in watched:
                process.note_reached(True)
                if rest and rest != process.boot_id:
                    process.note_dead()
        elif kind in ("dead", "words"):
            pid, start, *text = rest.split(" ", 2)
            process = known[int(pid), int(start)]
            if kind == "dead":
                process.note_dead()
            else:
                process.note_stderr_line(text[0] if text else "")
