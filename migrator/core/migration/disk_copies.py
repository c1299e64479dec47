"""Disks that are copied to the target before the guest's memory: which they are, how far their mirrors are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.policy import CopiedDisks, Policy
from migrator.core.preflight.disk_images import why_not_copied
from migrator.core.preflight.facts import Disk, Facts
from migrator.core.preflight.non_migrated_state import OURS, BlockJob
from migrator.core.process.command_line import path_of

#: Jobs, nodes and exports of mirrors have names that begin so; QEMU allows 31 characters for a node.
MIRRORS = f"{OURS}disk-"
_DIGITS = 10


@dataclass(frozen=True, kw_only=True)
class DiskCopy:
    """One disk that is copied to the target."""

    #: Name that both ends give the drive alike.
    device: str
    #: Size that the guest sees, and what is allocated of it at the source.
    size_bytes: int
    allocated_bytes: int = 0
    #: Path of its image at the source, empty where it has none; and its format.
    path: str = ""
    format: str = ""
    #: The image at the target was made for this migration and reads as zeroes, or as what it is based on.
    new: bool = False
    #: It is based on the same images as the one at the source: only what that has besides is copied.
    based: bool = False


def mirror_prefix(migration: str) -> str:
    """Return how the names of all mirrors of one migration begin, and no others'."""
    return f"{MIRRORS}{_digest(migration)}-"


def mirror_name(migration: str, number: int) -> str:
    """Return the name of the job that copies the disk of that number, of its target node and of its export."""
    return f"{mirror_prefix(migration)}{number}"


def bitmap_name(migration: str, device: str) -> str:
    """Return the name of the bitmap at the destination of what was written to a disk since the switch."""
    return f"{mirror_prefix(migration)}w{_digest(device)}"


def _digest(name: str) -> str:
    import hashlib  # noqa: PLC0415 - only where disks are copied

    return hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]


def disks_to_copy(
    source: Facts, destination: Facts, policy: Policy, *, new: Collection[str] = ()
) -> tuple[DiskCopy, ...]:
    """Return the disks that have to be copied for the guest to go on with the same contents.

    A disk that both ends are known to have open as the same file never is: it would be written over with itself.

    :param new: devices whose images were made at the target for this migration.
    """
    there = {disk.device: disk for disk in destination.disks}
    return tuple(
        DiskCopy(
            device=disk.device,
            size_bytes=disk.virtual_bytes,
            allocated_bytes=disk.copied_bytes(keep_backing=_is_based(there[disk.device], new)),
            path=path_of(disk.file),
            format=disk.format,
            new=disk.device in new,
            based=_is_based(there[disk.device], new),
        )
        for disk in source.disks
        if disk.device in there and (disk.device in new or _differs(disk, there[disk.device], policy.disks))
    )


def _is_based(disk: Disk, new: Collection[str]) -> bool:
    return disk.device in new and bool(disk.image.backing_file)


def _differs(disk: Disk, other: Disk, disks: CopiedDisks) -> bool:
    if disk.read_only or disk.is_flash or disks is CopiedDisks.NONE:
        return False
    if disk.identity and other.identity:
        return disk.identity != other.identity
    return disks is CopiedDisks.ALL


def findings(source: Facts, destination: Facts, copies: Sequence[DiskCopy]) -> Iterator[Finding]:
    """Yield what speaks against copying these disks of the source."""
    copied = {copy.device for copy in copies}
    there = {disk.device: disk for disk in destination.disks}
    uses = Counter(disk.file for disk in source.disks)
    for disk in source.disks:
        if disk.device in copied and (
            why := why_not_copied(disk) or _why_not_to(disk, there[disk.device], uses)
        ):
            yield finding("disk-not-copied", f"disk {disk.device} ({disk.file}) cannot be copied: {why}")


def _why_not_to(disk: Disk, other: Disk, uses: Mapping[str, int]) -> str:
    """Return why the contents of a disk may not go to that of the destination; empty where they may."""
    if uses[disk.file] > 1:
        return (
            "another disk of the guest has the same image, and its mirror does not see what this one writes"
        )
    if not path_of(disk.file) and disk.file == other.file:
        return (
            "both ends name the same one, which is not on either host: it would be written over with itself"
        )
    return ""


def as_fields(copies: Sequence[DiskCopy]) -> list[dict[str, Any]]:
    """Return the disks as plain JSON, for the record."""
    return [asdict(copy) for copy in copies]


def from_fields(saved: Sequence[Mapping[str, Any]]) -> tuple[DiskCopy, ...]:
    """Return the disks that :func:`as_fields` gave to a record."""
    return tuple(DiskCopy(**each) for each in saved)


class MirrorPhase(StrEnum):
    """How far the mirrors of a migration are, all together."""

    #: One of them has not written everything once.
    COPYING = "copying"
    #: All have, and what the guest writes goes to both sides.
    READY = "ready"
    #: Some have been ended, and not all of them yet.
    ENDING = "ending"
    #: All have ended without an error: both sides have the same contents, if the guest stood still.
    ARRIVED = "arrived"
    #: One has failed, or is not there: the image at the target is worth nothing.
    BROKEN = "broken"


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """The mirrors of one migration, as its source shows them."""

    phase: MirrorPhase
    #: With ``broken``: what is wrong, for a person.
    problem: str = ""
    total_bytes: int = 0
    done_bytes: int = 0

    @property
    def remaining_bytes(self) -> int:
        """Return what has not been written to the target yet; more than once where the guest wrote again."""
        return max(0, self.total_bytes - self.done_bytes)


_READY = frozenset({"ready", "standby"})


def judge_mirrors(copies: Sequence[DiskCopy], migration: str, jobs: Sequence[BlockJob]) -> Mirrors:
    """Judge the mirrors of a migration by the jobs that QEMU shows; total.

    A job that has ended is kept until the source is quit or put back: its result is the proof that the disk is there.
    """
    by_id = {job.id: job for job in jobs}
    states: set[MirrorPhase] = set()
    total = done = 0
    problem = ""
    for number, copy in enumerate(copies):
        job = by_id.get(mirror_name(migration, number))
        if job is None:
            problem = problem or f"disk {copy.device}: its mirror is not there any more"
        elif job.error or job.status in ("aborting", "null", "undefined"):
            problem = problem or f"disk {copy.device} could not be copied: {job.error or job.status}"
        else:
            total, done = total + job.total_bytes, done + job.done_bytes
            if job.status == "concluded":
                states.add(MirrorPhase.ARRIVED)
            elif job.status in _READY:
                states.add(MirrorPhase.READY)
            elif job.status in ("waiting", "pending"):
                states.add(MirrorPhase.ENDING)
            else:
                states.add(MirrorPhase.COPYING)
    if problem:
        return Mirrors(phase=MirrorPhase.BROKEN, problem=problem, total_bytes=total, done_bytes=done)
    if not states:
        phase = MirrorPhase.ARRIVED  # there is nothing to copy
    elif len(states) == 1:
        phase = states.pop()
    else:
        phase = MirrorPhase.COPYING if MirrorPhase.COPYING in states else MirrorPhase.ENDING
    return Mirrors(phase=phase, total_bytes=total, done_bytes=done)
