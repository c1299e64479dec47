"""How far a migration is, as a share that never falls."""

from __future__ import annotations

from migrator.core.model import Sample

#: Share of the bar that the first, whole copy gets; the rounds after it move on within what is left.
_FIRST_ROUND = 0.9


class Progress:
    """Keeps the best share seen, because QEMU's own figures jump back at every round."""

    def __init__(self) -> None:
        self.ratio = 0.0
        #: Share of the bar that disks have, which are copied before memory.
        self._disks = 0.0

    def expect_disks(self, disk_bytes: int, memory_bytes: int) -> None:
        """Give the disks that are copied first their share, by what is to be copied of them and of memory."""
        self._disks = disk_bytes / max(1, disk_bytes + memory_bytes)

    def update_disks(self, done_bytes: int, total_bytes: int) -> float:
        """Return the share after so much of the disks was copied."""
        done = min(1.0, done_bytes / total_bytes) if total_bytes > 0 else 0.0
        self.ratio = max(self.ratio, min(0.99, self._disks * done))
        return self.ratio

    def update(self, sample: Sample) -> float:
        """Return the share after this sample: 0 to 0.99, never less than before; only an arrived guest has 1."""
        if sample.total_bytes <= 0:
            return self.ratio
        done = 1 - min(1.0, sample.remaining_bytes / sample.total_bytes)
        share = _FIRST_ROUND * done if sample.round <= 1 else _FIRST_ROUND + (0.99 - _FIRST_ROUND) * done
        self.ratio = max(self.ratio, min(0.99, self._disks + (1 - self._disks) * share))
        return self.ratio

    def finish(self) -> None:
        """Note that the guest has arrived."""
        self.ratio = 1.0
