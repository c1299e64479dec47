"""Settings and costs of a simulated migration."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.testing.workload import MIB


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """QEMU's migration parameters and capabilities, as far as they matter here; the defaults are QEMU's."""

    #: 0: as the link allows.
    max_bandwidth_bytes_per_second: float = 128.0 * MIB
    #: 0: as the link allows.
    max_postcopy_bandwidth_bytes_per_second: float = 0.0
    downtime_limit_seconds: float = 0.3
    auto_converge: bool = False
    throttle_initial_ratio: float = 0.2
    throttle_increment_ratio: float = 0.1
    max_throttle_ratio: float = 0.99
    #: Share of what was sent in a period that must be dirtied again for auto-converge to count it.
    throttle_trigger_ratio: float = 0.5
    throttle_tailslow: bool = False
    #: Wait with the guest stopped until somebody says ``migrate-continue``.
    pause_before_switchover: bool = False


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Time that is spent besides sending memory. Defaults measured on QEMU 7.2 under TCG, two hosts on one machine.

    QEMU 10.0 is the same but for :attr:`device_seconds`, about 5 ms there.
    """

    #: From ``migrate`` to the first page.
    setup_seconds: float = 0.002
    #: One look at the dirty bitmap: so much, and so much a GiB of guest memory. Besides, it waits for a vCPU that
    #: auto-converge has put to sleep, which at 99 % is for half a second.
    sync_seconds: float = 0.0005
    sync_seconds_per_gib: float = 0.002
    #: From the last byte of memory to the end of the migration: devices saved, sent and loaded.
    device_seconds: float = 0.012
    #: The same for a switch to postcopy.
    postcopy_seconds: float = 0.02
    #: From then until the guest runs at the destination: the controller's part.
    resume_seconds: float = 0.002
    #: A page that the destination's guest touches and does not have, its time on the link left out.
    fault_seconds: float = 0.0005
    #: Pages are found to be zero, and others are copied, no faster than this.
    zero_bytes_per_second: float = 16000.0 * MIB
    memory_bytes_per_second: float = 1200.0 * MIB
    #: What the sockets and the link's queue hold.
    buffer_bytes: float = 2.0 * MIB

    def look_seconds(self, memory_bytes: int) -> float:
        """Return how long one look at the dirty bitmap takes."""
        return self.sync_seconds + self.sync_seconds_per_gib * memory_bytes / 2**30
