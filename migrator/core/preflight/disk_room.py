"""Disks that a check says are copied, and the room for them where several guests are moved to one file system. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.units import show_bytes


@dataclass(frozen=True, kw_only=True)
class CopiedDisk(Finding):
    """The finding ``disk-copied``, with the figures that a plan needs."""

    #: What is allocated of it at the source, at most the size that the guest sees.
    copied_bytes: int
    #: Directory of the target that its image is made in, the file system that is in, and what that has left.
    directory: str
    file_system: str
    free_bytes: int
    #: What other images in that directory will take yet, by the migrations that fill them, of whichever controller.
    held_bytes: Mapping[str, int] = field(hash=False)


def copied_disk(
    message: str,
    *,
    copied_bytes: int,
    directory: str,
    file_system: str,
    free_bytes: int,
    held_bytes: Mapping[str, int] | None = None,
) -> CopiedDisk:
    """Return the finding about a disk that is copied."""
    return CopiedDisk(
        **asdict(finding("disk-copied", message)),
        copied_bytes=copied_bytes,
        directory=directory,
        file_system=file_system,
        free_bytes=free_bytes,
        held_bytes=dict(held_bytes or {}),
    )


def copied_disks(findings: Iterable[Finding]) -> tuple[CopiedDisk, ...]:
    """Return the disks of which the findings of a check say that they are copied."""
    return tuple(each for each in findings if isinstance(each, CopiedDisk))


def copied_bytes(disks: Iterable[CopiedDisk]) -> int:
    """Return how much is copied of all of them."""
    return sum(disk.copied_bytes for disk in disks)


def by_file_system(disks: Iterable[CopiedDisk]) -> Counter[str]:
    """Return how much is copied to each file system."""
    found: Counter[str] = Counter()
    for disk in disks:
        found[disk.file_system] += disk.copied_bytes
    return found


def held_rooms(disks: Iterable[CopiedDisk]) -> dict[str, dict[str, int]]:
    """Return what is held in the file systems of a guest's disks, by file system and migration."""
    found: dict[str, dict[str, int]] = {}
    for disk in {disk.directory: disk for disk in disks}.values():
        held = found.setdefault(disk.file_system, {})
        for migration, left in disk.held_bytes.items():
            held[migration] = held.get(migration, 0) + left
    return found


class PlannedRoom:
    """Room that the guests of a plan are given one after the other."""

    def __init__(self) -> None:
        #: By the guests' keys, the target of each and its disks.
        self._given: dict[str, tuple[str, tuple[CopiedDisk, ...]]] = {}

    def give(self, guest: str, target: str, disks: Iterable[CopiedDisk]) -> None:
        """Give a guest room at its target, instead of where it had it before."""
        self._given[guest] = (target, tuple(disks))

    def beside(self, guest: str, target: str) -> Counter[str]:
        """Return what the others were given at a target, by file system."""
        given: Counter[str] = Counter()
        for other, (where, disks) in self._given.items():
            if other != guest and where == target:
                given += by_file_system(disks)
        return given


def beside_others(target: str, disks: Iterable[CopiedDisk], others: Mapping[str, float]) -> Iterator[Finding]:
    """Yield a finding for each file system that has room for the guest's disks, but not for others' beside them.

    :param others: bytes that are still to be copied there of other guests, by file system.
    """
    disks = tuple(disks)
    first = {disk.file_system: disk for disk in reversed(disks)}
    for file_system, needed in by_file_system(disks).items():
        where, taken = first[file_system], others.get(file_system, 0)
        if needed <= where.free_bytes < needed + taken:
            yield finding(
                "disk-room",
                f"{where.directory} at {target} has {show_bytes(where.free_bytes)} left, of which the disks of other "
                f"guests that are moved there need {show_bytes(taken)}, and {show_bytes(needed)} of this guest's disks "
                "would be copied to there",
            )
