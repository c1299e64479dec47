"""Cost of starting and ending the command line."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

from bench.figures import Figures, paragraphs, table, verdict
from bench.machine import Quiet, describe
from bench.options import Options
from bench.ours import Migrator

_AIM_SECONDS = 0.3


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        migrator = Migrator(Path(directory))
        measured = {
            "`python3 -c pass`": (migrator.python_cpu_seconds, None),
            "`python3 -c 'import asyncio, pydantic_core'`": (migrator.libraries_cpu_seconds, None),
            "`migrator --help`": (migrator.help_cpu_seconds, _AIM_SECONDS),
            "`migrator direct`, without a migration": (migrator.direct_cpu_seconds, None),
        }
        for measure, _ in measured.values():
            measure()  # writes the bytecode
        values: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.runs or 20):
            await quiet.wait()
            for name, (measure, _) in measured.items():
                values[name].append(measure())
    rows = []
    for name, (_, aim) in measured.items():
        figures = Figures.of(values[name])
        judged = verdict(figures, aim, "fixed") if aim is not None else ("", "")
        rows.append([name, str(figures), *judged])
    return paragraphs(
        f"{describe()} · {options.runs or 20} runs of each, in turns · {quiet}",
        "CPU time of the process, user and system, in milliseconds: median (minimum – maximum). Python's bytecode "
        "is cached. `migrator direct` loads all that it needs to move an idle guest, and ends at an option that it "
        "cannot take: what a migration takes besides the migration.",
        table(["command", "CPU time", "aim", "verdict"], rows),
    )
