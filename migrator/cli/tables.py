"""Tables for people: fitted to the terminal, with tabs when piped."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from migrator.text import clean

if TYPE_CHECKING:
    from rich.text import Text

Row = Sequence[str]

#: Columns that go on below instead of being cut.
_WRAPS = (
    *("NOTE", "WHY", "EXPERIENCE", "ALLOWS", "HOSTS"),
    *("FILE", "CAN BE LOADED ON", "NAMES", "DIRECTORY"),
)
#: Columns that become narrower first, and no narrower than this while there are lesser ones to leave out.
_GIVE_WAY = ("GUEST", "NAME", *_WRAPS)
_LEAST_WIDTH = 20
#: More than any line has.
_ANY_WIDTH = 100_000
#: Indentation of what stands below its row.
_INDENT = 4
#: Columns that are left out where there is no room, the first first; --json has them all.
_LESSER = (
    "UUID",
    "CREATED",
    "OF",
    "LINK",
    "POLICY",
    "STARTS",
    "TIME LEFT",
    "DIRTIED",
    "STREAM",
    "KIND",
    "UP",
    "MEMORY FREE",
    "ANSWERS AT",
    "VERSION",
    "HEARTBEAT",
    "FORECAST END",
    "DEADLINE",
    "TAKES",
    "DOWNTIME",
    "ORDER",
    "LEASE",
    "DRIVES",
    "LEFT",
    "BY QEMU",
    "SAVED",
    "SIZE",
)

#: The state of a migration that completed, but not as its policy wants it.
ABOVE = "completed, above ceiling"

#: Words that shall catch the eye.
_STYLE = {
    "held": "bold red",
    "failed": "red",
    "down": "red",
    "completed": "green",
    ABOVE: "bold red",
    "moved": "green",
    "draining": "yellow",
    "active, cordoned": "yellow",
    "lost-contact": "bold red",
    "set-aside": "red",
    "no-target": "yellow",
    "late": "bold red",
    "RUNS TWICE": "bold red",
    "at risk": "yellow",
}


def table(header: Row, rows: Iterable[Row], *, empty: str, wide: bool = False) -> None:
    """Print a table: fitted to the terminal's width where there is one, whole and with tabs otherwise.

    :param wide: with every column, however long the lines become.
    """
    rows = [[clean(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in (header, *rows):
            print("\t".join(row))
        return
    if not rows:
        print(empty)
        return
    from rich.console import Console  # noqa: PLC0415 - slow, and of no use to a pipe

    console = Console(highlight=False)
    console.print(grid(header, rows, width=_ANY_WIDTH if wide else console.width), soft_wrap=True)


def grid(header: Row, rows: Iterable[Row], *, width: int) -> Text:
    """Lay out a table for a terminal of that width: empty columns go, then names give way, then lesser columns.

    A note is never cut nor left out: it goes on in the lines below, at its column where that has room, else below all.
    """
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - slow
    from rich.text import Text  # noqa: PLC0415

    rows = [[clean(cell) for cell in row] for row in rows]
    natural = [max(cell_len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    kept = [n for n in range(len(header)) if any(row[n] for row in rows)]
    below = [n for n in kept if header[n] in _WRAPS]
    widths = _fit(header, natural, kept, width)
    if any(widths.get(n, 0) < min(natural[n], _LEAST_WIDTH) for n in below):
        widths = _fit(header, natural, [n for n in kept if n not in below], width)
    else:
        below = []
    made = Text()
    for row in (header, *rows):
        cells = {n: _lines(row[n], widths[n], wraps=header[n] in _WRAPS) for n in sorted(widths)}
        for k in range(max((len(lines) for lines in cells.values()), default=1)):
            line = Text()
            for n, lines in cells.items():
                cell = lines[k] if k < len(lines) else ""
                if cell_len(cell) > widths[n]:
                    cell = set_cell_size(cell, max(0, widths[n] - 1)) + "…"
                style = "bold" if row is header else _STYLE.get(row[n], "")
                line.append(set_cell_size(cell, widths[n]), style)
                line.append("  ")
            line.rstrip()
            line.truncate(width)
            made.append(line)
            made.append("\n")
        indent = _INDENT if width > 3 * _INDENT else 0
        for n in below if row is not header else ():
            for text in wrapped(row[n], max(1, width - indent)):
                made.append(f"{' ' * indent}{text}\n")
    made.right_crop(1)
    return made


def _lines(cell: str, width: int, *, wraps: bool) -> list[str]:
    return wrapped(cell, width) or [""] if wraps else [cell]


def wrapped(text: str, width: int) -> list[str]:
    """Wrap into lines of at most so many cells, nothing left out but blanks; a character may take two."""
    from rich.cells import cell_len, chop_cells  # noqa: PLC0415 - slow

    lines = [""]
    for word in text.split():
        for part in [word] if cell_len(word) <= width else chop_cells(word, width):
            joined = f"{lines[-1]} {part}" if lines[-1] else part
            if cell_len(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(part)
    return [line for line in lines if line]


def hanging(line: str, width: int) -> list[str]:
    """Break a line of prose between words where a terminal of that width would break it within one.

    It goes on with a larger indentation. A word that is longer than the terminal is left whole.
    """
    from rich.cells import cell_len  # noqa: PLC0415 - slow

    indent = " " * (len(line) - len(line.lstrip()) + _INDENT)
    if cell_len(line) <= width or width < 4 * len(indent):
        return [line]
    lines = [""]
    for word in re.findall(r"\s*\S+", line):
        if not lines[-1].strip() or cell_len(lines[-1] + word) <= width:
            lines[-1] += word
        else:
            lines.append(indent + word.lstrip())
    return lines


def _fit(header: Row, natural: Sequence[int], kept: list[int], width: int) -> dict[int, int]:
    widths: dict[int, int] = {}
    for least in (_LEAST_WIDTH, 1):
        columns = list(kept)
        while True:
            widths = {n: natural[n] for n in columns}
            gives = [n for n in columns if header[n] in _GIVE_WAY]
            while sum(widths.values()) + 2 * (len(widths) - 1) > width:
                widest = max(gives, key=lambda n: widths[n], default=None)
                if widest is None or widths[widest] <= least:
                    break
                widths[widest] -= 1
            else:
                return widths
            # In the list of policies it is what a row is about.
            lesser = [n for name in _LESSER for n in columns if header[n] == name and (n or name != "POLICY")]
            if not lesser:
                break
            columns.remove(lesser[0])
    return widths
