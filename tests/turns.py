"""Every order in which the calls of a journal can be answered while several commands are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from migrator.testing.journal import MemoryJournal

#: Turns of the loop in which everything comes to rest that waits for nobody.
_AT_REST = 40


class Turns:
    """Holds every call of a journal back, and lets one at a time go, as it is told.

    :param choices: which of those that wait goes, at each moment at which more than one does; then the first.
    """

    def __init__(self, journal: MemoryJournal, choices: tuple[int, ...]) -> None:
        self._journal, self._choices = journal, choices
        self._waiting: list[asyncio.Future[None]] = []
        #: At each moment at which there was a choice: between how many.
        self.branches: list[int] = []

    async def _hold(self, call: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    async def all(self, *coroutines: Coroutine[Any, Any, Any], late: int = 0) -> list[Any]:
        """Run these together; what they return, or raise.

        :param late: the first begins only when so many calls were let go.
        """
        before, self._journal.pause = self._journal.pause, self._hold

        async def begin_late(coroutine: Coroutine[Any, Any, Any]) -> Any:
            await self._gone[late].wait()
            return await coroutine

        first, *others = coroutines
        self._gone = [asyncio.Event() for _ in range(late + 1)]
        self._gone[0].set()
        tasks = [
            asyncio.create_task(each, name=f"command {n}")
            for n, each in enumerate([begin_late(first) if late else first, *others])
        ]
        let_go = 0
        try:
            while True:
                for _ in range(_AT_REST):
                    await asyncio.sleep(0)
                if all(task.done() for task in tasks):
                    break
                if not self._waiting:
                    if all(task.done() for task in tasks[1:]):
                        self._gone[late].set()
                    await asyncio.sleep(0.01)  # they wait for something else
                    continue
                self._waiting.pop(self._choose(len(self._waiting))).set_result(None)
                let_go += 1
                if let_go <= late:
                    self._gone[let_go].set()
        finally:
            self._journal.pause = before
            for turn in self._waiting:
                turn.set_result(None)
        return await asyncio.gather(*tasks, return_exceptions=True)

    def _choose(self, count: int) -> int:
        if count == 1:
            return 0
        self.branches.append(count)
        number = len(self.branches) - 1
        return min(self._choices[number], count - 1) if number < len(self._choices) else 0


async def in_every_order(
    scenario: Callable[[tuple[int, ...]], Awaitable[Turns]], *, depth: int = 5, most: int = 400
) -> int:
    """Run `scenario` with every sequence of choices, for so many choices; how many that were."""
    todo: list[tuple[int, ...]] = [()]
    done = 0
    while todo:
        choices = todo.pop()
        turns = await scenario(choices)
        done += 1
        assert done <= most, "too many orders: make the scenario smaller"
        for number in range(len(choices), min(depth, len(turns.branches))):
            prefix = (*choices, *(0,) * (number - len(choices)))
            todo += [(*prefix, other) for other in range(1, turns.branches[number])]
    return done
