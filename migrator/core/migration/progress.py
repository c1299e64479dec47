"""How far a migration is, as a share that never falls."""

from __future__ import annotations

from migrator.core.model import Sample

#: Share of the bar that the first, whole copy gets; the rounds after it move on within what is left.
_FIRST_ROUND = 0.9


class Progress:
    """Keeps the best share seen, because QEMU's own figures jump back at every round."""

    def __init__(self) -> None:
        self.ratio = 0.0

    def update(self, sample: Sample) -> float:
        """Return the share after this sample: 0 to 0.99, never less than before; only an arrived guest has 1."""
        if sample.total_bytes <= 0:
            return self.ratio
        done = 1 - min(1.0, sample.remaining_bytes / sample.total_bytes)
        share = _FIRST_ROUND * done if sample.round <= 1 else _FIRST_ROUND + (0.99 - _FIRST_ROUND) * done
        self.ratio = max(self.ratio, min(0.99, share))
        return self.ratio

    def finish(self) -> None:
        """Note that the guest has arrived."""
        self.ratio = 1.0
