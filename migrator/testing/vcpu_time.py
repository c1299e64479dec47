"""CPU time of a QEMU's vCPUs, as the kernel counts it: tells whether a guest runs without asking any monitor."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

#: Names of vCPU threads: what ``debug-threads=on`` in ``-name`` gives them.
_VCPU = re.compile(r"(CPU \d+|ALL CPUs)/\w+")
#: A guest that runs is seen to run within this time, also on a busy machine: an idle one of ours wakes every 10 ms.
_OBSERVED_SECONDS = 0.5
_PAUSE_SECONDS = 0.02
#: A vCPU that was stopped just now, or is asked for its registers, takes a little time once.
_LAST_STEPS = 2


class VcpuTime:
    """CPU time that the vCPUs of one process have taken; those of a guest that stands still take none."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._vcpus: list[Path] = []

    def nanoseconds(self) -> int:
        """Return the time of all vCPUs together; 0 where the process has ended."""
        return self._total(0)

    def waited_nanoseconds(self) -> int:
        """Return the time in which they had work and no CPU, all together; 0 where the process has ended."""
        return self._total(1)

    def _total(self, field: int) -> int:
        total = 0
        try:
            if not self._vcpus:
                self._vcpus = [task / "schedstat" for task in self._tasks.iterdir() if _is_vcpu(task)]
            for each in self._vcpus:
                total += int(each.read_text(encoding="ascii").split()[field])
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return total

    async def grows(self) -> bool:
        """Tell whether the vCPUs run now; a standstill takes half a second to be certain of."""
        before = self.nanoseconds()
        deadline = asyncio.get_running_loop().time() + _OBSERVED_SECONDS
        grown = 0
        while before and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_PAUSE_SECONDS)
            now = self.nanoseconds()
            grown += now > before
            if grown > _LAST_STEPS:
                return True
            before = now
        return False


def _is_vcpu(task: Path) -> bool:
    try:
        return (
            _VCPU.fullmatch((task / "comm").read_text(encoding="utf-8", errors="replace").strip()) is not None
        )
    except (FileNotFoundError, ProcessLookupError):
        return False
