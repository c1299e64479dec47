"""Computing in a thread of this process, for whoever has no process for it: tests, and simulations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class ThreadComputing:
    """Implements :class:`migrator.ports.computing.Computing`; all is computed at once, and takes its time."""

    async def compute(self, function: Callable[[Sequence[Any]], _Result], portions: Iterable[Any]) -> _Result:
        return await asyncio.to_thread(function, list(portions))
