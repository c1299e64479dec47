"""Text from outside, made safe for a terminal and for a log on one."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

#: Categories of characters that move the cursor, colour the terminal, end the line or turn it around.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Cs: lone surrogates


#: Halves of a surrogate pair that stand for no character; no encoding has them, and no JSON may.
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Characters of one text of a document. Nothing honest is longer.
_LONGEST = 65_536
#: How deep a document nests.
_DEEPEST = 64


def writable(text: str, most: int = _LONGEST) -> str:
    """`text` as it can be written anywhere: a replacement character for what no encoding has, and cut at `most`."""
    if len(text) > most:
        text = f"{text[: most - 1]}…"
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def storable(value: Any, depth: int = 0) -> Any:
    """A value of a document as every JSON can have it: texts :func:`writable`, numbers finite and of no more than 64
    bits, else ``None``.
    """
    # Documents are made several times a second for each migration: what is most frequent comes first.
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return value if len(value) <= _LONGEST and value.isascii() else writable(value)
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else None
    if isinstance(value, (dict, list, tuple)) and depth >= _DEEPEST:
        return None
    if isinstance(value, dict):
        return {
            (writable(key) if isinstance(key, str) else key): storable(each, depth + 1)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [storable(each, depth + 1) for each in value]
    return value


#: What json.dumps writes for what no JSON may have; a pair of surrogates is among it, and is right.
_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|\bNaN\b|\bInfinity\b")
_SUSPECT_WORDS = ("\\ud", "\\uD", "NaN", "Infinity")


def as_json(document: Mapping[str, Any]) -> str:
    """A document or an event as it is kept: JSON that everyone can read."""
    # pydantic_core takes as long to import as a tenth of a command, and few commands write documents.
    from pydantic_core import PydanticSerializationError, to_json  # noqa: PLC0415

    try:
        text = to_json(document, inf_nan_mode="constants").decode()
    except PydanticSerializationError:  # half a character
        text = json.dumps(document)
    return mended(text)


def mended(text: str) -> str:
    """Return the JSON text as :func:`as_json` would have written it.

    An older version may have let in what no JSON may have.
    """
    # To look for words first takes a hundredth of the time that the expression takes; documents have 100 kB and more.
    if not any(word in text for word in _SUSPECT_WORDS) or not _SUSPECT.search(text):
        return text
    found = json.loads(text)
    # Paths of sockets may have bytes that are no text: what nobody is shown stays as it was.
    private = {"_private": found.pop("_private")} if "_private" in found else {}
    return json.dumps({**storable(found), **private})


def clean(text: object) -> str:
    """Return `text` with a replacement character for everything that would act on a terminal instead of being shown."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join("\ufffd" if unicodedata.category(char) in _UNSAFE else char for char in plain)


def clean_lines(text: object) -> str:
    """Clean a text of several lines as :func:`clean` does, but keep what ends a line."""
    return "\n".join(clean(line) for line in str(text).split("\n"))


def shortened(given: object) -> str:
    """Return a value as Python writes it, cut to a length for a message that repeats what was given."""
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:80]}…"
