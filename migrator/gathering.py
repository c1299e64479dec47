"""Several things awaited at the same time, none of which is left under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def gather_to_end(*work: Awaitable[T]) -> list[T]:
    """Return the results in the order given; unless it is cancelled, nothing is still under way when this ends.

    :raise BaseException: the first error in that order, once each has ended; what the others did stays done.
    """
    results: list[T] = []
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
