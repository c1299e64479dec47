"""Forms in which a command prints what it got: for people, as JSON or YAML, or as names for the next command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

#: A text that YAML reads as that text without quotes; anything that might be a number, a time or a word of YAML is not.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+(=<>][A-Za-z0-9_./@+()=<>;-]*)*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
#: How a document is called, by the field that tells it from others, and the field with its name.
_NAMED = (
    ("looked_at", "host", "host"),
    ("run_state", "guest", "guest"),
    ("guests_left", "evacuation", "id"),
    ("round", "migration", "id"),
    ("event_id", "event", "event_id"),
    ("saved_at", "file", "file"),
    ("instance", "controller", "instance"),
    ("lower_bound_seconds", "host", "host"),
    ("takes_p50_seconds", "guest", "guest"),
    ("guest_at", "migration", "migration"),
    ("possible", "guest", "guest"),
    ("allows", "policy", "name"),
    ("timeout_seconds", "hook", "name"),
    ("policies", "host", "host"),
)
#: Fields with lists of what is named, of a document that is none itself.
_LISTS = ("items", "migrations", "evacuations", "controllers")
_NAME = re.compile(
    r"guest/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})|(?:migration|evacuation)/([0-9a-f]{12})"
)


class OutputForm(StrEnum):
    """``--output``."""

    #: For people: a table that fits, or lines.
    TABLE = "table"
    #: The same with every column, however long the lines become.
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    #: ``guest/UUID``, one a line.
    NAME = "name"

    @property
    def document(self) -> bool:
        """Return whether it is for programs: a document, or names, and nothing else."""
        return self in (OutputForm.JSON, OutputForm.YAML, OutputForm.NAME)

    def print(self, document: Any) -> None:
        """Print a document, as JSON unless it is to be something else."""
        match self:
            case OutputForm.YAML:
                print("\n".join(yaml_lines(document)), flush=True)
            case OutputForm.NAME:
                for name in names(document):
                    print(name, flush=True)
            case _:
                print(json.dumps(document), flush=True)


def names(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of what a document lists, or is about."""
    for sign, kind, field in _NAMED:
        if sign in document and document.get(field) is not None:
            yield f"{kind}/{document[field]}"
            return
    for field in _LISTS:
        for each in document.get(field) or ():
            yield from names(each)


def without_kind(given: str) -> str:
    """Return a guest's uuid, or an id, without the kind that :func:`names` puts before it; any other text as it is.

    ``guest/web`` stays: it is the guest ``web`` of a host with the name ``guest``.
    """
    found = _NAME.fullmatch(given)
    return found[1] or found[2] if found else given


def yaml_lines(value: Any, indent: int = 0) -> Iterator[str]:
    """Yield the lines of YAML of a value that stands by itself."""
    pad = "  " * indent
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _under(f"{pad}{_scalar(str(key))}:", each, indent + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for each in value:
            lines = list(yaml_lines(each, indent + 1))
            yield f"{pad}- {lines[0].lstrip()}"
            yield from lines[1:]
    else:
        yield f"{pad}{_scalar(value)}"


def _under(head: str, value: Any, indent: int) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from yaml_lines(value, indent)
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if isinstance(value, str):
        # As JSON, but that YAML has no pairs of surrogates, and does not take everything as it stands.
        return "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))
    text = json.dumps(value)
    # Without a point YAML 1.1 takes it for a text.
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
