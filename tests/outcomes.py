"""What became of moves at random instants: each is noted in a file, and all that are there are told as a table.

::

    OUTCOMES=moves.jsonl make soak PYTEST_ARGS='tests/acceptance/test_disks_random.py -k hosts'
    python -m tests.outcomes moves.jsonl [--write]          # the table; and into docs/reliability.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.machine import describe
from migrator.testing.lab import binaries

VARIABLE = "OUTCOMES"
_DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
_SECTION = re.compile(r"(?<=<!-- random moves -->\n).*?(?=<!-- end -->\n)", re.DOTALL)


def note(*, by: str, fault: str, ended: str, writes: int) -> None:
    """Note one move, all of whose checks have passed.

    :param by: who moved the guest, and over what.
    :param fault: what befell it.
    :param ended: the state that the migration ended in.
    :param writes: of the guest, each of which was found in its image; 0 where the guest was lost with its QEMU.
    """
    if VARIABLE in os.environ:
        line = json.dumps({"by": by, "fault": fault, "ended": ended, "writes": writes})
        with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def table(outcomes: Iterable[Mapping[str, str]]) -> str:
    """Return how often what befell whom, and how that ended."""
    counted = Counter((each["by"], each["fault"], each["ended"]) for each in outcomes)
    lines = ["| moved by | what went wrong | moves | how they ended |", "| --- | --- | --- | --- |"]
    for by, fault in dict.fromkeys((by, fault) for by, fault, _ in sorted(counted)):
        ends = {ended: number for (*who, ended), number in sorted(counted.items()) if who == [by, fault]}
        told = ", ".join(f"{ended} {number}" for ended, number in ends.items())
        lines.append(f"| {by} | {fault} | {sum(ends.values())} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of a file, or write it into the document."""
    parser = argparse.ArgumentParser(prog="python -m tests.outcomes", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
    given = parser.parse_args()
    found = [json.loads(line) for line in given.file.read_text(encoding="utf-8").splitlines()]
    writes = sum(each["writes"] for each in found)
    text = (
        f"{describe(*map(str, binaries().values()))} · {len(found)} moves, {writes} writes found\n\n"
        f"{table(found)}\n"
    )
    if not given.write:
        print(text)  # noqa: T201 - it is what this is for
        return
    written, times = _SECTION.subn(lambda _: text, _DOCUMENT.read_text(encoding="utf-8"))
    assert times == 1
    _DOCUMENT.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
