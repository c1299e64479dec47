"""Documents with usual values, for tests that care for few of their fields."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from migrator.api.documents import ForecastDocument, MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.core.drain.states import EvacuationState
from migrator.core.inventory import HostState
from migrator.core.model import Mode, State


def a_migration(identifier: str = "m1", **fields: Any) -> MigrationDocument:
    """Return a migration in the middle of precopy, but for `fields`."""
    some: dict[str, Any] = {
        "id": identifier,
        "guest": f"guest-of-{identifier}",
        "source": "host-1",
        "destination": "host-2",
        "policy": "default",
        "state": State.PRECOPY,
        "mode": Mode.PRECOPY,
        "created_at": datetime.now(UTC),
        "progress_ratio": 0.5,
        "remaining_bytes": 2**29,
        "total_bytes": 2**30,
        "transferred_bytes": 2**29,
        "dirty_rate_bytes_per_second": 1e7,
        "bandwidth_bytes_per_second": 1e8,
        "round": 2,
        "forecast": ForecastDocument(p10_seconds=4, p50_seconds=5, p90_seconds=8, verdict="converges"),
        "expected_downtime_seconds": 0.1,
        "max_downtime_seconds": 0.3,
        "downtime_limit_seconds": 0.2,
    }
    return MigrationDocument(**{**some, **fields})


def an_evacuation(identifier: str = "e1", **fields: Any) -> EvacuationDocument:
    """Return an evacuation under way, but for `fields`."""
    now = datetime.now(UTC)
    some: dict[str, Any] = {
        "id": identifier,
        "host": "host-1",
        "state": EvacuationState.RUNNING,
        "created_at": now,
        "deadline": now + timedelta(hours=1),
        "forecast_end_at": now + timedelta(minutes=10),
        "guests_left": 3,
    }
    return EvacuationDocument(**{**some, **fields})


def a_host(name: str = "host-1", **fields: Any) -> HostDocument:
    """Return an active host, but for `fields`."""
    some: dict[str, Any] = {
        "state": HostState.ACTIVE,
        "up": True,
        "link_bytes_per_second": 1.25e9,
        "certificates_expire_at": datetime(2030, 1, 1, tzinfo=UTC),
    }
    return HostDocument(host=name, **{**some, **fields})


def a_guest(key: str = "guest-1", **fields: Any) -> GuestDocument:
    """Return a running guest, but for `fields`."""
    some: dict[str, Any] = {
        "host": "host-1",
        "run_state": "running",
        "name": f"name of {key}",
        "dirty_rate_bytes_per_second": 1e6,
    }
    return GuestDocument(guest=key, **{**some, **fields})
