"""Names for what a run leaves on the machine, by which a later run can tell that it is nobody's any more."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME = re.compile(r"migrator-(?P<pid>\d+)-(?P<birth>\d+)-.+")


def owned(name: str) -> str:
    """Return ``name`` with a mark of this process before it."""
    return f"migrator-{os.getpid()}-{_birth(os.getpid())}-{name}"


def stale(directory: Path) -> list[Path]:
    """Return what stands in ``directory`` under such names of processes that have ended."""
    found = ((path, _NAME.fullmatch(path.name)) for path in directory.glob("migrator-*"))
    return [path for path, match in found if match and _birth(int(match["pid"])) != int(match["birth"])]


def _birth(pid: int) -> int | None:
    """Return when the process started, in the kernel's ticks; ``None`` for no such process.

    The time tells it from a later one with its pid.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])
