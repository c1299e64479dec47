"""QMP is spoken in one package: whoever needs something of a QEMU calls a method of its port."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.core.preflight.state_kinds import KINDS
from tests.qemu_commands import changes_nothing

MIGRATOR = Path(__file__).parents[2] / "migrator"
#: Where commands may stand: who sends them, who plays a QEMU in tests, and the table of what becomes of each.
_HOME = ("qemu/", "testing/", "core/preflight/state_kinds.py")
#: Methods that send a command wherever they are defined.
_SENDS = frozenset({"ask", "execute", "query"})


_CHANGING = frozenset(command for kind in KINDS for command in kind.qmp)


def _is_command(text: str) -> bool:
    return text in _CHANGING or (re.fullmatch(r"[a-z-]+-[a-z-]+", text) is not None and changes_nothing(text))


def _qmp_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "monitor":
            yield f"line {node.lineno}: .monitor"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # A word such as "stop" is one of ours too; see below.
            if _is_command(node.value) and ("-" in node.value or "_" in node.value):
                yield f"line {node.lineno}: {node.value!r}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            first = node.args[0]
            if node.func.attr in _SENDS and isinstance(first, ast.Constant) and _is_command(str(first.value)):
                yield f"line {node.lineno}: {node.func.attr}({first.value!r})"


def test_no_command_of_qmp_stands_outside_the_package_that_speaks_it() -> None:
    found = {
        name: list(_qmp_in(file.read_text(encoding="utf-8")))
        for file in sorted(MIGRATOR.rglob("*.py"))
        if not (name := str(file.relative_to(MIGRATOR))).startswith(_HOME)
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        'await end.execute("stop")',
        'await monitor.query("query-status")',
        'NAME = "migrate-set-parameters"',
        "read(end.monitor)",
    ],
)
def test_what_it_looks_for_is_found(source: str) -> None:
    assert list(_qmp_in(f"async def f(end, monitor, read):\n    {source}\n"))
