"""Processes of guests, read once for all who want to know the same of them within the same moment."""

from __future__ import annotations

import time
from collections.abc import Sequence

from migrator.core.process.process_identity import OpenFiles, ProcessIdentity
from migrator.hosts.access import HostAccess
from migrator.hosts.process_identity import read_process

#: What was read so long ago is still what the next part of the same check wants.
_SECONDS = 2.0

_Found = tuple[ProcessIdentity, OpenFiles]


class RecentProcesses:
    """Processes by host and pid, as :func:`~migrator.hosts.process_identity.read_process` reads them."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, int], tuple[float, bool, frozenset[str], _Found]] = {}

    async def read(
        self, access: HostAccess, pid: int, *, paths: Sequence[str], daemonized: bool
    ) -> _Found | None:
        """Return what was read a moment ago of the same process with these paths and others, or read it.

        Relative paths tell where it was started: for those it has to be the very same ones.

        :raise HostError: when the host cannot be asked.
        """
        now = time.monotonic()
        wanted, known = frozenset(paths), self._read.get((access.name, pid))
        if known is not None and now - known[0] < _SECONDS:
            _, daemon, covered, found = known
            if daemon == daemonized and wanted <= covered and _relative(wanted) == _relative(covered):
                return found
        read = await read_process(access, pid, paths=paths, daemonized=daemonized)
        self.note(access, pid, read, began=now, paths=paths, daemonized=daemonized)
        return read

    def note(
        self,
        access: HostAccess,
        pid: int,
        read: _Found | None,
        *,
        began: float,
        paths: Sequence[str],
        daemonized: bool,
    ) -> None:
        """Note what was read of a process, since `began` (``time.monotonic``); see :meth:`read`."""
        self._read = {key: each for key, each in self._read.items() if began - each[0] < _SECONDS}
        if read is not None:
            self._read[access.name, pid] = began, daemonized, frozenset(paths), read


def _relative(paths: frozenset[str]) -> set[str]:
    return {path for path in paths if path and not path.startswith("/")}
