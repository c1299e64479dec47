"""Backlog of a guest's disks: what the target still lacks while memory is copied, and when the switch can bear it.

A mirror follows what the guest writes; what it has not sent when the guest is stopped for the switch is sent then, with
the guest standing still. So that counts as downtime: the switch waits until it fits under the policy's ceiling, and
memory gives way to the disks meanwhile. A guest that writes faster than the mirrors carry never gets there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from migrator.core.migration.disk_copies import MirrorPhase, Mirrors
from migrator.core.model import Sample
from migrator.units import show_bytes, show_rate, show_seconds

#: A mirror that had nothing to do tells of new writes up to so late.
_LATE_SECONDS = 0.1
#: What is left jumps with every burst of the guest: the most of so many of the last seconds counts.
_BURST_SECONDS = 1.5
#: The rate of writing is that of so many of the last seconds.
_RATE_SECONDS = 3.0
#: The speed of mirrors shows in so many seconds of work, with so much left all the while; it counts for so long.
_WORK_SECONDS, _SURELY_BUSY_BYTES, _BUSY_SECONDS = 0.4, 1 << 19, 10.0
#: Looks that are nearer to each other tell nothing.
_LOOK_SECONDS = 0.05
#: Ending mirrors that have nothing left to send takes about so long, which is downtime too.
END_SECONDS = 0.03
#: Of the ceiling the disks get this share at the most, less what a switch takes besides, and so much at the least.
_SHARE_OF_CEILING, _SWITCH_SECONDS, _LEAST_SECONDS = 0.8, 0.06, 0.005
#: So long a guest is watched that writes faster than its mirrors carry, before something is done about it; of the first
#: copy, which may have taken long, that share if it is more.
_WATCHED_SECONDS, _WATCHED_RATIO = 8.0, 1 / 3
#: ...and so many looks of that time are kept.
_LOOKS_KEPT = 40
#: What it writes is as much as what is copied of it from this share on; and so long nothing may be copied at all.
_NO_GAIN_RATIO, _HALT_SECONDS = 0.9, 30.0
#: Of the path memory gets what the guest's own writes leave, with so much to spare, and this share at the least.
_SPARE_FACTOR, _LEAST_RATIO = 1.25, 1 / 20
#: Disks that need no more than this share of what the switch can bear leave memory alone.
_EASY_RATIO = 0.5
_LEAST_BYTES_PER_SECOND = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Backlog of one guest: what its disks lack at the target at one moment."""

    #: What the switch would have to send with the guest standing still, and how long that takes, besides their end.
    expected_bytes: float = 0.0
    seconds: float = 0.0
    #: The switch can bear that.
    fits: bool = True
    #: Why that does not come about while the guest goes on like that; empty where it may.
    diverges: str = ""
    #: What memory may have of the path meanwhile, bytes per second; ``None``: whatever it gets.
    memory_bytes_per_second: int | None = None

    def in_downtime(self, sample: Sample, bytes_per_second: float) -> Sample:
        """Return the sample with what the disks lack, as a stream of that speed would take as long to send it."""
        return replace(sample, disk_backlog_bytes=round(self.seconds * bytes_per_second))


class DiskBacklog:
    """Follows the mirrors of one migration.

    :param ceiling_seconds: of the guest's downtime; infinite where it stands still anyway.
    """

    def __init__(self, *, ceiling_seconds: float) -> None:
        self._room_seconds = max(_LEAST_SECONDS, _SHARE_OF_CEILING * ceiling_seconds - _SWITCH_SECONDS)
        #: When so much was left, had been sent, and was known to be sent in all; latest last.
        self._seen: deque[tuple[float, int, int, int]] = deque()
        #: The most that was seen to be carried, disks and memory together; and what was while there was work all along.
        self._most = self._busy = 0.0
        self._busy_at = 0.0
        self._worked_seconds, self._worked_bytes = 0.0, 0.0
        #: While it does not fit: when so much had been sent, and was known to be sent in all; latest last.
        self._watched: deque[tuple[float, int, int]] = deque()

    def watch(self, mirrors: Mirrors, *, at_seconds: float, memory_bytes_per_second: float = 0.0) -> Backlog:
        """Take one more look at the mirrors into account.

        :param memory_bytes_per_second: what the stream of memory carries beside them.
        """
        self._take(mirrors, at_seconds, memory_bytes_per_second)
        writes = self._write_rate()
        recent = max(was for at, was, _, _ in self._seen if at >= at_seconds - _BURST_SECONDS)
        expected = max(recent, writes * _LATE_SECONDS)
        sending = expected / self._speed if self._speed > 0 else 0.0
        # Before everything was written once, no mirror can be ended.
        fits = mirrors.phase is not MirrorPhase.COPYING and sending <= self._room_seconds
        diverges = self._diverges(mirrors, at_seconds, fits=fits)
        return Backlog(
            expected_bytes=expected,
            seconds=sending,
            fits=fits,
            diverges=diverges,
            memory_bytes_per_second=self._for_memory(writes, sending, fits=fits),
        )

    @property
    def carried_bytes_per_second(self) -> float:
        """Return the most that was seen to be carried, disks and memory together; 0: nothing was."""
        return max(self._most, self._busy)

    @property
    def _speed(self) -> float:
        """Return what the path carries, bytes per second: while the guest stands still it carries nothing but disks."""
        return self._busy or self._most

    def _take(self, mirrors: Mirrors, at_seconds: float, memory_bytes_per_second: float) -> None:
        if self._seen:
            before_at, before_left, before_done, _ = self._seen[-1]
            seconds, sent = at_seconds - before_at, mirrors.done_bytes - before_done
            if seconds < _LOOK_SECONDS:
                return
            # What was carried can be carried.
            self._most = max(self._most, sent / seconds + memory_bytes_per_second)
            if before_left >= max(_SURELY_BUSY_BYTES, 2 * sent):  # it had work all the while
                self._worked_seconds += seconds
                self._worked_bytes += sent + memory_bytes_per_second * seconds
            if self._worked_seconds >= _WORK_SECONDS:
                self._busy, self._busy_at = self._worked_bytes / self._worked_seconds, at_seconds
                self._worked_seconds, self._worked_bytes = 0.0, 0.0
            elif at_seconds - self._busy_at > _BUSY_SECONDS:
                self._busy = 0.0
        self._seen.append((at_seconds, mirrors.remaining_bytes, mirrors.done_bytes, mirrors.total_bytes))
        while len(self._seen) > 2 and self._seen[1][0] <= at_seconds - _RATE_SECONDS:
            self._seen.popleft()

    def _write_rate(self) -> float:
        """Return what is added to the mirrors' work a second: what is written again after it was sent."""
        (began, _, _, first), (now, _, _, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (now - began)) if now > began else 0.0

    def _diverges(self, mirrors: Mirrors, at_seconds: float, *, fits: bool) -> str:
        if fits:
            self._watched.clear()
            return ""
        watched = max(_WATCHED_SECONDS, _WATCHED_RATIO * at_seconds)
        if not self._watched or at_seconds - self._watched[-1][0] >= watched / _LOOKS_KEPT:
            self._watched.append((at_seconds, mirrors.done_bytes, mirrors.total_bytes))
        while len(self._watched) > 1 and self._watched[1][0] <= at_seconds - watched:
            self._watched.popleft()
        began, done, total = self._watched[0]
        passed = at_seconds - began
        if passed < watched:
            return ""
        written, copied = mirrors.total_bytes - total, mirrors.done_bytes - done
        if copied <= 0 and passed < _HALT_SECONDS:
            return ""
        if copied > 0 and written < _NO_GAIN_RATIO * copied:
            return ""
        wrote, sent = show_rate(written / passed), show_rate(copied / passed)
        return (
            f"its disks do not converge: in the last {show_seconds(passed)} the guest wrote {wrote} to them and {sent} "
            f"was copied; {show_bytes(mirrors.remaining_bytes)} is left"
        )

    def _for_memory(self, writes: float, sending: float, *, fits: bool) -> int | None:
        if fits and sending <= _EASY_RATIO * self._room_seconds:
            return None
        share = self._speed - writes * _SPARE_FACTOR if fits else 0.0
        return max(_LEAST_BYTES_PER_SECOND, round(max(share, _LEAST_RATIO * self._speed)))
