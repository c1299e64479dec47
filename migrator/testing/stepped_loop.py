"""An event loop of simulated time whose callbacks belong to processes, which may be frozen, thawed and killed.

Several controllers live in one such loop, each as a :class:`SimulatedProcess`. Nothing of a frozen one runs, and all
that came due meanwhile runs when it is thawed, in order, as after SIGSTOP and SIGCONT; of a killed one nothing runs
any more, no ``finally`` either. What belongs to no process (a server, a QEMU) goes on. Time passes when nothing else is
due, and threads are done without: work given to one is done at once.

::

    with closing(SteppedLoop()) as loop:
        process = SimulatedProcess(loop, "a")
        process.start(controller())
        loop.run_until_complete(...)
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_PROCESS: contextvars.ContextVar[SimulatedProcess] = contextvars.ContextVar("process")


class _Turn:
    """A callback that is due."""

    __slots__ = ("args", "callback", "context", "handle")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context):
        self.callback, self.args, self.context = callback, args, context
        self.handle: asyncio.Handle | None = None


class _Selector(selectors.SelectSelector):
    """Lets simulated time pass where a real one would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise RuntimeError("nothing will ever happen any more")
            self.now += max(0.0, timeout)
        return found


class SteppedLoop(asyncio.SelectorEventLoop):
    """See the module.

    :ivar before_step: called before each callback of a process, which it may freeze or kill.
    :ivar after_step: called after each callback of a process.
    :ivar steps: callbacks of processes so far.
    """

    def __init__(self) -> None:
        self._simulated = _Selector()
        super().__init__(self._simulated)
        # A timer is due a bit before its time, for what floating point makes of it.
        self._clock_resolution = 1e-6
        self.before_step: Callable[[SimulatedProcess], None] = lambda process: None
        self.after_step: Callable[[SimulatedProcess], None] = lambda process: None
        self.steps = 0
        #: Those of a killed process are never done, and must not be collected: that would run their ends.
        self._kept: set[asyncio.Task[Any]] = set()
        self.set_task_factory(self._keep)
        self.set_exception_handler(lambda loop, context: None)

    def _keep(self, loop: asyncio.AbstractEventLoop, work: Any, **how: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **how)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    def time(self) -> float:
        """Return the simulated seconds since the loop was made."""
        return self._simulated.now

    # Whatever is given to these three goes on as it is: their types are those of asyncio.

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        """See :meth:`asyncio.loop.call_soon`."""
        turn = _Turn(callback, args, contextvars.copy_context() if context is None else context)
        turn.handle = super().call_soon(self._run, turn, context=turn.context)
        return turn.handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        """See :meth:`asyncio.loop.call_at`."""
        turn = _Turn(callback, args, contextvars.copy_context() if context is None else context)
        turn.handle = timer = super().call_at(when, self._run, turn, context=turn.context)
        return timer

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002 - there are no threads
        func: Any,
        *args: Any,
    ) -> Any:
        """Do it at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as an executor hands it on
            future.set_exception(error)
        return future

    def _run(self, turn: _Turn) -> None:
        process = _PROCESS.get(None)
        if process is None:
            turn.callback(*turn.args)
            return
        if process.may_run():
            self.steps += 1
            self.before_step(process)
        if process.may_run():
            turn.callback(*turn.args)
            self.after_step(process)
        elif not process.dead:
            process.missed.append(turn)

    def go_on(self, turn: _Turn) -> None:
        """Run what came due while its process was frozen, unless it was called off."""
        if turn.handle is None or not turn.handle.cancelled():
            turn.handle = super().call_soon(self._run, turn, context=turn.context)

    def close(self) -> None:
        """End everything that is left, of the killed ones too; what they want of others must fail by now."""
        left = [task for task in self._kept if not task.done()]
        for task in left:
            task.cancel()
        if left and not self.is_closed():
            self.run_until_complete(asyncio.wait(left, timeout=1000.0))
        super().close()


class SimulatedProcess:
    """A process of a :class:`SteppedLoop`: whatever begins in it belongs to it.

    :ivar missed: what came due while it was frozen.
    """

    def __init__(self, loop: SteppedLoop, name: str) -> None:
        self.name = name
        self.frozen = self.dead = False
        self.missed: list[_Turn] = []
        self._loop = loop
        self._context = contextvars.Context()
        self._context.run(_PROCESS.set, self)

    def may_run(self) -> bool:
        """Tell whether anything of it runs now."""
        return not (self.frozen or self.dead)

    def start(self, work: Coroutine[Any, Any, T], *, name: str = "") -> asyncio.Task[T]:
        """Begin something in it."""
        return self._loop.create_task(work, name=name or self.name, context=self._context.copy())

    def freeze(self) -> None:
        """Stop it, as SIGSTOP does."""
        self.frozen = True

    def thaw(self) -> None:
        """Have it go on, as after SIGCONT."""
        self.frozen = False
        missed, self.missed = self.missed, []
        for turn in missed:
            self._loop.go_on(turn)

    def kill(self) -> None:
        """End it, as SIGKILL does."""
        self.dead = True
        self.missed.clear()

    def bury(self) -> None:
        """Let what is left of it come to its end, once nothing that it does has any effect."""
        self.dead = False
        self.thaw()
