"""Figures of a running migration, out of QEMU's units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.core.model import Sample


def read_sample(migrate: Mapping[str, Any]) -> Sample | None:
    """Convert an answer of query-migrate into base units; ``None`` where it has no figures."""
    ram = migrate.get("ram")
    if ram is None:
        return None
    page = ram.get("page-size", 4096)
    return Sample(
        at_seconds=migrate.get("total-time", 0) / 1e3,
        round=ram["dirty-sync-count"],
        total_bytes=ram["total"],
        remaining_bytes=ram["remaining"],
        transferred_bytes=ram["transferred"],
        dirty_rate_bytes_per_second=float(ram["dirty-pages-rate"] * page),
        bandwidth_bytes_per_second=ram["mbps"] * 1e6 / 8,
        throttle_ratio=migrate.get("cpu-throttle-percentage", 0) / 100,
        expected_downtime_seconds=max(0, migrate.get("expected-downtime", 0)) / 1e3,
        downtime_seconds=max(0, migrate.get("downtime", 0)) / 1e3,
        postcopy_requests=ram.get("postcopy-requests", 0),
    )


def read_stall(migrate: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a destination measures with ``postcopy-blocktime``, as fields of a view; nothing where it is off."""
    whole = migrate.get("postcopy-blocktime")
    if whole is None:
        return {}
    return {
        "postcopy_stall_seconds": whole / 1e3,
        "postcopy_vcpu_stall_seconds": tuple(
            each / 1e3 for each in migrate.get("postcopy-vcpu-blocktime", ())
        ),
    }
