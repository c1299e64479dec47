"""Fair queues of commands: every user has one of its own, so that nobody waits behind another's flood."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

#: Carries one command out.
Work = Callable[[], Awaitable[None]]


class CommandQueues:
    """Begins the commands of all users by turns.

    :param concurrency: commands of all users that are carried out at a time.
    :param concurrency_per_user: commands of one user that are carried out at a time.
    :param max_waiting_per_user: commands of one user that may wait.
    """

    def __init__(self, *, concurrency: int, concurrency_per_user: int, max_waiting_per_user: int) -> None:
        self._concurrency = concurrency
        self._concurrency_per_user = concurrency_per_user
        self._max_waiting_per_user = max_waiting_per_user
        #: The user whose turn comes next stands first. One that has nothing to do is not among them.
        self._waiting: dict[str, deque[tuple[str, Work]]] = {}
        self._running: dict[str, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def full(self, user: str) -> bool:
        """A further command of that user would wait behind too many of its own."""
        return len(self._waiting.get(user, ())) >= self._max_waiting_per_user

    def put(self, user: str, name: str, work: Work, group: asyncio.TaskGroup) -> None:
        """Begin it as soon as its turn comes.

        :param name: of the task.
        """
        self._waiting.setdefault(user, deque()).append((name, work))
        self._begin(group)

    def drop_waiting(self) -> None:
        """Nothing that waits is begun any more."""
        self._waiting.clear()

    def _begin(self, group: asyncio.TaskGroup) -> None:
        while len(self.tasks) < self._concurrency:
            user = next(
                (each for each in self._waiting if self._running.get(each, 0) < self._concurrency_per_user),
                None,
            )
            if user is None:
                return
            queue = self._waiting.pop(user)
            name, work = queue.popleft()
            if queue:
                self._waiting[user] = queue  # behind the others
            self._running[user] = self._running.get(user, 0) + 1
            task = group.create_task(self._carry_out(user, work, group), name=name)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _carry_out(self, user: str, work: Work, group: asyncio.TaskGroup) -> None:
        try:
            await work()
        finally:
            self._running[user] -= 1
            if not self._running[user]:
                del self._running[user]
            current = asyncio.current_task()
            if current is not None:
                self.tasks.discard(current)
            self._begin(group)
