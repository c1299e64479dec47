"""Has the methods of dataclasses compiled when they are first called, for a command whose start counts.

Python writes up to six methods for each dataclass as text, and compiles them where the class is defined: a good part of
the start of ``migrator direct``, which calls a few of them. From Python 3.13 on it compiles them together, and nothing
is changed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

_Method = Callable[..., Any]


@cache
def compile_late() -> None:
    """Have it so for every class that is defined from now on."""
    compile_now: Callable[..., _Method] | None = getattr(dataclasses, "_create_fn", None)
    if compile_now is None:
        return

    def create(name: str, *text: Any, **more: Any) -> _Method:
        return _late(name, lambda: compile_now(name, *text, **more))

    setattr(dataclasses, "_create_fn", create)  # noqa: B010 - all of them come through this one, which is Python's own


def _late(name: str, compile_it: Callable[[], _Method]) -> _Method:
    """Return a method that takes the place of one until it is first called."""
    compiled = cache(compile_it)

    def first(self: Any, *arguments: Any, **named: Any) -> Any:
        method = compiled()
        method.__qualname__ = first.__qualname__
        for each in type(self).__mro__:
            if each.__dict__.get(name) is first:
                setattr(each, name, method)
        return method(self, *arguments, **named)

    first.__name__ = name
    return first
