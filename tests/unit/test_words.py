"""The code reads at once: docstrings are whole sentences about their subject, and one name stands for one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A docstring that begins with one of these is no sentence about what it documents.
PRONOUNS = frozenset(
    {
        *("He", "His", "I", "It", "Its", "She", "Their", "They", "We", "You"),
        *("As", "By", "Likewise"),
        *("Of", "That", "These", "Those", "What", "Whether", "Which", "Who", "Whom", "Whose"),
    }
)
CHECKED = ("bench", "dashboards", "migrator")
#: Public classes of one name that are two things all the same, each with its reason.
SAME_NAME: dict[str, str] = {}


def modules(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield every module below a folder with its path."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", CHECKED)
def test_a_docstring_begins_with_its_subject_or_with_what_is_done(folder: str) -> None:
    found = [
        f"{path}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
        for path, module in modules(folder)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node))
        and text.split()[0].strip(",;:.") in PRONOUNS
    ]
    assert found == []


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, module in modules("migrator"):
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path)
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert {name: where for name, where in twice.items() if name not in SAME_NAME} == {}
    assert set(SAME_NAME) <= set(twice), "an exception that nothing needs any more"
