"""Hosts that a caller is limited to, as patterns of their names: ``host-7``, ``rack-3-*``. ``None``: all hosts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from migrator.errors import UsageError

#: A host's name, in which ``*``, ``?`` and ``[abc]`` stand for others.
_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,64}")
#: Of one caller; who needs more names them by a pattern.
_MOST = 64


def checked(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return patterns that were given, in their order and each once.

    :raise UsageError: one of them can be no host's name, or there are none, or too many.
    """
    found = tuple(dict.fromkeys(patterns))
    if not found:
        raise UsageError("limited to no host at all: name one, or leave the limit out")
    if len(found) > _MOST:
        raise UsageError(f"more than {_MOST} hosts: name them by a pattern, as rack-3-*")
    for each in found:
        if not _PATTERN.fullmatch(each):
            raise UsageError(f"{each!r} is no host's name, nor a pattern of one, as host-7 or rack-3-*")
    return found


def covers(patterns: Sequence[str] | None, host: str) -> bool:
    """Tell whether rights that end at these hosts reach that one; ``""``, which is none, only those without end do."""
    return patterns is None or (bool(host) and any(fnmatchcase(host, each) for each in patterns))


def covers_all(patterns: Sequence[str] | None, hosts: Iterable[str]) -> bool:
    """Tell whether rights that end at these hosts reach every one of some hosts, of which there has to be one."""
    if patterns is None:
        return True
    names = list(hosts)
    return bool(names) and all(covers(patterns, each) for each in names)
