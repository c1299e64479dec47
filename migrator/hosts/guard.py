"""The guard at a host: a program there that takes this controller's place for as long as that cannot steer.

One for all migrations whose source is that host, begun when the first is, and begun anew where it ended. Here it is a
process of its own, which notices our end by its input; over SSH its input ends with the connection, and a connection
that is cut is noticed by our silence. What it does is no matter of this module: its program is given.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Self

from migrator import logs
from migrator.errors import HostError
from migrator.hosts.access import Coprocess, CoprocessRunner, HostAccess
from migrator.hosts.local import LocalAccess

#: Seconds without a sign of life after which a guard takes its controller to be cut off, and while a guest may come to
#: its switch at any moment.
SILENCE_SECONDS, _NEAR_SILENCE_SECONDS = 0.65, 0.4
#: Seconds between two signs of life, likewise. What is lost on the way is sent again within two or three of the latter,
#: as those behind it show that it is missing, and after 0.2 s at the latest.
BEAT_SECONDS, NEAR_BEAT_SECONDS = 0.15, 0.05
#: Signs of life a second that all guards may get of which no guest is near its switch, and how much of that one takes.
_MOST_BEATS = 2000.0
_PART_A_GUARD = 1 / (BEAT_SECONDS * _MOST_BEATS)
#: Seconds that an answer may take.
_ANSWER_SECONDS = 5.0
#: Seconds without anything to guard after which it is ended.
_IDLE_SECONDS = 60.0
#: Seconds between two attempts to begin it; doubled up to the second.
_PAUSES_SECONDS = (0.2, 5.0)
#: Exit status of a shell that does not find a program.
_NOT_FOUND = 127


class GuardPace:
    """How often the guards of all hosts are given signs of life: each takes a part of the one process that steers.

    Up to three hundred hosts they come every :data:`BEAT_SECONDS`; beyond that more seldom, and a silence is noticed
    later in proportion. Not so where a guest may come to its switch at any moment.
    """

    def __init__(self) -> None:
        #: Guards that are there now.
        self.guards = 0

    @property
    def slower(self) -> int:
        """Return how many times more seldom than with a few hosts."""
        return max(1, math.ceil(self.guards * _PART_A_GUARD))


class HostGuard:
    """The guard of one host.

    :param python: the command of its python3.
    :param program: the argument of its ``-c``; it reads the length of `text` in a line, and `text`.
    :param text: what it runs.
    :param silence_seconds: after which it takes us to be cut off; ``None``: the end of its input tells.
    :param pace: of the guards of all hosts.
    """

    def __init__(
        self,
        host: CoprocessRunner,
        *,
        python: Sequence[str],
        program: str,
        text: str,
        silence_seconds: float | None,
        pace: GuardPace | None = None,
    ) -> None:
        self._host = host
        self._pace = pace if pace is not None else GuardPace()
        #: As its present silence was told it.
        self._slower = 1
        self._command = [*python, "-c", program]
        self._text = text.encode()
        self._silence_seconds = silence_seconds
        self._guarded: dict[str, Mapping[str, Any]] = {}
        #: Names of those that were left to it.
        self._left: set[str] = set()
        #: Names of those that may come to their switch at any moment.
        self._near: set[str] = set()
        #: The next sign of life, and what gives it; ``None`` while there is no guard.
        self._next: asyncio.Handle | None = None
        self._beat: Callable[[], None] | None = None
        self._process: Coprocess | None = None
        self._running: asyncio.Task[None] | None = None
        self._asked: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._up = asyncio.Event()
        self._used_at = 0.0
        #: Why there is none; empty where there is, or that is not known yet.
        self.missing = ""

    @classmethod
    def of(cls, host: HostAccess, *, program: str, module: ModuleType, pace: GuardPace | None = None) -> Self:
        """Return the guard of a host.

        :param module: what it runs.
        :param pace: of the guards of all hosts.
        """
        here = isinstance(host, LocalAccess)
        return cls(
            host,
            # Isolated, and without what is installed for this python: it needs the standard library alone.
            python=(sys.executable, "-I", "-S") if here else ("python3", "-I", "-S"),
            program=program,
            text=inspect.getsource(module),
            silence_seconds=None if here else SILENCE_SECONDS,
            pace=pace,
        )

    async def start(self) -> str:
        """Have it there before it is needed; return why it cannot be, empty where it is."""
        self._run()
        done = asyncio.create_task(self._up.wait(), name=f"await guard of {self._host.name}")
        try:
            await asyncio.wait({done}, timeout=_ANSWER_SECONDS)
        finally:
            done.cancel()
        return self.missing or ("" if self._process is not None else "it does not answer")

    def guard(self, name: str, request: Mapping[str, Any]) -> None:
        """Have something guarded from now on, also by a guard that has to be begun anew."""
        self._guarded[name] = {"do": "guard", "name": name, **request}
        self._left.discard(name)
        self._run()
        self._tell(self._guarded[name])

    def near(self, name: str, near: bool) -> None:
        """Have our silence noticed sooner while something may come to its switch at any moment."""
        before = bool(self._near)
        if near and name in self._guarded:
            self._near.add(name)
        else:
            self._near.discard(name)
        if self._silence_seconds is not None and before != bool(self._near):
            self._tell_silence()
            self._beat_now()

    def _tell_silence(self) -> None:
        silence, self._slower = self._silence_seconds, self._pace.slower
        if silence is not None:
            silence = min(silence, _NEAR_SILENCE_SECONDS) if self._near else silence * self._slower
        self._tell({"do": "silence", "seconds": silence})

    def release_soon(self, name: str) -> None:
        """Have something guarded no more, without waiting until that is so."""
        self.near(name, False)
        if self._guarded.pop(name, None) is not None:
            self._tell({"do": "release", "name": name})

    async def release(self, name: str) -> bool:
        """Have something guarded no more; return True once nothing is done to it any more, nor will be."""
        if name in self._guarded and not await self._ask("release", name):
            return False
        self.near(name, False)
        self._guarded.pop(name, None)
        return True

    async def leave(self, name: str) -> bool:
        """Leave something to the guard, until :meth:`guard` is called for it again; return whether it takes it."""
        if name not in self._guarded or not await self._ask("leave", name):
            return False
        self._left.add(name)
        return True

    async def _ask(self, do: str, name: str) -> bool:
        answer = self._asked[do, name] = asyncio.get_running_loop().create_future()
        try:
            if not self._tell({"do": do, "name": name}):
                return False
            async with asyncio.timeout(_ANSWER_SECONDS):
                await answer
            return True
        except (TimeoutError, HostError):
            return False
        finally:
            self._asked.pop((do, name), None)

    def _tell(self, request: Mapping[str, Any]) -> bool:
        self._used_at = asyncio.get_running_loop().time()
        if self._process is None:
            return False
        try:
            self._process.write(json.dumps(request).encode() + b"\n")
        except OSError:
            return False  # it has ended, which is found out
        return True

    def _run(self) -> None:
        self._used_at = asyncio.get_running_loop().time()
        if self._running is None or self._running.done():
            self._up.clear()
            self._running = asyncio.create_task(self._keep(), name=f"guard of {self._host.name}")

    def _needed(self) -> bool:
        return bool(self._guarded) or asyncio.get_running_loop().time() - self._used_at < _IDLE_SECONDS

    async def _keep(self) -> None:
        shortest, longest = _PAUSES_SECONDS
        pause = shortest
        while self._needed():
            try:
                why = await self._once()
                pause = shortest
            except (HostError, OSError) as error:
                why = str(error)
            if not self._needed():
                return
            if why != self.missing:
                logs.logger().warning("no guard at a host", host=self._host.name, error=why)
            self.missing = why
            self._up.set()
            await asyncio.sleep(pause)
            pause = min(longest, 2 * pause)

    async def _once(self) -> str:
        """Have one run for as long as it is needed; return why it ended."""
        process = await self._host.coprocess(self._command)
        reading = asyncio.create_task(self._read(process), name=f"read guard of {self._host.name}")
        try:
            try:
                await self._feed(process, reading)
            except OSError as error:
                self._process = None
                # One that has just ended takes nothing more: the end of its output has the reason.
                if not (await asyncio.wait({reading}, timeout=_ANSWER_SECONDS))[0]:
                    return str(error)
            if not reading.done():
                return ""
            status = await process.exit_status()
            return "install python3 there" if status == _NOT_FOUND else "it has ended"
        finally:
            self._process = None
            process.close()
            reading.cancel()
            await asyncio.wait({reading})
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(HostError(self._host.name, "its guard has ended"))

    async def _feed(self, process: Coprocess, reading: asyncio.Task[None]) -> None:
        """Tell it all that is guarded, and that we live, until it has ended or is not needed.

        :raise OSError: it takes nothing more.
        """
        process.write(b"%d\n" % len(self._text) + self._text)
        self._process = process
        self._tell_silence()
        for name, request in self._guarded.items():
            self._tell(request)
            if name in self._left:
                self._tell({"do": "leave", "name": name})
        await self._beat_until(process, reading)

    async def _beat_until(self, process: Coprocess, reading: asyncio.Task[None]) -> None:
        """Give signs of life until it has ended or is not needed: by a timer, as there may be a thousand guards.

        :raise OSError: it takes nothing more.
        """
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[None] = loop.create_future()

        def beat() -> None:
            if stopped.done():
                return
            if not self._needed():
                stopped.set_result(None)
                return
            try:
                process.write(b"\n")
            except OSError as error:
                stopped.set_exception(error)
                return
            pause = BEAT_SECONDS
            if self._silence_seconds is not None:
                if self._slower != self._pace.slower:
                    self._tell_silence()  # before they come more seldom
                pause = NEAR_BEAT_SECONDS if self._near else BEAT_SECONDS * self._slower
            self._next = loop.call_later(pause, beat)

        self._beat = beat
        self._pace.guards += 1
        try:
            beat()
            await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                stopped.result()
        finally:
            stopped.cancel()
            self._pace.guards -= 1
            self._beat = None
            if self._next is not None:
                self._next.cancel()
                self._next = None

    def _beat_now(self) -> None:
        if self._next is not None and self._beat is not None:
            self._next.cancel()
            self._next = asyncio.get_running_loop().call_soon(self._beat)

    async def _read(self, process: Coprocess) -> None:
        try:
            async for line in process.lines:
                said = json.loads(line)
                self.missing = ""
                self._up.set()
                answer = self._asked.get((said["done"], said["name"]))
                if answer is not None and not answer.done():
                    answer.set_result(None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logs.logger().info("a guard cannot be read", host=self._host.name, error=str(error))

    async def close(self) -> None:
        """Let it go: what it was left goes on being guarded, and it ends when nothing needs it."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
