"""The machine that is measured on: what it is, and whether something else keeps it busy."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

_SAMPLE_SECONDS = 0.4
#: Of all its cores. The bench itself takes almost nothing while it looks.
_QUIET_SHARE = 0.1


class Quiet:
    """Waits until the rest of the machine is quiet, and remembers how quiet it was.

    :param timeout_seconds: for the whole of the measurement; once they are spent, it is measured as it is, and the
        text says how busy the machine was.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._worst_share = 0.0
        self._waited_in_vain = False

    async def wait(self) -> None:
        """Call before each run, with nothing of the bench's own at work."""
        while True:
            before = _busy_and_total()
            await asyncio.sleep(_SAMPLE_SECONDS)
            busy, total = (after - then for after, then in zip(_busy_and_total(), before, strict=True))
            share = busy / max(total, 1)
            if share <= _QUIET_SHARE or self._timeout_seconds <= 0:
                self._worst_share = max(self._worst_share, share)
                self._waited_in_vain = self._waited_in_vain or share > _QUIET_SHARE
                return
            self._timeout_seconds -= _SAMPLE_SECONDS

    def __str__(self) -> str:
        above = _priority()
        busy = f"took at most {self._worst_share:.0%} of the cores right before a run"
        if above:
            return f"{above}; others, below it, {busy}"
        busy = f"other work {busy}"
        return "ordinary priority · " + (
            f"**the machine was not quiet: {busy}**" if self._waited_in_vain else busy
        )


def _priority() -> str:
    """Return in words how what is measured comes before all other work; empty where it does not."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return "what is measured had real-time priority"
    # Where the kernel groups processes by sessions, their own niceness says nothing beside those of others.
    by_sessions = _read("/proc/sys/kernel/sched_autogroup_enabled").strip() == "1"
    words = _read("/proc/self/autogroup").split()
    nice = (int(words[-1]) if words else 0) if by_sessions else os.getpriority(os.PRIO_PROCESS, 0)
    return f"what is measured had priority (nice {nice})" if nice < 0 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _busy_and_total() -> tuple[int, int]:
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def describe(*programs: str) -> str:
    """The machine, the versions and the time, in one line.

    :param programs: whose ``--version`` counts.
    """
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *(_version(program) for program in programs),
    ]
    return " · ".join(parts)


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True)
    line = said.stdout.splitlines()[0].replace("emulator version ", "")
    return line if "QEMU" in line else f"{Path(program).name} {line}"
