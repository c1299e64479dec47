"""The shortest downtime that a precopy can have on a stream of some speed: what no controller can do better. Pure."""

from __future__ import annotations

import math

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.policy import LastResort, Policy
from migrator.units import show_rate, show_seconds

#: Code of the error that the ceiling cannot be kept, and of the same as a warning, where the policy may stop the guest.
INFEASIBLE, EXCEEDED = "ceiling-infeasible", "ceiling-exceeded"
CEILING_CODES = frozenset({INFEASIBLE, EXCEEDED})
#: Device state of a small guest, as it travels in the downtime: 0.2 to 0.3 MiB were measured.
_DEVICE_STATE_BYTES = 0.3 * 2**20
#: The switch needs so many round trips between the hosts and to the controller: the last look, continue, the hand-over.
_ROUND_TRIPS = 3
#: Device state saved and loaded, and the guest continued.
_LEAST_SECONDS = 0.005


#: An SSH tunnel may hold so much that was written and has not arrived: the window of a channel of OpenSSH's, and what
#: the sockets before and behind its client hold; where its stream is kept slower than the network, what that holds.
TUNNEL_BYTES, SHAPED_TUNNEL_BYTES = 4 << 20, 512 << 10


def tunnel_findings(policy: Policy, bytes_per_second: float | None, *, shaped: bool) -> list[Finding]:
    """Return a warning where what a tunnel may hold alone takes as long as the guest may stand still.

    :param shaped: what waits in it can be seen, and kept small.
    :param bytes_per_second: what the stream will carry; ``None`` or 0: not known, and nothing is claimed.
    """
    speed = _speed_at_the_switch(policy, bytes_per_second)
    if policy.offline or not speed:
        return []
    takes = downtime_floor(speed) + (SHAPED_TUNNEL_BYTES if shaped else TUNNEL_BYTES) / speed
    if takes <= policy.max_downtime_seconds:
        return []
    message = (
        f"max_downtime is {show_seconds(policy.max_downtime_seconds)}; what an SSH tunnel may hold when the guest is "
        f"stopped alone takes up to {show_seconds(takes)} at {show_rate(speed)}"
    )
    return [finding("tunnel-ceiling", message)]


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

    :param bytes_per_second: what the stream will carry; ``None`` or 0: not known, and then only what holds at any speed
        is claimed.
    """
    if policy.offline:
        return None
    speed = _speed_at_the_switch(policy, bytes_per_second) or math.inf
    floor = downtime_floor(speed, round_trip_seconds=round_trip_seconds)
    return floor if floor > policy.max_downtime_seconds else None


def _speed_at_the_switch(policy: Policy, bytes_per_second: float | None) -> float | None:
    """Return what is known of the stream's speed at the switch.

    Where it is the policy that keeps the stream slow nothing is: QEMU sends what is left at the switch regardless.
    """
    most = policy.max_bandwidth_bytes_per_second
    if not bytes_per_second or (most is not None and bytes_per_second >= most):
        return None
    return bytes_per_second


def may_exceed(policy: Policy) -> bool:
    """Return whether the policy lets a guest go all the same: whoever may be stopped may stand still for longer."""
    return policy.last_resort is LastResort.PAUSE


def ceiling_findings(
    policy: Policy, bytes_per_second: float | None, round_trip_seconds: float = 0.0
) -> list[Finding]:
    """Return what speaks against the ceiling for a guest that runs: nothing, or one of :data:`CEILING_CODES`.

    :param bytes_per_second: see :func:`smallest_ceiling`.
    """
    least = smallest_ceiling(policy, bytes_per_second, round_trip_seconds=round_trip_seconds)
    if least is None:
        return []
    speed = _speed_at_the_switch(policy, bytes_per_second)
    at = "any speed" if speed is None else show_rate(speed)
    message = (
        f"max_downtime is {show_seconds(policy.max_downtime_seconds)}; device state and round trips alone take about "
        f"{show_seconds(least)} at {at}, which is the smallest that can be kept"
    )
    if may_exceed(policy):
        return [finding("ceiling-exceeded", message)]
    return [finding("ceiling-infeasible", message)]
