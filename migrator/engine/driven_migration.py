"""A migration that this controller drives for the planner, and what of it has not been said yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from migrator.engine.migration.journalled_session import JournalledSession
from migrator.ports.assignments import Assignment

#: So many of its last states are reported at the most.
_TRAIL = 8


@dataclass(eq=False)
class DrivenMigration:
    """One of those that :class:`migrator.engine.assigned_migrations.AssignedMigrations` drives."""

    assignment: Assignment
    session: JournalledSession
    holds: Callable[[], bool]
    task: asyncio.Task[None] | None = None
    #: The planner has taken it back: nothing more is said of it.
    lost: bool = False
    released: bool = False
    changed: bool = True
    reported_at: float = 0.0
    states: int = 0
    #: When, its number, and the document of each state.
    trail: deque[tuple[float, int, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=_TRAIL))


class GivenOverheads:
    """Implements :class:`migrator.ports.Experience`: as the planner gave it, who is told what is learned."""

    def __init__(self, known: Mapping[str, float]) -> None:
        self._known = known

    def overhead_seconds(self, pair: str) -> float | None:
        return self._known.get(pair)

    def learn(self, pair: str, overhead_seconds: float) -> None:
        """Leave it to the outcome, which the planner is told."""

    def known(self) -> Mapping[str, float]:
        return self._known
