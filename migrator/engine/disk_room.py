"""Room at targets for disks that are copied: what a check says is noted, and held against what others will need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from migrator.core.findings import errors_first
from migrator.core.model import Finding
from migrator.core.preflight.disk_room import beside_others, by_file_system, copied_bytes, copied_disks
from migrator.engine.inventory import Inventory
from migrator.engine.migration import preflight
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.registry import Registry


class DiskRoom:
    """Judges checks by what the migrations under way, of this controller, have still to copy to the same place."""

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
        others = self._to_copy(session.target, beside=session)
        return errors_first((*found, *beside_others(session.target, disks, others)))

    def _to_copy(self, target: str, *, beside: JournalledSession) -> Counter[str]:
        """Return the bytes that are still to be copied to each file system of a host."""
        wanted: Counter[str] = Counter()
        for session in self._registry.live():
            if session is beside or session.target != target or not session.copied_disks:
                continue
            whole, left = copied_bytes(session.copied_disks), session.disk_left_bytes or 0
            for file_system, share in by_file_system(session.copied_disks).items():
                wanted[file_system] += round(left * share / max(1, whole))
        return wanted
