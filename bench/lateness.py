"""How late timers of an event loop come: how late it would act upon what it hears."""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
from pathlib import Path

_EVERY_SECONDS = 0.002


async def measure_lateness(file: Path) -> None:
    """Write how late each timer came, in seconds, one line for each second, until cancelled."""
    loop = asyncio.get_running_loop()
    with file.open("w", encoding="utf-8") as out:
        values: list[float] = []
        since = loop.time()
        while True:
            due = loop.time() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            now = loop.time()
            values.append(now - due)
            if now - since >= 1.0:
                out.write(json.dumps([round(value, 6) for value in values]) + "\n")
                out.flush()
                values, since = [], now


def lines(file: Path) -> int:
    """Return how many seconds were written."""
    return len(file.read_text(encoding="utf-8").splitlines())


def read_lateness(file: Path, *, after: int = 0) -> list[float]:
    """Return what was written after so many seconds."""
    return [
        value for line in file.read_text(encoding="utf-8").splitlines()[after:] for value in json.loads(line)
    ]


def p99(values: list[float]) -> float:
    """Return the 99th percentile; the largest of few."""
    return statistics.quantiles(values, n=100)[98] if len(values) > 100 else max(values)


def processor_seconds(pid: int) -> float:
    """Return the processor seconds of that process, without those that it started."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) * 1024 if found else 0


def children(pid: int) -> list[int]:
    """Return the processes that this one has started and that live."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(word) for word in text.split()]
