"""Experience from earlier migrations of ``migrator direct``, in one small file of the state directory.

The service keeps it in its journal; older versions of it had such a file, too, which is read once.
"""

from __future__ import annotations

import json
from pathlib import Path

from migrator.core import pair_overhead
from migrator.machine import replace_file
from migrator.store.records import state_directory


class FileExperience:
    """See :class:`migrator.ports.Experience`. A file that is damaged or cannot be written counts as empty."""

    def __init__(self, *, directory: Path | None = None) -> None:
        self._path = (directory or state_directory()) / "experience.json"

    def overhead_seconds(self, pair: str) -> float | None:
        return pair_overhead.percentile(self.read().get(pair, ()))

    def known(self) -> dict[str, float]:
        found = {pair: pair_overhead.percentile(seen) for pair, seen in self.read().items()}
        return {pair: seconds for pair, seconds in found.items() if seconds is not None}

    def learn(self, pair: str, overhead_seconds: float) -> None:
        learned = self.read()
        learned[pair] = pair_overhead.after(learned.get(pair, ()), overhead_seconds)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path, json.dumps(learned))
        except OSError:
            pass  # a help, not a promise

    def read(self) -> dict[str, list[float]]:
        """Return what was seen of each pair; empty where there is no such file."""
        try:
            learned = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(pair): [float(each) for each in seen] for pair, seen in learned.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
