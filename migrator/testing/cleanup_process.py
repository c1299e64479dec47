"""Cleans up after a run that is killed before it can: a process of its own that waits for the end of this one."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from migrator.testing.stale import owned

# What it is about comes by its standard input, whose other end only this process has: the kernel closes that with it.
# In rounds, as a service that is killed may have just started another QEMU.
_SCRIPT = """
read -r mark && read -r directory || exit
if read -r over; then exit; fi
for round in 1 2 3; do
  for file in /proc/[0-9]*/cmdline; do
    pid=${file%/cmdline} pid=${pid#/proc/}
    if [ "$pid" != "$$" ] && grep -qsaF -e "$mark" "$file"; then kill -9 "$pid"; fi
  done 2>/dev/null
  sleep 0.2
done
for name in /run/netns/"$mark"*; do
  if [ -e "$name" ]; then ip netns delete "${name##*/}"; fi
done
rm -rf -- "$directory"
"""


class CleanupProcess:
    """A context manager: inside it, this process may be killed and leaves nothing.

    :param directory: of this run, named by :func:`migrator.testing.stale.owned`, as are its namespaces; its processes
        have that name in their command lines.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._tell(owned(""), str(self._directory))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody ended it
            self._tell("over")
        self._process.communicate()

    def _tell(self, *lines: str) -> None:
        if self._process.stdin is None:
            raise RuntimeError("it was started with a pipe")
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self._process.stdin.flush()
