"""Devices that were plugged into a QEMU since its start."""

from __future__ import annotations

import asyncio

from migrator.qemu.monitor import Monitor
from migrator.qemu.querying import query


async def hot_plugged(monitor: Monitor) -> list[str]:
    """Return the ids, or the drivers of those that have none, of devices that no command line made.

    :raise QemuError: QEMU cannot be asked.
    """
    found = []
    for place in ("/machine/peripheral", "/machine/peripheral-anon"):
        children = await query(monitor, "qom-list", otherwise=[], path=place)
        devices = [each for each in children if each["type"].startswith("child<")]
        plugged = await asyncio.gather(
            *(
                query(
                    monitor,
                    "qom-get",
                    path=f"{place}/{each['name']}",
                    property="hotplugged",
                    otherwise=False,
                )
                for each in devices
            )
        )
        found += [
            each["type"].removeprefix("child<").removesuffix(">") if "[" in each["name"] else each["name"]
            for each, was in zip(devices, plugged, strict=True)
            if was is True
        ]
    return found
