"""Room at targets for disks that are copied: what a check says is noted, and held against what others will need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from migrator.core.findings import errors_first
from migrator.core.model import Finding
from migrator.core.preflight.disk_room import (
    CopiedDisk,
    beside_others,
    by_file_system,
    copied_bytes,
    copied_disks,
    held_rooms,
)
from migrator.engine.inventory import Inventory
from migrator.engine.migration import preflight
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.registry import Registry


class DiskRoom:
    """Judges checks by what the migrations under way have still to copy to the same place."""

    def __init__(self, *, registry: Registry, inventory: Inventory) -> None:
        self._registry, self._inventory = registry, inventory

    def judge(self, session: JournalledSession, found: Sequence[Finding]) -> Sequence[Finding]:
        """Return what a check found, with what the room for others adds to it; its disks are reserved from now on.

        There is no pause between the two: of two that are checked at once the second sees the first.
        """
        if any(each.code == preflight.UNCHECKED for each in found):
            return found  # too little was seen
        disks = copied_disks(found)
        self._inventory.note_disk_bytes(session.guest.key, session.target, copied_bytes(disks))
        session.copied_disks = disks
        others = self._to_copy(session, disks)
        return errors_first((*found, *beside_others(session.target, disks, others)))

    def _to_copy(self, session: JournalledSession, disks: Sequence[CopiedDisk]) -> Counter[str]:
        """Return the bytes that others have still to copy to each file system of a guest's disks.

        Those whose images are made are known at the host itself, other controllers' too.
        """
        held = held_rooms(disks)
        wanted: Counter[str] = Counter()
        for file_system, of_migrations in held.items():
            wanted[file_system] += sum(left for key, left in of_migrations.items() if key != session.id)
        for other in self._registry.live():
            if other is session or other.target != session.target or not other.copied_disks:
                continue
            whole, left = copied_bytes(other.copied_disks), other.disk_left_bytes or 0
            for file_system, share in by_file_system(other.copied_disks).items():
                if other.id not in held.get(file_system, {}):
                    wanted[file_system] += round(left * share / max(1, whole))
        return wanted
