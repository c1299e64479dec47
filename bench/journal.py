"""``python -m bench.journal [DIRECTORY]``: what it costs to have something in the journal for good."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from migrator.api.requests import CommandKey
from migrator.store.journal import SqlJournal

_RUNS = 300
_MIGRATIONS = 100
_SECONDS = 3.0


def document(number: int) -> dict[str, Any]:
    """About as large as one with twenty decisions is."""
    decision = {
        "at_seconds": 1.25,
        "action": "throttle",
        "reason": "x" * 120,
        "numbers": {"rate": 123456789.5},
    }
    return {
        "id": f"m{number}",
        "guest": f"guest{number}",
        "source": "h1",
        "destination": "h2",
        "state": "precopy",
        "created_at": "2026-03-01T12:00:00Z",
        "ended_at": None,
        "decisions": [decision] * 20,
    }


def event(number: int) -> dict[str, Any]:
    """A decision's."""
    return {
        "event_id": number,
        "sequence": number // _MIGRATIONS,
        "time": datetime.now(UTC).isoformat(),
        "kind": "decision",
        "subject": "migration",
        "subject_id": f"m{number % _MIGRATIONS}",
        "body": document(0)["decisions"][0],
    }


async def each(call: Callable[[int], Awaitable[Any]]) -> str:
    """Median and 99th percentile of one call after the other."""
    times = []
    for number in range(_RUNS):
        began = time.perf_counter()
        await call(number)
        times.append((time.perf_counter() - began) * 1e3)
    return f"{median(times):6.2f} ms median, {quantiles(times, n=100)[98]:6.2f} ms p99"


async def together(journal: SqlJournal) -> str:
    """A hundred migrations, each of which writes its document and an event as soon as the last are on disk."""
    written, latencies = 0, []
    began = time.perf_counter()

    async def go(number: int) -> None:
        nonlocal written
        while time.perf_counter() - began < _SECONDS:
            started = time.perf_counter()
            written += 1
            await journal.save(("migration", document(number)), events=[event(100_000 + written)])
            latencies.append((time.perf_counter() - started) * 1e3)

    async with asyncio.TaskGroup() as tasks:
        for number in range(_MIGRATIONS):
            tasks.create_task(go(number), name=f"migration {number}")
    seconds = time.perf_counter() - began
    return (
        f"{written / seconds:6.0f} events and as many documents a second; both take {median(latencies):.1f} ms median, "
        f"{quantiles(latencies, n=100)[98]:.1f} ms p99"
    )


def bare_sync(directory: Path) -> Callable[[int], Awaitable[Any]]:
    """Measure the time that the disk alone takes for as much."""
    file = os.open(directory / "bare", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    async def write(_: int) -> None:
        os.write(file, b"x" * 8192)
        os.fdatasync(file)

    return write


async def main(parent: str | None) -> None:
    """Print the figures of a journal in a directory made below `parent`."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="bench-journal-") as name:
        directory = Path(name)
        print(f"write 8 KiB and sync, bare   {await each(bare_sync(directory))}")
        began = time.perf_counter()
        async with await SqlJournal.open(directory / "journal.db") as journal:
            print(f"open, made anew              {(time.perf_counter() - began) * 1e3:6.1f} ms")
            print(
                f"save one migration           {await each(lambda n: journal.save(('migration', document(n))))}"
            )
            print(f"append one event             {await each(lambda n: journal.save(events=[event(n + 1)]))}")
            print(
                "claim a command              "
                + await each(
                    lambda n: journal.claim_command(
                        key=str(CommandKey("ann", str(n))),
                        verb="migrate",
                        body_hash="h",
                        body={"guest": "g"},
                        caller={"user": "ann"},
                    )
                )
            )
            print(f"find one migration           {await each(lambda n: journal.find('migration', f'm{n}'))}")
            token = await journal.tokens.create(name="ann", role="viewer")
            print(f"verify a token               {await each(lambda n: journal.tokens.verify(token))}")
            print(f"a page of 50                 {await each(lambda n: journal.page('migration', limit=50))}")
            print(f"{_MIGRATIONS} migrations at once       {await together(journal)}")
        began = time.perf_counter()
        async with await SqlJournal.open(directory / "journal.db") as journal:
            opened = (time.perf_counter() - began) * 1e3
            began = time.perf_counter()
            await journal.positions()
            await journal.unfinished("migration")
            print(f"open again {opened:.1f} ms, read back {(time.perf_counter() - began) * 1e3:.1f} ms")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
