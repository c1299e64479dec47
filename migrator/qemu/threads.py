"""The threads of a QEMU by what they do."""

from __future__ import annotations

from collections.abc import Mapping

from migrator.qemu.monitor import Monitor
from migrator.qemu.querying import query


async def threads(monitor: Monitor) -> Mapping[str, int]:
    """Return thread ids by what they are for a person: ``vCPU 0``, ``iothread io0``.

    :raise QemuError: when it cannot be asked.
    """
    cpus = await query(monitor, "query-cpus-fast", otherwise=[])
    iothreads = await query(monitor, "query-iothreads", otherwise=[])
    found = {f"vCPU {cpu['cpu-index']}": cpu["thread-id"] for cpu in cpus}
    return found | {f"iothread {each['id']}": each["thread-id"] for each in iothreads}
