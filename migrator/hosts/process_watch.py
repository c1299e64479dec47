"""The watch over processes of a host that is not this machine: one command there, however many there are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from migrator.errors import HostError
from migrator.hosts.access import Output
from migrator.hosts.host_output import reading_output
from migrator.hosts.remote_process import FUNCTIONS, CommandRunner, RemoteProcess

#: What has to be known of a process before it can be watched. Argument: its pid.
READ_PROCESS = (
    FUNCTIONS
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
    FUNCTIONS
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
#: The watch says every few seconds that it is there; one that was silent for longer is not.
SILENCE_SECONDS = 15.0
#: What was read so long ago of a process still holds, though the watch has not told of it yet.
_RECENT_SECONDS = 1.0
#: Exit status of the first of these where there is certainly no such process.
_ABSENT = 3
#: Seconds between two attempts to watch a host that cannot be reached; doubled up to the second.
_PAUSES_SECONDS = (0.2, 5.0)


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
        #: Pid and start time of those that the present watch is about.
        self._of_watch: frozenset[tuple[int, int]] = frozenset()

    async def hold(self, pid: int, read: Output | None = None) -> RemoteProcess | None:
        """Return a handle on a process; ``None`` when there is none of that pid.

        :param read: what :data:`READ_PROCESS` said of it a moment ago.
        :raise HostError: when the host cannot be asked.
        """
        now = asyncio.get_running_loop().time()
        recent = (each for each in self._watched if each.pid == pid and each.known_at(now - _RECENT_SECONDS))
        known = next(recent, None)
        if known is not None and known.is_qemu:  # what becomes one may still change its program
            self._watched.append(another := known.another())
            return another
        output = read or await self._host.run(["sh", "-c", READ_PROCESS, "sh", str(pid)], timeout=10.0)
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
                read_at=now,
            )
        self._watched.append(process)
        if not (self._of_watch and process.key in self._of_watch):
            self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"watch processes of {self._host.name}")
        return process

    def _held(self) -> list[RemoteProcess]:
        """Return the handles that there are now on processes of the present watch."""
        return [process for process in self._watched if process.key in self._of_watch]

    @property
    def needed(self) -> bool:
        """True while somebody holds a process."""
        return bool(self._watched)

    def _drop(self, process: RemoteProcess) -> None:
        if process in self._watched:
            self._watched.remove(process)
            if not self._watched:
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
        # Once each: several may hold the same one. Their words are the first's, which was there for longest.
        each_once = {process.key: process for process in reversed(watched)}
        words = [
            word
            for process in each_once.values()
            for word in (str(process.pid), str(process.start_time), process.stderr[0], str(process.stderr[1]))
        ]
        self._of_watch = frozenset(each_once)
        async with self._host.stream(["sh", "-c", _WATCH, "sh", *words]) as lines:
            reading = asyncio.create_task(
                _each(lines, self._held, self._silence_seconds), name=f"read watch of {self._host.name}"
            )
            changed = asyncio.create_task(self._changed.wait(), name=f"changes of {self._host.name}")
            try:
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
            finally:
                self._of_watch = frozenset()
                await _cancel(reading, changed)
        return self._changed.is_set() or all(process.alive is False for process in watched)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    waiting: Awaitable[Any] = asyncio.wait(set(tasks))
    await waiting


async def _each(
    lines: AsyncIterator[bytes], held: Callable[[], Sequence[RemoteProcess]], silence_seconds: float
) -> None:
    """Tell what the watch says to all who hold a process now."""
    while True:
        try:
            async with asyncio.timeout(silence_seconds):
                line = await anext(lines)
        except (TimeoutError, StopAsyncIteration):
            return
        kind, _, rest = os.fsdecode(line).rstrip("\n").partition(" ")
        if kind == "boot":
            for process in held():
                process.note_reached(True)
                if rest and rest != process.boot_id:
                    process.note_dead()
        elif kind in ("dead", "words"):
            pid, start, *text = rest.split(" ", 2)
            for process in [each for each in held() if each.key == (int(pid), int(start))]:
                if kind == "dead":
                    process.note_dead()
                else:
                    process.note_stderr_line(text[0] if text else "")
