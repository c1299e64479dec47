"""Options of a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from migrator.testing.lab import IDLE, Habit

MEMORY_BYTES = 512 << 20

#: The guests that are moved.
GUESTS = {
    "idle": IDLE,
    "dirtying 100 MiB": Habit(region_bytes=100 << 20, bytes_per_second=20 << 20),
}

#: A guest that has just started settles for so long before it is moved.
SETTLE_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Options:
    """See ``python -m bench --help``."""

    #: How often each thing is measured; ``None``: as often as the part thinks right.
    runs: int | None
    #: The QEMU on both sides, as ``7.2``.
    version: str
    binary: Path
    #: Whether all that is measured has real-time priority.
    realtime: bool
    #: Whole matrices, where a part measures a smaller set by default.
    whole: bool = False
