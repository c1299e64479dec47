"""Where a process spends its time: its stack, looked at many times a second of its own computing; what tasks await."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_EVERY_SECONDS, _WRITE_SECONDS = 0.002, 5.0
#: All tasks are looked at so often.
_TASKS_SECONDS = 0.5
_ROWS = 120


class Sampler:
    """Samples the main thread from its construction on, and says where it was."""

    def __init__(self) -> None:
        self._samples = 0
        self._own: Counter[CodeType] = Counter()
        self._all: Counter[CodeType] = Counter()
        #: Tasks by what they await, in all looks at them.
        self._awaited: Counter[str] = Counter()
        self._looks = 0
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _EVERY_SECONDS, _EVERY_SECONDS)

    def _sample(self, _: int, frame: FrameType | None) -> None:
        self._samples += 1
        if frame is not None:
            self._own[frame.f_code] += 1
        seen: set[CodeType] = set()
        while frame is not None:
            seen.add(frame.f_code)
            frame = frame.f_back
        self._all.update(seen)

    def text(self) -> str:
        """Return each function with the share of the time that it was running, and that it was on the stack."""
        # Samples are taken meanwhile, too.
        own, everything = self._own.copy(), self._all.copy()
        lines = [f"{time.strftime('%H:%M:%S')} {self._samples} samples", "   own    all"]
        for code, count in everything.most_common(_ROWS):
            where = "/".join(code.co_filename.rsplit("/", 3)[1:])
            lines.append(
                f"{own[code] / self._samples:6.1%} {count / self._samples:6.1%} "
                f"{where}:{code.co_firstlineno} {code.co_qualname}"
            )
        lines.append("by own time")
        for code, count in own.most_common(_ROWS // 2):
            where = "/".join(code.co_filename.rsplit("/", 3)[1:])
            lines.append(f"{count / self._samples:6.1%} {where}:{code.co_firstlineno} {code.co_qualname}")
        lines.append("tasks by what they await, on average")
        lines += [f"{count / self._looks:7.1f} {what}" for what, count in self._awaited.most_common(_ROWS)]
        return "\n".join(lines)

    async def write(self, file: Path) -> None:
        """Write that every few seconds, of those seconds, until cancelled."""
        while True:
            for _ in range(round(_WRITE_SECONDS / _TASKS_SECONDS)):
                await asyncio.sleep(_TASKS_SECONDS)
                self._looks += 1
                self._awaited.update(map(_awaited, asyncio.all_tasks()))
            with file.open("a", encoding="utf-8") as out:
                out.write(self.text() + "\n")
            self._samples = self._looks = 0
            for counted in (self._own, self._all, self._awaited):
                counted.clear()


#: A loop that stands still for so long is worth a line; it is looked for so often.
_STALL_SECONDS, _BEAT_SECONDS = 0.15, 0.01


@contextlib.contextmanager
def watch_stalls(file: Path) -> Iterator[None]:
    """Write what the event loop was doing whenever it stood still, and how long Python looked for garbage."""
    loop, main, ended = asyncio.get_running_loop(), threading.get_ident(), threading.Event()
    beat = time.monotonic()
    out = file.open("a", encoding="utf-8")

    def say(text: str) -> None:
        out.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        out.flush()

    def go_on() -> None:
        nonlocal beat
        beat = time.monotonic()
        if not ended.is_set():
            loop.call_later(_BEAT_SECONDS, go_on)

    def look() -> None:
        while not ended.wait(_BEAT_SECONDS):
            late = time.monotonic() - beat
            if late < _STALL_SECONDS:
                continue
            stack = traceback.extract_stack(sys._current_frames()[main])  # noqa: SLF001 - there is no other way
            said = " < ".join(f"{each.name}:{each.lineno}" for each in stack[:-9:-1])
            while time.monotonic() - beat > _STALL_SECONDS / 2 and not ended.wait(_BEAT_SECONDS):
                late = max(late, time.monotonic() - beat)
            say(f"stood still for {late:.2f} s: {said}")

    began = 0.0

    def collected(phase: str, found: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.monotonic()
        elif time.monotonic() - began > _STALL_SECONDS:
            say(f"garbage of generation {found['generation']} for {time.monotonic() - began:.2f} s")

    gc.callbacks.append(collected)
    thread = threading.Thread(target=look, name="stalls", daemon=True)
    loop.call_soon(go_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        gc.callbacks.remove(collected)
        out.close()


def _awaited(task: asyncio.Task[Any]) -> str:
    """Return the calls in which a task waits, as far as they are in the program itself."""
    calls = []
    awaiting: Any = task.get_coro()
    while awaiting is not None:
        code = getattr(awaiting, "cr_code", None) or getattr(awaiting, "ag_code", None)
        if code is not None and "/migrator/" in code.co_filename:
            frame = getattr(awaiting, "cr_frame", None)
            calls.append(f"{code.co_qualname}:{frame.f_lineno if frame is not None else 0}")
        awaiting = getattr(awaiting, "cr_await", None)
    return " > ".join(calls[-5:])
