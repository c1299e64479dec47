"""Watching for monitors that appear or vanish on a host: by inotify where there is one, else by a cheap poll there."""

from __future__ import annotations

import asyncio
import ctypes
import glob
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.local import LocalAccess

#: Directories that are watched at most; in those beyond, a socket is seen at the next look only.
_MOST_WATCHES = 4096
#: Seconds in which what happens together is seen together.
_SETTLE_SECONDS = 0.1
_IN_CLOEXEC_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK
#: IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE_SELF, IN_MOVE_SELF; IN_ONLYDIR.
_EVENTS = 0x100 | 0x200 | 0x40 | 0x80 | 0x400 | 0x800 | 0x01000000
_WILD = re.compile(r"[*?[]")

# Says a line whenever the patterns match other names than before. It ends with its input, that is with the connection;
# what it waits with ends by itself.
_SCRIPT = r"""
IFS=
expand() { set -- $1; IFS=' '; now="$now $*"; IFS=; }
directories() {
  for pattern; do
    for directory in ${pattern%/*/*} ${pattern%/*}; do [ -d "$directory" ] && printf '%s\0' "$directory"; done
  done
}
watch() {
  old=none
  while :; do
    now=
    for pattern; do expand "$pattern"; done
    [ "$old" = none ] || [ "$now" = "$old" ] || echo changed
    old=$now
    if command -v inotifywait >/dev/null; then
      directories "$@" | xargs -0 -r inotifywait -qq -t 20 -e create -e delete -e move -- 2>/dev/null
      [ $? = 0 ] && sleep 0.1 && continue
    fi
    sleep 2
  done
}
watch "$@" &
cat >/dev/null 2>&1
kill $!
"""


@runtime_checkable
class _Streaming(Protocol):
    def stream(
        self, argv: Sequence[str], *, steering: bool = True
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


async def watch_sockets(access: HostAccess, patterns: Sequence[str], changed: Callable[[], None]) -> None:
    """Call `changed` whenever sockets that the glob patterns match may have come or gone; runs until cancelled.

    :raise HostError: the host cannot be watched any more; what happened meanwhile may not have been noticed.
    """
    if isinstance(access, LocalAccess):
        await _Inotify(patterns, changed).run()
    elif isinstance(access, _Streaming):
        async with access.stream(["sh", "-c", _SCRIPT, "sh", *patterns], steering=False) as lines:
            async for _ in lines:
                changed()
        raise HostError(access.name, "it is not watched any more: the connection was lost")
    else:
        await asyncio.Event().wait()


class _Inotify:
    """The directories of this machine that the patterns lead through."""

    def __init__(self, patterns: Sequence[str], changed: Callable[[], None]) -> None:
        self._patterns, self._changed = patterns, changed
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watched: dict[str, int] = {}
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled.

        :raise HostError: there is no inotify here, or no more of it.
        """
        fd = self._libc.inotify_init1(_IN_CLOEXEC_NONBLOCK)
        if fd < 0:
            raise HostError("this machine", f"inotify: {os.strerror(ctypes.get_errno())}")
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, self._wake, fd)
        try:
            found = await asyncio.to_thread(self._look, fd)
            while True:
                await self._woken.wait()
                await asyncio.sleep(_SETTLE_SECONDS)
                self._woken.clear()
                before, found = found, await asyncio.to_thread(self._look, fd)
                if found != before:
                    self._changed()
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def _wake(self, fd: int) -> None:
        try:
            while os.read(fd, 1 << 16):
                pass  # what it was is looked at
        except BlockingIOError:
            pass  # that was all
        self._woken.set()

    def _look(self, fd: int) -> list[tuple[str, int]]:
        """Watch what there is to watch now; return the files that the patterns match, each with its inode."""
        for directory in _directories(self._patterns):
            if len(self._watched) < _MOST_WATCHES:
                # One that is watched already stays so: the kernel gives the same number again.
                number = self._libc.inotify_add_watch(fd, os.fsencode(directory), _EVENTS)
                if number >= 0:
                    self._watched[directory] = number
        self._watched = {each: number for each, number in self._watched.items() if Path(each).is_dir()}
        found = []
        for path in (path for pattern in self._patterns for path in _matched(pattern)):
            try:
                found.append((path, os.lstat(path).st_ino))
            except OSError:
                pass  # it has gone meanwhile
        return sorted(found)


def _matched(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern)  # noqa: PTH207 - a pattern is absolute, and Path.glob takes none that is


def _directories(patterns: Iterable[str]) -> set[str]:
    """Return every directory in which something may appear that leads to what a pattern matches."""
    found: set[str] = set()
    for pattern in patterns:
        parts = Path(pattern).parts
        for depth in range(1, len(parts)):
            if (
                not _WILD.search(parts[depth])
                and depth + 1 < len(parts)
                and Path(*parts[: depth + 1]).is_dir()
            ):
                continue  # nothing will appear here: the next is there
            found.update(path for path in _matched(str(Path(*parts[:depth]))) if Path(path).is_dir())
    return found
