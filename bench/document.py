"""docs/benchmarks.md: one section a measurement, each replaced by itself."""

from __future__ import annotations

import re
from pathlib import Path

PATH = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEAD = """\
# Benchmarks

Every number here was written by the command that measured it, on the machine and at the time its section names:

    make bench BENCH_ARGS=--write

`BENCH_ARGS='virsh --write'` measures and replaces one section. Aims are compared with medians.
`make bench-policies`, `make bench-forecasts`, `make bench-evacuation` and `make bench-scale` measure the sections of
those names. Only *What falls short* is written by hand, from the sections as they were then.
"""
_SECTION = re.compile(r"<!-- (?P<key>\S+) -->\n(?P<text>.*?)<!-- end -->\n", re.DOTALL)


def write(key: str, title: str, text: str, *, order: list[str], path: Path = PATH) -> None:
    """Put a section in the place of the one with its key, or where ``order`` wants it."""
    found = _SECTION.finditer(path.read_text(encoding="utf-8")) if path.exists() else ()
    sections = {match["key"]: match["text"] for match in found}
    sections[key] = f"## {title}\n\n{text}\n\n"
    keys = sorted(sections, key=lambda name: order.index(name) if name in order else len(order))
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "\n".join([_HEAD, *(f"<!-- {name} -->\n{sections[name]}<!-- end -->\n" for name in keys)]),
        encoding="utf-8",
    )
