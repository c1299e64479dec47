"""The words of findings about what is under way or set in the source's QEMU and does not travel with the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from migrator.core.findings.texts import Texts

STATE: Texts = {
    "block-job": (
        "error",
        "a job works on the guest's disks: it would end silently at the switch, or have QEMU 7.2 abort",
        "wait until it has ended or end it (job-cancel), or use a policy with block_jobs = wait",
    ),
    "block-job-waits": (
        "warning",
        "a job works on the guest's disks: the migration waits until it has ended",
        "nothing, or end it (job-cancel) to begin sooner",
    ),
    "block-export": (
        "error",
        "a disk of the guest is exported (NBD and the like): whoever reads it would be cut off in the middle",
        "wait until it is gone or remove it (block-export-del), or use a policy with block_jobs = wait",
    ),
    "block-export-waits": (
        "warning",
        "a disk of the guest is exported (NBD and the like): the migration waits until that is gone",
        "nothing, or remove the export (block-export-del) to begin sooner",
    ),
    "replay": (
        "error",
        "QEMU records or replays its execution, which is of one process",
        "start the guest without -icount rr=",
    ),
    "dirty-bitmap": (
        "warning",
        "a dirty bitmap is in QEMU's memory alone and stays behind: the next backup that needs it has to be a full one",
        "make the backup before, or have bitmaps that are kept in the image (persistent)",
    ),
    "display-password": (
        "warning",
        "the password of a remote display was set over QMP and cannot be read: after the move the right one fails",
        "set it again at the target (set_password), or give it by password-secret=",
    ),
    "stays-behind": (
        "warning",
        "something that was set in the source's QEMU while it ran cannot be made again at the target",
        "make it again at the target after the move, if it is still wanted",
    ),
    "path-moved": (
        "warning",
        "a monitor, socket, pid file or log of the guest's QEMU cannot be had under the same path at the target",
        "free that path there, or make its directory; until then use the path that is named",
    ),
    "not-put-back": (
        "warning",
        "something that was set in the source's QEMU while it ran was refused by the destination's",
        "set it again at the target after the move",
    ),
}
