"""The service's end of the process that computes for it: started when it is needed, watched, and begun anew."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from migrator import logs
from migrator.errors import MigratorError, Unavailable
from migrator.faults import told
from migrator.worker import frames

#: The longest that one computation may take, a start of the process among it.
_TIMEOUT_SECONDS = 30.0
#: So many may wait, beside the one that is computed.
_WAITING = 8
#: From one start of the process to the next at least.
_START_PAUSE_SECONDS = 1.0

_Result = TypeVar("_Result")


class Worker:
    """Implements :class:`migrator.ports.computing.Computing` with a process of its own, which ends with this one.

    The process is started with the first computation. One that takes too long is ended with its process, and the next
    computation starts another.

    :param timeout_seconds: for one computation; those that begin later follow a change of it.
    :param waiting: how many may wait for their turn.
    """

    def __init__(self, *, timeout_seconds: float = _TIMEOUT_SECONDS, waiting: int = _WAITING) -> None:
        self.timeout_seconds, self._most = timeout_seconds, 1 + waiting
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._process: Process | None = None
        self._started_at = float("-inf")
        self._log = logs.logger()

    @property
    def pid(self) -> int | None:
        """The process that computes now, if there is one."""
        return self._process.pid if self._process is not None else None

    async def compute(self, function: Callable[[Sequence[Any]], _Result], portions: Iterable[Any]) -> _Result:
        """See :meth:`migrator.ports.computing.Computing.compute`."""
        if len(self._tasks) >= self._most:
            raise Unavailable(f"{len(self._tasks)} plans and forecasts are computed already: try again soon")
        name = f"{function.__module__}:{function.__qualname__}"
        task = asyncio.create_task(self._in_turn(name, portions), name=f"compute {name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        # A caller that goes away does not break off what the process is in the midst of: it would have to be ended.
        result: _Result = await asyncio.shield(task)
        return result

    async def close(self) -> None:
        """End the process; what is computed is given up."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever still waits

    async def _in_turn(self, name: str, portions: Iterable[Any]) -> Any:
        async with self._turn:
            whole = False
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    good, result = await self._exchange(name, portions)
                whole = True
            except TimeoutError:
                raise Unavailable(
                    f"not computed within {self.timeout_seconds:.0f} s: try again later"
                ) from None
            except (OSError, EOFError) as error:
                self._log.warning("the process that computes has ended", error=str(error))
                raise Unavailable("the process that computes has ended: try again soon") from error
            finally:
                if not whole:
                    await self._end()
        if not good:
            raise self._fault(name, result)
        return result

    def _fault(self, name: str, result: str) -> MigratorError:
        return told(f"the computation {name}", RuntimeError(result))

    async def _exchange(self, name: str, portions: Iterable[Any]) -> tuple[bool, Any]:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(frames.frame(name.encode()))
        for portion in portions:
            process.stdin.write(frames.frame(pickle.dumps(portion, protocol=5)))
            await process.stdin.drain()
            await asyncio.sleep(0)
        process.stdin.write(frames.END)
        await process.stdin.drain()
        head = await process.stdout.readexactly(frames.LENGTH_BYTES)
        body = await process.stdout.readexactly(frames.length(head))
        found: tuple[bool, Any] = pickle.loads(body)  # noqa: S301 - from the process that this one started
        return found

    async def _running(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self._end()
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._started_at + _START_PAUSE_SECONDS - loop.time()))
        self._started_at = loop.time()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "migrator.worker.process", f"--parent={os.getpid()}"),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
        )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        # Not cut short: a process that is not waited for stays as a zombie.
        await asyncio.shield(asyncio.create_task(process.wait(), name="end of the process that computes"))
        if process.stdin is not None:
            process.stdin.close()
