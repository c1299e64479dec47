"""How fast a guest dirties its memory, by the best of QEMU's ways that cannot harm it.

- ``dirty-bitmap`` counts every page, and costs the guest what the log of dirty pages costs it in a migration. It is
  asked for only where KVM is seen to be enabled (under TCG it crashes QEMU 7.2), where nothing is being migrated (it
  clears the log that a migration reads) and where nothing blocks migration (a device that keeps no log may end QEMU).
- ``page-sampling`` looks at 512 pages a GiB, twice: by some per cent wrong, harmless, and everywhere the same.
- ``dirty-ring``, the other exact one, is never asked for, not even where there is a ring. It puts the ring to use, and
  there are hosts (Linux 6.18 with QEMU 7.2 and 10.0) on which a ring that fills stops the guest for good: a migration
  may have to take that risk, a measurement may not. It also shows some MiB/s more than the guest dirties.
"""

from __future__ import annotations

import asyncio

from migrator.errors import CommandFailed
from migrator.qemu.monitor import Monitor

_MIB = 2**20
#: What query-migrate says where nothing is being migrated; nothing at all, where nothing ever was.
_AT_REST = (None, "none", "completed", "failed", "cancelled")


class DirtyRate:
    """The probe of one QEMU; remembers whether it was refused the exact way."""

    def __init__(self) -> None:
        self._refused = False

    async def start(self, monitor: Monitor, period_seconds: float, *, exact: bool) -> None:
        """See :meth:`migrator.ports.Qemu.start_dirty_rate`.

        :raise QemuError: as every command; refused also while somebody else measures.
        """
        period = max(1, round(period_seconds))
        refused = False
        if exact and not self._refused and await _may_be_exact(monitor):
            try:
                await monitor.execute("calc-dirty-rate", {"calc-time": period, "mode": "dirty-bitmap"})
                return
            except CommandFailed:
                refused = True  # it has a dirty ring, or somebody else measures: then the next is refused too
        await monitor.execute("calc-dirty-rate", {"calc-time": period, "mode": "page-sampling"})
        self._refused = self._refused or refused

    async def read(self, monitor: Monitor) -> float | None:
        """See :meth:`migrator.ports.Qemu.dirty_rate`."""
        answer = await monitor.execute("query-dirty-rate")
        rate = answer.get("dirty-rate", -1)
        return float(rate) * _MIB if answer["status"] == "measured" and rate >= 0 else None


async def _may_be_exact(monitor: Monitor) -> bool:
    try:
        kvm, migrate = await asyncio.gather(monitor.execute("query-kvm"), monitor.execute("query-migrate"))
    except CommandFailed:
        return False
    return (
        kvm.get("enabled") is True
        and migrate.get("status") in _AT_REST
        and not migrate.get("blocked-reasons")
    )
