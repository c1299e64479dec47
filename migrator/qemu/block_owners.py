"""Names that people know for the block nodes that QEMU named by itself (``#block268``), in what QEMU says of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: What QEMU writes where it speaks of a node that it has named.
_MADE_UP = re.compile(r"(?:the )?node '(#block\d+)'")


def made_up(text: str) -> bool:
    """Tell whether a text of QEMU's speaks of a node that QEMU has named."""
    return _MADE_UP.search(text) is not None


def with_known_names(texts: Iterable[str], graph: Mapping[str, Any]) -> tuple[str, ...]:
    """Return texts of QEMU's in which a node that QEMU named is called a part of what it belongs to.

    That is the nearest node that somebody has named, or the disk; where it belongs to neither it stays as it is.

    :param graph: the answer to x-debug-query-block-graph.
    """
    names = {each["id"]: str(each.get("name") or "") for each in graph["nodes"]}
    above: dict[int, list[int]] = {}
    for edge in graph["edges"]:
        above.setdefault(edge["child"], []).append(edge["parent"])

    def owner(name: str) -> str:
        waiting = [each for each, its in names.items() if its == name]
        seen = set(waiting)
        for each in waiting:
            for parent in above.get(each, ()):
                if names.get(parent) and not names[parent].startswith("#block"):
                    return names[parent]
                if parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)  # which this loop comes to
        return ""

    def known(found: re.Match[str]) -> str:
        its = owner(found[1])
        return f"a part of '{its}'" if its else found[0]

    return tuple(_MADE_UP.sub(known, text) for text in texts)
