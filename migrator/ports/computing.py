"""Computing beside the event loop that steers migrations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

_Result = TypeVar("_Result")


class Computing(Protocol):
    """Has pure functions computed while the event loop goes on; one after the other, and only a few may wait."""

    async def compute(self, function: Callable[[Sequence[Any]], _Result], portions: Iterable[Any]) -> _Result:
        """Return what the function makes of these portions.

        Cancelling this leaves the computation to itself: what comes of it is dropped.

        :param function: one of a module of :mod:`migrator.core`.
        :param portions: values that do not change any more; each is small enough to be sent in a millisecond or two.
            They are taken one by one, and others have their turn between them.
        :raise Unavailable: too many wait already, it took too long, or the process that computes has ended.
        """
