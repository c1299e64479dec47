"""The shortest downtime that a precopy can have on a stream of some speed: what no controller can do better. Pure."""

from __future__ import annotations

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.policy import LastResort, Policy
from migrator.units import show_rate, show_seconds

#: Device state of a small guest, as it travels in the downtime: 0.2 to 0.3 MiB were measured.
_DEVICE_STATE_BYTES = 0.3 * 2**20
#: The switch needs so many round trips between the hosts and to the controller: the last look, continue, the hand-over.
_ROUND_TRIPS = 3
#: Device state saved and loaded, and the guest continued.
_LEAST_SECONDS = 0.005


def downtime_floor(bytes_per_second: float, *, round_trip_seconds: float = 0.0) -> float:
    """Return the seconds that even an idle guest stands still at the least.

    :param bytes_per_second: what the stream carries; more than 0.
    :param round_trip_seconds: from the controller to the slower of the two QEMUs.
    """
    return _LEAST_SECONDS + _ROUND_TRIPS * round_trip_seconds + _DEVICE_STATE_BYTES / bytes_per_second


def smallest_ceiling(
    policy: Policy, bytes_per_second: float | None, *, round_trip_seconds: float = 0.0
) -> float | None:
    """Return the smallest downtime ceiling that can be kept, in seconds; ``None`` where the policy's can.

    :param bytes_per_second: what the stream will carry; ``None`` or 0: not known, and then nothing is claimed.
    """
    if policy.offline or not bytes_per_second:
        return None
    most = policy.max_bandwidth_bytes_per_second
    if most is not None and bytes_per_second >= most:
        return None  # it is the policy that keeps the stream slow, and QEMU sends what is left at the switch regardless
    floor = downtime_floor(bytes_per_second, round_trip_seconds=round_trip_seconds)
    return floor if floor > policy.max_downtime_seconds else None


def may_exceed(policy: Policy) -> bool:
    """Return whether the policy lets a guest go all the same: whoever may be stopped may stand still for longer."""
    return policy.last_resort is LastResort.PAUSE


def ceiling_findings(policy: Policy, share: int | None, round_trip_seconds: float) -> list[Finding]:
    """Return what speaks against the ceiling.

    :param share: what the stream has of the link, bytes per second; ``None``: not known, and then nothing is claimed.
    """
    least = smallest_ceiling(policy, share, round_trip_seconds=round_trip_seconds)
    if least is None or share is None:
        return []
    message = (
        f"max_downtime is {show_seconds(policy.max_downtime_seconds)}; device state and round trips alone take about "
        f"{show_seconds(least)} at {show_rate(share)}, which is the smallest that can be kept"
    )
    if may_exceed(policy):
        return [finding("ceiling-exceeded", message)]
    return [finding("ceiling-infeasible", message)]
