"""What metrics read of the service, as far as they need it; the engine's documents fit as they are.

Metrics and engine do not know each other, so this says which fields are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from migrator.core.inventory import HostState
from migrator.core.model import Mode, State


class SeenForecast(Protocol):
    """Predicted time left."""

    @property
    def p50_seconds(self) -> float | None:
        """Median."""


class SeenMigration(Protocol):
    """One migration that has not ended, or one that has, from the journal."""

    @property
    def id(self) -> str: ...
    @property
    def guest(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def ended_at(self) -> datetime | None: ...
    @property
    def progress_ratio(self) -> float: ...
    @property
    def remaining_bytes(self) -> int | None: ...
    @property
    def transferred_bytes(self) -> int: ...
    @property
    def dirty_rate_bytes_per_second(self) -> float | None: ...
    @property
    def bandwidth_bytes_per_second(self) -> float | None: ...
    @property
    def throttle_ratio(self) -> float: ...
    @property
    def round(self) -> int: ...
    @property
    def forecast(self) -> SeenForecast | None: ...
    @property
    def expected_downtime_seconds(self) -> float | None: ...
    @property
    def max_downtime_seconds(self) -> float: ...
    @property
    def downtime_limit_seconds(self) -> float | None: ...
    @property
    def downtime_seconds(self) -> float | None: ...
    @property
    def standstill_seconds(self) -> float | None: ...
    @property
    def standstill_uncertainty_seconds(self) -> float | None: ...


class SeenStanding(Protocol):
    """One guest of an evacuation."""

    @property
    def guest(self) -> str: ...
    @property
    def standing(self) -> str: ...


class SeenEvacuation(Protocol):
    """One evacuation that runs."""

    @property
    def id(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def deadline(self) -> datetime | None: ...
    @property
    def forecast_end_at(self) -> datetime | None: ...
    @property
    def at_risk(self) -> bool: ...
    @property
    def guests(self) -> Sequence[SeenStanding]: ...
    @property
    def guests_left(self) -> int: ...


class SeenHost(Protocol):
    """One host."""

    @property
    def host(self) -> str: ...
    @property
    def state(self) -> HostState: ...
    @property
    def up(self) -> bool: ...
    @property
    def guests(self) -> int: ...
    @property
    def guests_unmonitored(self) -> int: ...
    @property
    def guests_undriven(self) -> int: ...
    @property
    def guests_duplicate(self) -> Sequence[str]: ...
    @property
    def link_bytes_per_second(self) -> float | None: ...


class SeenGuest(Protocol):
    """One guest."""

    @property
    def guest(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def dirty_rate_bytes_per_second(self) -> float | None: ...
    @property
    def movable(self) -> bool: ...


class SeenEvent(Protocol):
    """Something that happened."""

    @property
    def kind(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def subject_id(self) -> str: ...
    @property
    def body(self) -> Mapping[str, Any]: ...


class Events(Protocol):
    """Where events come from."""

    def subscribe(self, callback: Callable[[SeenEvent], None]) -> None:
        """Call `callback` with every event from now on."""


class Seen(Protocol):
    """The state of the service, from memory; the engine's ``Reading`` is one."""

    @property
    def bus(self) -> Events:
        """Its events."""

    def active_migrations(self) -> Sequence[SeenMigration]:
        """Those that have not ended, those that are held among them."""

    def active_evacuations(self) -> Sequence[SeenEvacuation]:
        """Those that run."""

    def hosts(self) -> Sequence[SeenHost]:
        """All."""

    def guests(self) -> Sequence[SeenGuest]:
        """All."""

    def complaints(self) -> Sequence[str]:
        """Why new work is not taken now."""

    async def migrations(
        self, *, limit: int, before: str | None = None, where: Mapping[str, str] | None = None
    ) -> Sequence[SeenMigration]:
        """From the journal, newest first."""
