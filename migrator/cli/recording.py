"""A recorded run: JSON lines with the policy, every sample, every decision and the result."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from migrator.core.migration.convergence_state import Abilities
from migrator.core.model import Decision, Sample
from migrator.core.policy import Policy
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.errors import UsageError

_VERSION = 1


class Recorder:
    """Writes a run to a file; with ``None`` for a path it does nothing.

    A run is not broken off for the sake of its recording: what cannot be written later is lost.

    :raise UsageError: when the file cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = None
        self._last: Sample | None = None
        if path is not None:
            try:
                self._file = path.open("w", encoding="utf-8")
            except OSError as error:
                raise UsageError(f"--record: cannot write {path}: {error.strerror}") from error

    def begin(self, policy: Policy, abilities: Abilities) -> None:
        """Record the policy and abilities that the run began with."""
        self._write({"version": _VERSION, "policy": asdict(policy), "abilities": asdict(abilities)})

    def status(self, status: MigrationProgress) -> None:
        """Record a sample, if it is a new one."""
        if status.sample is not None and status.sample != self._last:
            self._last = status.sample
            self._write({"state": status.state, "sample": asdict(status.sample)})

    def decision(self, decision: Decision) -> None:
        """Record a decision."""
        self._write({"decision": asdict(decision)})

    def result(self, result: MigrationOutcome) -> None:
        """Record the end."""
        self._write({"result": asdict(result)})

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError:
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a recorded run.

    :raise UsageError: when it is not one.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a recorded run: {error}; direct --record writes one") from error
    if not lines or not isinstance(lines[0], dict) or lines[0].get("version") != _VERSION:
        raise UsageError(f"{path} is not a recorded run of version {_VERSION}; direct --record writes one")
    return lines
