"""Text from outside, made safe for a terminal and for a log on one."""

from __future__ import annotations

import unicodedata

#: Categories of characters that move the cursor, colour the terminal, end the line or turn it around.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Cs: lone surrogates


def clean(text: object) -> str:
    """Return `text` with a replacement character for everything that would act on a terminal instead of being shown."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join("\ufffd" if unicodedata.category(char) in _UNSAFE else char for char in plain)


def clean_lines(text: object) -> str:
    """As :func:`clean`, for a text of several lines: what ends a line stays."""
    return "\n".join(clean(line) for line in str(text).split("\n"))


def shortened(given: object) -> str:
    """As Python writes a value, cut where nobody reads on: for a message that repeats what was given."""
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:80]}…"
