"""Collection of cyclic garbage in short pauses: nobody is steered while Python looks through a gigabyte of objects.

By itself Python looks at all objects that there are whenever their number has grown by a quarter, which takes a second
with a thousand migrations. Here what has lived for a moment is looked at once, and then left out. All objects are
looked at again once enough of them may have become garbage since: seldom while guests move.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import time
from collections.abc import Callable

#: New objects are looked at so often: while guests move there are many, and each pause shall be short.
_EVERY_SECONDS, _MOVING_EVERY_SECONDS = 0.5, 0.1
#: While guests move it is asked every so many times whether all objects are to be looked at.
_TURNS = 5
#: Python's own thresholds: young objects, and those that have survived once; it never looks at all of them by itself.
_YOUNG, _ONCE, _NEVER = 5_000, 5, 1_000_000
#: All objects are looked at when there are so many more blocks of memory than after the last time, in number and in
#: ratio: the latter where nothing moves, while guests move, and while one of them is being switched. Looking through a
#: thousand migrations takes a second, in which nobody is steered and no lease is renewed; and what has come is hardly
#: ever garbage.
_MORE, _MORE_RATIO, _MOVING_RATIO, _SWITCHING_RATIO = 30_000, 0.05, 0.5, 2.0
#: ... besides what each migration that has begun takes by itself: where a thousand begin, nothing of that is garbage.
_BLOCKS_EACH = 4_000
#: Not sooner than so much later, nor than so many times what that took.
_ALL_SECONDS, _REST_RATIO = 10.0, 20.0


def is_due(more: int, *, left: int, under_way: int, begun: int, switching: bool) -> bool:
    """Tell whether all objects are to be looked at.

    :param more: blocks of memory that have come since they were the last time.
    :param left: those that were left then.
    :param under_way: migrations; so many more than then were `begun`.
    :param switching: the guest of one of them is being switched.
    """
    if more < max(_MORE, _MORE_RATIO * left):
        return False
    if not under_way:
        return True
    return more - _BLOCKS_EACH * max(0, begun) > (_SWITCHING_RATIO if switching else _MOVING_RATIO) * left


class GarbageCollection:
    """Collects the garbage of this process; one for all that runs in it.

    :ivar moving: each tells how many migrations are under way: then all objects are looked at more seldom.
    :ivar switching: each tells whether one of them is being switched: then more seldom still.
    """

    def __init__(self) -> None:
        self.moving: list[Callable[[], int]] = []
        self.switching: list[Callable[[], bool]] = []
        #: How many blocks were left the last time that all objects were looked at, and migrations under way; when that
        #: was, and what it took.
        self._after_last = self._under_way = 0
        self._last_at, self._took = time.monotonic(), 0.0

    async def run(self) -> None:
        """Collect until cancelled; then Python does it by itself again, as before."""
        before = gc.get_threshold()
        gc.set_threshold(_YOUNG, _ONCE, _NEVER)
        try:
            self._leave_out()
            for turn in itertools.count(1):
                moving = any(each() for each in self.moving)
                await asyncio.sleep(_MOVING_EVERY_SECONDS if moving else _EVERY_SECONDS)
                gc.collect()
                gc.freeze()
                if moving and turn % _TURNS:
                    continue
                # Not gc.get_freeze_count(): it goes through all objects, which is what is to be avoided here.
                if self._all_due(sys.getallocatedblocks(), time.monotonic()):
                    gc.unfreeze()
                    self._leave_out()
        finally:
            gc.set_threshold(*before)
            gc.unfreeze()

    def _all_due(self, blocks: int, now: float) -> bool:
        if now - self._last_at < max(_ALL_SECONDS, _REST_RATIO * self._took):
            return False
        under_way = self._count_under_way()
        return is_due(
            blocks - self._after_last,
            left=self._after_last,
            under_way=under_way,
            begun=under_way - self._under_way,
            switching=any(each() for each in self.switching),
        )

    def _count_under_way(self) -> int:
        return sum(each() for each in self.moving)

    def _leave_out(self) -> None:
        """Look at all objects that are not left out yet, and leave out what stays."""
        began, self._under_way = time.monotonic(), self._count_under_way()
        gc.collect()
        gc.freeze()
        self._after_last, self._last_at = sys.getallocatedblocks(), time.monotonic()
        self._took = self._last_at - began
