"""Detection of a stream that has come to a halt, and the seconds that it has worked. Pure.

A stream that is slow is waited for; one that carries next to nothing beside what it carried before leads to a target
that is gone. What a stream carried is taken from its whole life, never from a moment: a moment of a stream that halts
says that the copy takes for ever, and so that there is time. A stream that is held back for the sake of others is
measured by what it may send.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from migrator.core.model import Sample

#: Seconds without progress that are a halt.
HALT_SECONDS = 120.0
#: Less than this share of what it could have carried meanwhile is no progress.
_PROGRESS_RATIO = 0.01
#: Nor is what is less than this, bytes per second, where it never carried anything.
_LEAST_BYTES_PER_SECOND = 1024
#: What a stream carries is known after so many seconds: before, the buffers on the way take more than arrives.
_KNOWN_SECONDS = 10.0
#: A longer time between two samples was nobody's but ours: the stream may have been parked meanwhile.
_LONGEST_GAP_SECONDS = 10.0
#: Nobody is held back to less than this share of what the stream carries; a path that is believed to be slower than
#: that is one on which nothing arrives.
_LEAST_SHARE_RATIO = 0.001


@dataclass(frozen=True, kw_only=True)
class StreamHistory:
    """History of one stream, as far as it was watched."""

    #: The highest average over its life so far, bytes per second; 0 until it is known.
    carried_bytes_per_second: float = 0.0
    #: Seconds that it was watched; those in which it was held back count by the share that it was left.
    working_seconds: float = 0.0
    #: Bytes that it could have carried since the last progress.
    expected_bytes: float = 0.0
    #: The last sample, and the one at which it had last made progress.
    last: Sample | None = None
    progress: Sample | None = None

    @property
    def halted(self) -> bool:
        """Tell whether there was no progress for :data:`HALT_SECONDS`, though there is more to send."""
        more = self.last is not None and self.last.remaining_bytes > 0
        return more and self.seconds_without_progress >= HALT_SECONDS

    @property
    def seconds_without_progress(self) -> float:
        """Return the seconds since the last progress."""
        if self.last is None or self.progress is None:
            return 0.0
        return self.last.at_seconds - self.progress.at_seconds

    def after(self, sample: Sample) -> StreamHistory:
        """Return the history after one more sample; one that goes back in time changes nothing."""
        before, progress = self.last, self.progress
        if before is None or progress is None:
            return replace(self, last=sample, progress=sample)
        passed = sample.at_seconds - before.at_seconds
        if passed < 0 or sample.round < before.round:
            return self
        carried = self.carried_bytes_per_second
        if sample.at_seconds >= _KNOWN_SECONDS:
            carried = max(carried, sample.transferred_bytes / sample.at_seconds)
        share = _share(sample, carried)
        history = replace(
            self,
            last=sample,
            carried_bytes_per_second=carried,
            working_seconds=self.working_seconds + share * min(passed, _LONGEST_GAP_SECONDS),
            expected_bytes=self.expected_bytes + carried * share * passed,
        )
        # Pages that are empty are done with, and next to nothing is sent for them.
        done = max(
            sample.transferred_bytes - progress.transferred_bytes,
            progress.remaining_bytes - sample.remaining_bytes,
        )
        overdue = history.seconds_without_progress >= HALT_SECONDS
        needed = _PROGRESS_RATIO * (history.expected_bytes if overdue else carried * share * HALT_SECONDS)
        another = sample.round != progress.round or passed > _LONGEST_GAP_SECONDS
        if another or done >= max(needed, _LEAST_BYTES_PER_SECOND * HALT_SECONDS):
            return replace(history, progress=sample, expected_bytes=0.0)
        return history


def _share(sample: Sample, carried: float) -> float:
    """Return the share of what the stream carries that it may send now: 0 to 1."""
    if carried <= 0 or sample.allowed_bytes_per_second <= 0:
        return 1.0
    return min(1.0, max(_LEAST_SHARE_RATIO, sample.allowed_bytes_per_second / carried))
