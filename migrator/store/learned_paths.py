"""Speeds of paths as the streams of ``migrator direct`` showed them, in one small file of the state directory.

The service keeps them in its journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from migrator.machine import replace_file
from migrator.store.records import state_directory

#: Sources that are kept, those that were used last.
_SOURCES_KEPT = 100


class LearnedPaths:
    """One document for each source; a file that is damaged or cannot be written counts as empty.

    :ivar path: of the file.
    """

    def __init__(self, *, directory: Path | None = None) -> None:
        self.path = (directory or state_directory()) / "paths.json"

    def document(self, source: str) -> Mapping[str, Any] | None:
        """Return what was kept of a source; ``None``: nothing."""
        return self._read().get(source)

    def keep(self, source: str, document: Callable[[], Mapping[str, Any]]) -> None:
        """Write down what was learned of a source; where that cannot be done it is forgotten."""
        kept = self._read()
        kept.pop(source, None)
        kept[source] = document()
        newest = dict([*kept.items()][-_SOURCES_KEPT:])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self.path, json.dumps(newest))
        except OSError:
            pass  # a help, not a promise

    def _read(self) -> dict[str, Mapping[str, Any]]:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(kept, dict):
            return {}
        return {source: each for source, each in kept.items() if isinstance(each, dict)}
