"""Experience from earlier migrations, in one small file of the state directory."""

from __future__ import annotations

import json
from pathlib import Path

from migrator.machine import replace_file
from migrator.store.records import state_directory

#: So many of the last migrations of a pair count.
_KEPT = 30
#: Less than so many say nothing about a 90th percentile.
_ENOUGH = 3


class FileExperience:
    """See :class:`migrator.ports.Experience`. A file that is damaged or cannot be written counts as empty."""

    def __init__(self, *, directory: Path | None = None) -> None:
        self._path = (directory or state_directory()) / "experience.json"

    def overhead_seconds(self, pair: str) -> float | None:
        seen = sorted(self._read().get(pair, ()))
        return seen[min(len(seen) - 1, round(0.9 * len(seen)))] if len(seen) >= _ENOUGH else None

    def learn(self, pair: str, overhead_seconds: float) -> None:
        learned = self._read()
        learned[pair] = [*learned.get(pair, ()), round(overhead_seconds, 4)][-_KEPT:]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path, json.dumps(learned))
        except OSError:
            pass  # a help, not a promise

    def _read(self) -> dict[str, list[float]]:
        try:
            learned = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(pair): [float(each) for each in seen] for pair, seen in learned.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
