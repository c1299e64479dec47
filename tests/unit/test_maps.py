"""The docstring of a package is its map: a stranger finds there which module to open."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MIGRATOR = Path(__file__).parents[2] / "migrator"
#: Packages whose modules are found by their names: a command each, a fake each; and those of a few modules.
BY_NAME = (
    "cli",
    "testing",
    "core/findings",
    "core/placement",
    "core/schedule",
    "metrics",
    "pki",
    "tracing",
    "worker",
)


def packages() -> Iterator[str]:
    for init in sorted(MIGRATOR.rglob("__init__.py")):
        name = init.parent.relative_to(MIGRATOR).as_posix()
        if name != "." and "alembic" not in name and not name.startswith(BY_NAME):
            yield name


@pytest.mark.parametrize("package", list(packages()))
def test_a_package_says_what_each_of_its_modules_is_for(package: str) -> None:
    folder = MIGRATOR / package
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = {word.rpartition("/")[2] for word in re.findall(r"`([\w/]+)`", text)}
    there = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    unnamed = sorted(there - {"__init__"} - named)
    assert unnamed == [], f"name these in the docstring of migrator/{package}/__init__.py"
