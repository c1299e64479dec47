"""The helper at a host that takes the sockets of processes there: :mod:`migrator.process_sockets`, run by its python3.

One for all migrations of that host, begun when it is first needed; its program comes over its input, so no file is
left there, and it ends with the connection, or when it was idle for a while.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import migrator.process_sockets
from migrator.errors import HostError
from migrator.hosts.access import Coprocess, CoprocessRunner
from migrator.hosts.host_output import reading_output

#: Seconds that an answer may take.
_ANSWER_SECONDS = 5.0
#: Seconds without a request after which it is ended.
_IDLE_SECONDS = 60.0
_PYTHON = "python3"
#: Exit status of a shell that does not find a program.
_NOT_FOUND = 127


class SocketHelper:
    """The helper of one host; requests are answered in the order in which they came."""

    def __init__(self, host: CoprocessRunner) -> None:
        self._host = host
        self._program: Coprocess | None = None
        self._starting = asyncio.Lock()
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have one request answered; see :func:`migrator.process_sockets.answer`.

        :raise HostError: the host cannot be asked in time, or has no python3.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                async with self._starting:
                    program = self._program or await self._start()
                    answer = asyncio.get_running_loop().create_future()
                    self._asked.append(answer)
                    program.write(json.dumps(dict(request)).encode() + b"\n")
                line = await answer
        except TimeoutError as error:
            raise HostError(
                self._host.name, f"its sockets could not be reached within {_ANSWER_SECONDS:g} s"
            ) from error
        except OSError as error:
            raise HostError(self._host.name, f"its sockets cannot be reached: {error}") from error
        with reading_output(self._host.name, "its sockets"):
            found = json.loads(line)
            return dict(found)

    async def _start(self) -> Coprocess:
        program = await self._host.coprocess([_PYTHON, "-u", "-c", migrator.process_sockets.PROGRAM])
        source = inspect.getsource(migrator.process_sockets).encode()
        program.write(b"%d\n" % len(source) + source)
        self._program = program
        self._reading = asyncio.create_task(self._read(program), name=f"read sockets of {self._host.name}")
        self._wait_idle()
        return program

    async def _read(self, program: Coprocess) -> None:
        why = "the connection was lost"
        try:
            async for line in program.lines:
                if self._asked and not (answer := self._asked.popleft()).done():
                    answer.set_result(line)
                self._wait_idle()
            missing = await program.exit_status() == _NOT_FOUND
            why = "install python3 there" if missing else "its python3 has ended"
        except OSError as error:
            why = str(error)
        finally:
            self._forget(program, why)

    def _wait_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end)

    def _end(self) -> None:
        if self._program is not None:
            self._forget(self._program, "it was ended")

    def _forget(self, program: Coprocess, why: str) -> None:
        if self._program is not program:
            return
        self._program = None
        program.close()
        if self._idle is not None:
            self._idle.cancel()
        while self._asked:
            if not (answer := self._asked.popleft()).done():
                answer.set_exception(HostError(self._host.name, f"its sockets cannot be reached: {why}"))

    async def close(self) -> None:
        """End it."""
        self._end()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
