"""A table of what ran on which QEMU: a pytest plugin, for ``make test-all``.

``--write-table`` puts it into docs/reliability.md.
"""

from __future__ import annotations

import ast
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.figures import table
from bench.machine import describe
from migrator.testing.lab import binaries
from tests.conftest import VERSIONS

_ROOT = Path(__file__).parents[1]
_DOCUMENT = _ROOT / "docs" / "reliability.md"
_SECTION = re.compile(r"(?<=<!-- matrix -->\n).*?(?=<!-- end -->\n)", re.DOTALL)
#: ``7.2`` for both ends, or ``7.2-to-10.0``.
_VERSION = "|".join(map(re.escape, VERSIONS))
_VERSIONS = re.compile(rf"[\[-]({_VERSION})(?:-to-({_VERSION}))?[\]-]")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help=f"write it to {_DOCUMENT.relative_to(_ROOT)}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that gets the reports of all
        config.pluginmanager.register(Matrix(write=config.getoption("--write-table")), "matrix")


class Matrix:
    """Counts results by file and QEMU."""

    def __init__(self, *, write: bool) -> None:
        self._write = write
        self._began = time.monotonic()
        #: By file, versions, and whether it passed.
        self._found: Counter[tuple[str, str, bool]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.skipped and (report.when == "call" or not report.passed):
            self._found[report.nodeid.partition("::")[0], versions(report.nodeid), report.passed] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        text = self.text()
        terminalreporter.section("on which QEMU")
        terminalreporter.write_line(text)
        if self._write:
            written = _SECTION.sub(lambda _: text, _DOCUMENT.read_text(encoding="utf-8"))
            _DOCUMENT.write_text(written, encoding="utf-8")

    def text(self) -> str:
        """The table, and when and where it was made."""
        columns = sorted({key[1] for key in self._found if key[1]}, key=lambda name: (len(name), name))
        rows = [
            [title(_ROOT / file), *(self._cell(file, column) for column in columns)]
            for file in sorted({key[0] for key in self._found if key[1]})
        ]
        passed = sum(count for key, count in self._found.items() if key[2])
        whole = sum(self._found.values())
        minutes = (time.monotonic() - self._began) / 60
        head = f"{describe(*map(str, binaries().values()))} · {passed} of {whole} tests passed in {minutes:.0f} minutes"
        return f"{head}\n\n{table(['tests that passed', *columns], rows)}\n"

    def _cell(self, file: str, column: str) -> str:
        passed, failed = (self._found[file, column, state] for state in (True, False))
        if not passed + failed:
            return "–"
        return f"**{passed} of {passed + failed}**" if failed else str(passed)


def versions(nodeid: str) -> str:
    """``7.2``, ``7.2 to 10.0``, or nothing where the test does not depend on it."""
    match = _VERSIONS.search(nodeid)
    if match is None:
        return ""
    return match[1] if match[2] in (None, match[1]) else f"{match[1]} to {match[2]}"


def title(path: Path) -> str:
    """The first sentence of a file of tests."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    return text.partition("\n")[0].rstrip(".")
