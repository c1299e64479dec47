"""Patterns that mean guests."""

from __future__ import annotations

from fnmatch import fnmatchcase

from migrator.core.inventory import Guest


def matches(guest: Guest, pattern: str) -> bool:
    """Tell whether a pattern means this guest by uuid, name, or HOST/NAME; ``*``, ``?``, ``[abc]`` stand for others."""
    places = (f"{guest.host}/{guest.name}", f"{guest.host}:{guest.socket}")
    names = (guest.uuid, guest.name, guest.key, *places)
    return any(name and fnmatchcase(name, pattern) for name in names)
