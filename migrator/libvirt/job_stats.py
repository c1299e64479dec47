"""Figures of libvirt about a job, in our words and base units. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.core.model import Sample


def read_sample(stats: Mapping[str, Any], *, at_seconds: float = 0.0) -> Sample:
    """Return the sample that the statistics of a migration's job tell.

    :param stats: as ``virDomainGetJobStats`` gives them: times in milliseconds, a rate of pages.
    """
    page = int(stats.get("memory_page_size") or 4096)
    elapsed = _milliseconds(stats.get("time_elapsed"))
    return Sample(
        at_seconds=elapsed or at_seconds,
        round=int(stats.get("memory_iteration", 0)),
        total_bytes=int(stats.get("memory_total", 0)),
        remaining_bytes=int(stats.get("memory_remaining", 0)),
        transferred_bytes=int(stats.get("memory_processed", 0)),
        dirty_rate_bytes_per_second=float(stats.get("memory_dirty_rate", 0)) * page,
        bandwidth_bytes_per_second=float(stats.get("memory_bps", 0)),
        throttle_ratio=int(stats.get("auto_converge_throttle", 0)) / 100,
        expected_downtime_seconds=_milliseconds(stats.get("downtime")),
        postcopy_requests=int(stats.get("memory_postcopy_requests", 0)),
    )


def read_figures(stats: Mapping[str, Any]) -> dict[str, float]:
    """Return libvirt's own figures of a job that has ended, in seconds and bytes."""
    figures: dict[str, float] = {}
    for name, ours in (
        ("downtime", "downtime_seconds"),
        ("downtime_net", "downtime_without_network_seconds"),
        ("time_elapsed", "elapsed_seconds"),
        ("setup_time", "setup_seconds"),
    ):
        if name in stats:
            figures[ours] = _milliseconds(stats[name])
    for name, ours in (("memory_processed", "transferred_bytes"), ("disk_processed", "disk_bytes")):
        if name in stats:
            figures[ours] = float(stats[name])
    return figures


def _milliseconds(value: Any) -> float:
    return float(value or 0) / 1000
