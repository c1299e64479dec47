"""Sockets and files that the operator has at a guest's process, and what becomes of them at the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.options import FIRST, Value, read
from migrator.core.process.replica import Replica, TargetEnvironment
from migrator.qemu.operator_files import OperatorFiles, absolute, relocate


@dataclass(frozen=True, kw_only=True)
class OperatorPaths:
    """Paths that the operator has at one process."""

    having: OperatorFiles
    #: Of a process that was started by us: the operator's path of each path of its own.
    names: Mapping[str, str]

    def known(self, sockets: Sequence[str]) -> list[str]:
        """Every path by which the operator knows something of it; `sockets`: those of its command line."""
        found = [*self.having.paths, *(self.names.get(path, path) for path in sockets)]
        return [path for each in found if (path := absolute(each, self.having.directory)).startswith("/")]

    def moved(self, replica: Replica, place: TargetEnvironment, *, log: str) -> Replica:
        """The replica with all of it.

        :param log: where the destination writes what QEMU says.
        """
        used = {
            Value(text or "", first=FIRST["chardev"]).get("id")
            for name, text in read(replica.argv[1:])
            if name == "chardev"
        }
        found = relocate(self.having, place, log=log, moved=replica.moved, names=self.names, taken=used)
        return replace(
            replica,
            argv=(*replica.argv, *found.words),
            findings=(*replica.findings, *self._lacking(found.links, place)),
            links={path: to for path, to in found.links.items() if path.startswith("/")},
        )

    def _lacking(self, links: Mapping[str, str], place: TargetEnvironment) -> Iterator[Finding]:
        for lost in self.having.lost:
            yield finding("stays-behind", f"{lost} stays behind: only a unix socket or a file is made again")
        for path in links:
            if not path.startswith("/"):
                yield finding("path-moved", f"{path} cannot be had there: from where it goes is not known")
            elif path in place.missing_directories:
                yield finding("path-moved", f"{path} cannot be had there: its directory does not exist")
            elif path in place.occupied and not place.same_machine:  # where it would be the source's own
                yield finding("path-moved", f"{path} cannot be had there: something else is there")
