"""Cost of starting the command line."""

from __future__ import annotations

import tempfile
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
        migrator.help_cpu_seconds()  # writes the bytecode
        values = []
        for _ in range(options.runs or 20):
            await quiet.wait()
            values.append(migrator.help_cpu_seconds())
    figures = Figures.of(values)
    rows = [["`migrator --help`", str(figures), *verdict(figures, _AIM_SECONDS, "fixed")]]
    return paragraphs(
        f"{describe()} · {len(values)} runs · {quiet}",
        "CPU time of the process, user and system, in milliseconds: median (minimum – maximum). Python's bytecode "
        "is cached.",
        table(["command", "CPU time", "aim", "verdict"], rows),
    )
