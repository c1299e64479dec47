"""Programs that tests and benchmarks write into strings import what is there: nothing else reads them before."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Files without this have no such program; to parse all of them takes a while.
_SUSPECT = re.compile(r'["\';] *(?:import|from) \w|"""\n(?:import|from) ')
_IMPORT = re.compile(
    r"(?:^|[;\n]|\bcode = .)\s*(?:from (migrator[\w.]*) import ([\w, ]+)|import (migrator[\w.]*))"
)


def imports(folder: str) -> Iterator[tuple[str, str, str]]:
    """Yield the imports of this project in strings: where, module, and name; empty where the module itself is meant."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if _SUSPECT.search(text) else ():
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            for module, names, whole in _IMPORT.findall(node.value):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                for name in names.split(",") if names else [""]:
                    yield where, module or whole, name.split(" as ")[0].strip()


def defines(module: str, name: str) -> bool:
    """Tell whether a module has a name at its top, or a package a module of it; read, not imported."""
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.exists():
        return False
    if not name or (place / f"{name}.py").exists() or (place / name).is_dir():
        return True
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return True
        if isinstance(node, ast.ImportFrom) and name in {each.asname or each.name for each in node.names}:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
    return False


@pytest.mark.parametrize("folder", ["tests", "bench"])
def test_what_is_imported_in_a_string_is_there(folder: str) -> None:
    found = set(imports(folder))
    assert [each for each in sorted(found) if not defines(each[1], each[2])] == []


def test_such_imports_are_found() -> None:
    found = {(module, name) for _, module, name in imports("tests")}
    assert ("migrator.hosts.launch", "Launcher") in found  # in lines of their own
    assert ("migrator.testing.lab", "Lab") in found  # behind a semicolon
    assert not defines("migrator.hosts.launch", "NoSuchName")
    assert not defines("migrator.no_such_module", "")
