"""Parts of downtimes that are not memory, of all pairs of QEMUs, in memory and in the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from migrator.core import pair_overhead
from migrator.engine import clock
from migrator.engine.journal_writer import JournalWriter

#: Of its documents in the journal, one for each pair.
KIND = "pair-overhead"
#: Pairs that are kept, those that were learned of last.
_MOST_PAIRS = 100


class PairOverheads:
    """Implements :class:`migrator.ports.Experience`."""

    def __init__(self, *, journal_writer: JournalWriter) -> None:
        self._journal_writer = journal_writer
        #: By pair, the one that was learned of last at the end.
        self._seen: dict[str, list[float]] = {}

    def overhead_seconds(self, pair: str) -> float | None:
        """See the protocol."""
        return pair_overhead.percentile(self._seen.get(pair, ()))

    def learn(self, pair: str, overhead_seconds: float) -> None:
        """See the protocol."""
        self._seen[pair] = pair_overhead.after(self._seen.pop(pair, ()), overhead_seconds)
        self._write(pair)
        while len(self._seen) > _MOST_PAIRS:
            first = next(iter(self._seen))
            del self._seen[first]
            self._write(first)

    def known(self) -> dict[str, float]:
        """Return :meth:`overhead_seconds` of all pairs of which there is one."""
        found = {pair: self.overhead_seconds(pair) for pair in self._seen}
        return {pair: seconds for pair, seconds in found.items() if seconds is not None}

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take in what was learned before, as the journal has it.

        :raise ValueError: it cannot be read; likewise KeyError and TypeError.
        """
        self._seen.setdefault(str(saved["id"]), [float(each) for each in saved["seconds"]])

    def take_in(self, earlier: Mapping[str, Sequence[float]]) -> None:
        """Take in what an older version kept elsewhere; nothing where something is known already."""
        if self._seen:
            return
        for pair, seen in earlier.items():
            for each in seen:
                self.learn(pair, each)

    def _write(self, pair: str) -> None:
        self._journal_writer.schedule_latest(KIND, pair, lambda: self._document(pair))

    def _document(self, pair: str) -> dict[str, Any]:
        if pair not in self._seen:
            return {
                "id": pair,
                "seconds": [],
                "ended_at": datetime.fromtimestamp(clock.wall(), UTC).isoformat(),
            }
        return {"id": pair, "seconds": list(self._seen[pair])}
