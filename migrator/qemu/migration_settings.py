"""Capabilities and parameters of a migration, in QEMU's words and units."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from migrator.ports import MigrationSettings, Tuning
from migrator.qemu.monitor import Monitor


async def read(monitor: Monitor) -> MigrationSettings:
    """Read all capabilities and parameters as they are now.

    :raise QemuError: when QEMU cannot be asked.
    """
    capabilities, parameters = await asyncio.gather(
        monitor.execute("query-migrate-capabilities"),
        monitor.execute("query-migrate-parameters"),
    )
    return MigrationSettings(
        capabilities={entry["capability"]: entry["state"] for entry in capabilities},
        parameters=parameters,
    )


def capabilities(wanted: Mapping[str, bool]) -> dict[str, Any]:
    """Return the arguments of ``migrate-set-capabilities``."""
    return {"capabilities": [{"capability": name, "state": state} for name, state in wanted.items()]}


def parameters(tuning: Tuning) -> dict[str, int | str]:
    """Return the arguments of ``migrate-set-parameters``; empty where nothing is to be set."""
    arguments: dict[str, int | str] = {}
    if tuning.max_bandwidth_bytes_per_second is not None:
        arguments["max-bandwidth"] = tuning.max_bandwidth_bytes_per_second
    if tuning.max_postcopy_bandwidth_bytes_per_second is not None:
        arguments["max-postcopy-bandwidth"] = tuning.max_postcopy_bandwidth_bytes_per_second
    if tuning.downtime_limit_seconds is not None:
        least = 1 if tuning.downtime_limit_seconds > 0 else 0
        arguments["downtime-limit"] = max(least, int(tuning.downtime_limit_seconds * 1000))
    if tuning.throttle_ratio is not None:
        # QEMU steps at every second round that dirties more than the trigger's share of what was sent: with these
        # one step is enough, up or down. It cannot be forbidden while migrating; asleep it may take one per cent.
        asleep = tuning.throttle_ratio <= 0
        share = min(99, max(1, round(tuning.throttle_ratio * 100)))
        arguments |= {
            "cpu-throttle-initial": share,
            "cpu-throttle-increment": share,
            "max-cpu-throttle": share,
        }
        arguments["throttle-trigger-threshold"] = 100 if asleep else 1
    if tuning.channels is not None:
        arguments["multifd-channels"] = tuning.channels
    if tuning.compression is not None:
        arguments["multifd-compression"] = tuning.compression
    if tuning.delta_cache_bytes is not None:
        arguments["xbzrle-cache-size"] = tuning.delta_cache_bytes
    return arguments


def different(before: MigrationSettings, now: MigrationSettings) -> tuple[dict[str, Any], dict[str, bool]]:
    """Return the parameters and capabilities that must be set to restore `before`, as far as QEMU still has them."""
    changed = {
        name: value
        for name, value in before.parameters.items()
        if name in now.parameters and now.parameters[name] != value
    }
    switched = {
        name: state
        for name, state in before.capabilities.items()
        if now.capabilities.get(name, state) != state
    }
    return changed, switched
