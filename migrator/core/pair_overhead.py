"""Part of a downtime that is not memory over the network, as migrations between two versions of QEMU showed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

#: So many of the last migrations of a pair count.
_KEPT = 30
#: Less than so many say nothing about a 90th percentile.
_ENOUGH = 3


def after(seen: Sequence[float], seconds: float) -> list[float]:
    """Return what is kept after one more migration, the last ones last."""
    return [*seen, round(seconds, 4)][-_KEPT:]


def percentile(seen: Sequence[float]) -> float | None:
    """Return the 90th percentile, seconds; ``None`` while too few were seen."""
    ranked = sorted(seen)
    return ranked[min(len(ranked) - 1, round(0.9 * len(ranked)))] if len(ranked) >= _ENOUGH else None
