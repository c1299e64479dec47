"""Rows of the journal and of memory that cannot be read: one bad row is left out and said, and the others are there."""

from __future__ import annotations

from pydantic import ValidationError

from migrator import logs
from migrator.text import clean

#: What reading a row raises that is not what this version wrote; a ValidationError is a ValueError.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)
#: More rows are not remembered, so that none is said again and again.
_REMEMBERED = 10_000


def say_unreadable(said: set[tuple[str, str]], kind: str, name: str, error: Exception) -> None:
    """Say it, once for each row.

    :param said: which have been.
    """
    if (kind, name) in said or len(said) >= _REMEMBERED:
        return
    said.add((kind, name))
    text = str(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    why = clean(" ".join(text[:500].split()))
    logs.logger().warning("left out: it cannot be read", kind=kind, name=name, error=why)
