"""State of a guest's QEMU that does not travel: jobs and exports under way, and what somebody set. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.policy import BlockJobs

#: Jobs and exports with an id that begins so are ours.
OURS = "migrator-"
#: A job in one of these works on nothing any more.
_DONE = frozenset({"concluded", "null", "undefined"})


@dataclass(frozen=True, kw_only=True, order=True)
class BlockJob:
    """One job of QEMU: what works on the guest's disks, or saves a snapshot."""

    id: str
    #: ``backup``, ``mirror``, ``commit``, ``stream``, ``create``, ``amend``, ``snapshot-save``, …
    kind: str
    status: str = "running"
    #: Why it failed; empty while it is at work, or where it did what it should.
    error: str = ""
    #: As QEMU counts it; both may grow.
    done_bytes: int = 0
    total_bytes: int = 0

    @property
    def at_work(self) -> bool:
        """True while it holds what it works on; afterwards only its result waits for somebody to read it."""
        return self.status not in _DONE

    def __str__(self) -> str:
        return f"{self.kind} {self.id}" + (f" ({self.status})" if self.status != "running" else "")


@dataclass(frozen=True, kw_only=True, order=True)
class Export:
    """One disk that QEMU serves to somebody else."""

    id: str
    #: ``nbd``, ``vhost-user-blk``, ``fuse``, …
    kind: str
    node: str

    def __str__(self) -> str:
        # QEMU calls a node by a name of its own where nobody gave it one.
        return f"{self.kind} export {self.id}" + ("" if self.node.startswith("#") else f" of {self.node}")


@dataclass(frozen=True, kw_only=True)
class DiskUsers:
    """Jobs and exports that must have ended before the guest may move."""

    jobs: tuple[BlockJob, ...] = ()
    exports: tuple[Export, ...] = ()
    #: Jobs of ours, those that have ended too: the mirrors of disks that are copied.
    ours: tuple[BlockJob, ...] = ()

    @property
    def mirrors_at_work(self) -> tuple[BlockJob, ...]:
        """Return the mirrors that still hold a disk: QEMU 7.2 dies where one does at the switch."""
        return tuple(job for job in self.ours if job.at_work)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.exports)

    def __str__(self) -> str:
        return ", ".join(str(each) for each in (*self.jobs, *self.exports))


@dataclass(frozen=True, kw_only=True)
class NonMigratedState:
    """State of one QEMU that its migration does not carry."""

    disk_users: DiskUsers = field(default_factory=DiskUsers)
    #: Jobs that have ended, and whose results nobody has read.
    unread: tuple[BlockJob, ...] = ()
    #: Node and name of the dirty bitmaps that are in QEMU's memory alone.
    bitmaps: tuple[tuple[str, str], ...] = ()
    #: Remote displays with a password that is not on the command line.
    passwords: tuple[str, ...] = ()
    #: ``record`` or ``play``; empty: neither.
    replay: str = ""
    #: Its gdb server was started while it ran.
    gdb: bool = False
    #: Further things that stay behind, each in a few words.
    left_behind: tuple[str, ...] = ()


def findings(state: NonMigratedState, block_jobs: BlockJobs) -> Iterator[Finding]:
    """Yield every finding about what is under way or set at the source."""
    waits = block_jobs is BlockJobs.WAIT
    for job in state.disk_users.jobs:
        if waits:
            yield finding("block-job-waits", f"{job} is under way: the migration begins once it has ended")
        else:
            yield finding("block-job", f"{job} is under way, and the policy says block_jobs = refuse")
    for export in state.disk_users.exports:
        if waits:
            yield finding(
                "block-export-waits", f"there is the {export}: the migration begins once it is gone"
            )
        else:
            yield finding("block-export", f"there is the {export}, and the policy says block_jobs = refuse")
    if state.replay:
        yield finding(
            "replay", f"QEMU was started to {state.replay} its execution (-icount rr={state.replay})"
        )
    for node, name in state.bitmaps:
        yield finding(
            "dirty-bitmap", f"dirty bitmap {name} of {node} is not kept in the image and stays behind"
        )
    for display in state.passwords:
        yield finding(
            "display-password",
            f"the password of {display} is not on the command line: it has to be set again",
        )
    if state.gdb:
        yield finding("gdb", "its gdb server does not move along")
    for job in state.unread:
        yield finding("stays-behind", f"the result of job {job} has not been read, and goes with the source")
    for thing in state.left_behind:
        yield finding("stays-behind", f"{thing} stays behind")
