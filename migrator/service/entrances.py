"""The process that answers for the service, as the service sees it: started, kept up to date, watched, begun anew."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Self

from migrator import faults, logs
from migrator.http.listeners import Listeners
from migrator.machine import waited_for_processor_seconds
from migrator.replica.channel import Channel, MessageKind
from migrator.replica.publisher import Publisher
from migrator.replica.requests import RequestServer
from migrator.service.entrance_settings import ALIVE_SECONDS, SILENT_TIMES, EntranceSettings

#: One that does not answer is ended after so many seconds more.
_SILENT_SECONDS = 10.0
#: Before it is begun anew, at first and at most; it doubles until one lasts.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _LASTED_SECONDS = 0.1, 30.0, 30.0
#: For it to say that it answers; the service is ready without it then, and it is ended if it says nothing at all.
_START_SECONDS = 30.0
#: For streams and answers to end, and what is behind them.
_CLOSE_SECONDS = 12.0
_COMPLAINT = "entrances"


class Entrances:
    """Serves at `listeners` while the ``async with`` block lasts, in a process of its own, whatever becomes of that.

    A process that ends, does not answer, or does not take what it is told is ended and begun anew, after a pause that
    grows; nothing here waits for it. Leaving the block ends streams and answers in order, then the process.

    :param listeners: bound; closed at the end.
    :param report: this controller and those it shares the journal with, as JSON; sent every second.
    :param requests: carries out what the process asks for.
    :param publisher: keeps the process up to date; ``None``: this controller stands by, until :meth:`lead`.
    """

    def __init__(
        self,
        *,
        listeners: Listeners,
        settings: EntranceSettings,
        report: Callable[[], bytes],
        requests: RequestServer,
        publisher: Publisher | None = None,
    ) -> None:
        self._listeners = listeners
        self._settings = settings
        self._publisher, self._requests, self._report = publisher, requests, report
        self._log = logs.logger(part="entrances")
        self._channel: Channel | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._pid = 0
        #: Seconds since the process last said that it lives, as far as this one ran; and how many of them it waited for
        #: a processor, as it does on a machine that has far too much to do: then it could not have said anything.
        self._silent, self._kept_waiting = 0, 0.0
        #: That it does not answer was said.
        self._complained = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def begin(self) -> None:
        """Begin to serve; :meth:`close` ends it."""
        self._begin("entrances", self._run)
        self._begin("entrances watched", self._watch)
        if self._publisher is not None:
            self._begin("publisher", self._publisher.run)

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _begin(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(faults.keep_going(name, work), name=name))

    def lead(self, publisher: Publisher, requests: RequestServer) -> None:
        """From here on this controller acts: the process is told by it alone, and asks it."""
        self._publisher, self._requests = publisher, requests
        self._begin("publisher", publisher.run)
        if self._channel is not None:
            self.tell_report()
            publisher.attach(self._channel)

    def tell_report(self) -> None:
        """Say at once what is new of this controller and the others."""
        if self._channel is not None:
            self._channel.send(MessageKind.SERVICE, self._report())

    @property
    def ready(self) -> bool:
        """Return whether the process answers."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Wait until it answers, or so long that nobody should wait any more; it is tried again and again anyway."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await self._ready.wait()

    def configure(self, settings: EntranceSettings) -> None:
        """Let it run by these from now on, as far as they are in force without a restart."""
        self._settings = settings
        if self._channel is not None:
            self._channel.send(MessageKind.SETTINGS, pickle.dumps(settings))

    # --- one process after the other ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _PAUSE_SECONDS
        while True:
            began = loop.time()
            why = await self._serve()
            if self._closing.is_set():
                return
            if loop.time() - began > _LASTED_SECONDS:
                pause = _PAUSE_SECONDS
            faults.complaints[_COMPLAINT] = f"the process that answers requests has ended: {why}"
            self._log.warning("entrances have ended", why=why, again_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _serve(self) -> str:
        """Run one process to its end; return why it ended."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            listening = {name: each.fileno() for name, each in self._listeners.sockets.items()}
            words = [f"--listener={name}={descriptor}" for name, descriptor in listening.items()]
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "migrator.service.entrance"),
                    *(f"--parent={os.getpid()}", f"--channel={theirs.fileno()}", *words),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *listening.values()),
                )
            except OSError as error:
                return f"it could not be started: {error.strerror or error}"
            theirs.close()
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            ended = asyncio.create_task(_end(process), name="end of the entrances")
            try:
                channel = await Channel.over(ours, received=self._receive, lost=lambda why: _set(lost, why))
                self._silent, self._kept_waiting, self._complained = 0, 0.0, False
                self._pid = process.pid
                self._channel = channel
                channel.send(MessageKind.SETTINGS, pickle.dumps(self._settings))
                self.tell_report()
                if self._publisher is not None:
                    self._publisher.attach(channel)
                ended.add_done_callback(lambda _: _set(lost, ""))
                await lost
                await asyncio.wait({ended}, timeout=1.0)  # it is about to end by itself, or has been cut off
            finally:
                if self._channel is not None:
                    self._channel.cut_off("")
                self._channel = None
                self._ready.clear()
                if self._publisher is not None:
                    self._publisher.detach()
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.wait({ended})
        status = _in_words(process.returncode or 0)
        return f"{lost.result()}; {status}" if lost.done() and lost.result() else status

    def _receive(self, kind: MessageKind, number: int, body: bytes) -> None:
        if self._complained:
            self._complained = False
            self._log.info("entrances answer again")
            faults.complaints.pop(_COMPLAINT, None)
        self._silent, self._kept_waiting = 0, 0.0
        match kind:
            case MessageKind.REQUEST if self._channel is not None:
                self._requests.receive(self._channel, number, body)
            case MessageKind.READY:
                self._ready.set()
                faults.complaints.pop(_COMPLAINT, None)
            case MessageKind.FAULT:
                faults.on_fault()

    async def _watch(self) -> None:
        """Notice that it does not answer. Counted, not timed: while this process did not run, nothing was missed. One
        that waited for a processor is not begun anew for it: that would take more of what there is too little of.
        """
        pid, waited = 0, 0.0
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            if self._channel is None:
                continue
            self.tell_report()
            self._silent += 1
            before, waited = (waited if pid == self._pid else 0.0), waited_for_processor_seconds(self._pid)
            pid = self._pid
            self._kept_waiting += min(waited - before, ALIVE_SECONDS)
            silent_seconds = self._silent * ALIVE_SECONDS - self._kept_waiting
            if not self._ready.is_set():
                if silent_seconds >= _START_SECONDS:
                    self._channel.cut_off(f"it has not begun within {self._silent} s")
            elif self._silent == SILENT_TIMES:
                self._complained = True
                faults.complaints[_COMPLAINT] = "the process that answers requests does not answer"
                self._log.warning("entrances do not answer")
            elif silent_seconds >= SILENT_TIMES + _SILENT_SECONDS:
                self._channel.cut_off(f"it has not answered for {self._silent} s")

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End streams and answers in order, then the process; once."""
        if self._closing.is_set():
            return
        self._closing.set()
        # Nobody new finds it from here on, and whoever starts in its place may have the path.
        self._listeners.unlink()
        running = self._tasks[0]
        answers = self._channel is not None and self._ready.is_set()
        if answers and self._publisher is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._publisher.flush()
        if self._channel is not None:
            self._channel.send(MessageKind.CLOSE)
        self._listeners.close()
        if answers:
            await asyncio.wait({running}, timeout=_CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _set(future: asyncio.Future[str], why: str) -> None:
    if not future.done():
        future.set_result(why)


async def _end(process: asyncio.subprocess.Process) -> None:
    await process.wait()


def _in_words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"
