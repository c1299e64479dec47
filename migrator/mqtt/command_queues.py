"""Fair queues of commands: every user has one of its own, so that nobody waits behind another's flood."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

#: Carries one command out.
Work = Callable[[], Awaitable[None]]
#: Of all commands that wait and that the broker still has. A broker is told to deliver few at a time, but mosquitto 2.0
#: delivers to a session that it has kept all that there is.
_HELD_BYTES = 32 << 20
#: What a command takes here beside its payload.
_HEAD_BYTES = 3000


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    name: str
    work: Work
    #: Bytes, where the broker has it still; 0: it is only here.
    held_bytes: int


class CommandQueues:
    """Begins the commands of all users by turns.

    :param concurrency: commands of all users that are carried out at a time.
    :param concurrency_per_user: commands of one user that are carried out at a time.
    :param max_waiting_per_user: commands of one user that may wait, of those that the broker has a receipt for.
    """

    def __init__(self, *, concurrency: int, concurrency_per_user: int, max_waiting_per_user: int) -> None:
        self._concurrency = concurrency
        self._concurrency_per_user = concurrency_per_user
        self._max_waiting_per_user = max_waiting_per_user
        #: The user whose turn comes next stands first. One that has nothing to do is not among them.
        self._waiting: dict[str, deque[_Waiting]] = {}
        #: By user, those that are only here.
        self._received: Counter[str] = Counter()
        self._held_bytes = 0
        self._running: dict[str, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def full(self, user: str) -> bool:
        """A further command of that user, which is only here, would wait behind too many of its own."""
        return self._received[user] >= self._max_waiting_per_user

    def holds_too_much(self, size: int) -> bool:
        """A further command of so many bytes, which the broker still has, would be too much for the memory."""
        return self._held_bytes + size + _HEAD_BYTES > _HELD_BYTES

    def put(
        self, user: str, name: str, work: Work, group: asyncio.TaskGroup, *, held: int | None = None
    ) -> None:
        """Begin it as soon as its turn comes.

        :param name: of the task.
        :param held: bytes of one that has no receipt: the broker delivers it once more with the next connection.
        """
        waiting = _Waiting(name=name, work=work, held_bytes=0 if held is None else held + _HEAD_BYTES)
        self._waiting.setdefault(user, deque()).append(waiting)
        self._count(user, waiting, 1)
        self._begin(group)

    def drop_held(self) -> None:
        """Begin none any more that waits and that the broker delivers once more."""
        for user, waiting in list(self._waiting.items()):
            self._waiting[user] = deque(each for each in waiting if not each.held_bytes)
            if not self._waiting[user]:
                del self._waiting[user]
        self._held_bytes = 0

    def drop_waiting(self) -> None:
        """Nothing that waits is begun any more."""
        self._waiting.clear()
        self._received.clear()
        self._held_bytes = 0

    def _count(self, user: str, waiting: _Waiting, number: int) -> None:
        if waiting.held_bytes:
            self._held_bytes += number * waiting.held_bytes
            return
        self._received[user] += number
        if not self._received[user]:
            del self._received[user]

    def _begin(self, group: asyncio.TaskGroup) -> None:
        while len(self.tasks) < self._concurrency:
            user = next(
                (each for each in self._waiting if self._running.get(each, 0) < self._concurrency_per_user),
                None,
            )
            if user is None:
                return
            queue = self._waiting.pop(user)
            next_one = queue.popleft()
            self._count(user, next_one, -1)
            if queue:
                self._waiting[user] = queue  # behind the others
            self._running[user] = self._running.get(user, 0) + 1
            task = group.create_task(self._carry_out(user, next_one.work, group), name=next_one.name)
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
