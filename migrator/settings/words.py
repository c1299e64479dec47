"""Problems of a configuration, in words for whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from migrator.text import shortened

#: What pydantic says in Python's words.
_KINDS = {
    "string_type": "must be text in quotes",
    "tuple_type": 'must be a list: write ["...", "..."]',
    "dict_type": 'must be a table: write { key = "value" }',
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_too_short": "must not be empty",
    "finite_number": "must be a number, neither inf nor nan",
}


def place(file: Path | None) -> str:
    """The beginning of a line about something in that file."""
    return "" if file is None else f"{file}: "


def dotted(key: str, location: Sequence[int | str]) -> str:
    """``hosts[3].link_speed``."""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{str(part)[:80]}"
    return key


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """There is none of that name; the one that was meant, or all of them."""
    candidates = list(known)
    close = get_close_matches(name.lower().replace("-", "_"), candidates, n=1, cutoff=0.6)
    close = close or get_close_matches(name, candidates, n=1, cutoff=0.6)
    if close:
        return f"there is no {what} {shortened(name)}; did you mean {close[0]!r}?"
    return f"there is no {what} {shortened(name)}; there are {', '.join(candidates)}"


def of(
    problem: Mapping[str, Any], model: type[BaseModel], sections: Iterable[tuple[str, type[BaseModel]]]
) -> str:
    """One of pydantic's errors. What was given is repeated only where it cannot be a secret."""
    location = problem["loc"]
    match problem["type"]:
        case "extra_forbidden":
            return _extra(str(location[-1]), model, sections)
        case "missing":
            return "is missing"
        case "wrong":
            return str(problem["msg"])
    said = _KINDS.get(problem["type"], "")
    if not said:
        message = str(problem["msg"])
        said = f"{message[:1].lower()}{message[1:]}".replace("input should be", "must be")
    given = problem.get("input")
    secret = any("password" in str(part) for part in location)
    if isinstance(given, (str, int, float)) and not secret:
        said += f" (it is {shortened(given)})"
    return said


def _extra(key: str, model: type[BaseModel], sections: Iterable[tuple[str, type[BaseModel]]]) -> str:
    if not get_close_matches(key.lower().replace("-", "_"), model.model_fields, n=1, cutoff=0.6):
        for section, other in sections:
            if other is not model and key in other.model_fields:
                return f"there is no key {shortened(key)} here; it belongs into [{section}]"
    return unknown(key, model.model_fields, "key")
