"""Where a process spends its time: its stack, looked at many times a second of its own computing."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

_EVERY_SECONDS, _WRITE_SECONDS = 0.002, 5.0
_ROWS = 120


class Sampler:
    """Samples the main thread from its construction on, and says where it was."""

    def __init__(self) -> None:
        self._samples = 0
        self._own: Counter[CodeType] = Counter()
        self._all: Counter[CodeType] = Counter()
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
        lines = [f"{self._samples} samples", "   own    all"]
        for code, count in self._all.most_common(_ROWS):
            where = "/".join(code.co_filename.rsplit("/", 3)[1:])
            lines.append(
                f"{self._own[code] / self._samples:6.1%} {count / self._samples:6.1%} "
                f"{where}:{code.co_firstlineno} {code.co_qualname}"
            )
        lines.append("by own time")
        for code, count in self._own.most_common(_ROWS // 2):
            where = "/".join(code.co_filename.rsplit("/", 3)[1:])
            lines.append(f"{count / self._samples:6.1%} {where}:{code.co_firstlineno} {code.co_qualname}")
        return "\n".join(lines)

    async def write(self, file: Path) -> None:
        """Write that every few seconds, of those seconds, until cancelled."""
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            file.write_text(self.text() + "\n", encoding="utf-8")
            self._samples = 0
            self._own.clear()
            self._all.clear()
