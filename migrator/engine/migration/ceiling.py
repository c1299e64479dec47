"""Finds out whether the downtime ceiling of a policy can be kept at all, on this stream and so far from both ends."""

from __future__ import annotations

import asyncio

from migrator.core.migration.downtime_floor import ceiling_findings
from migrator.core.model import Finding
from migrator.core.policy import Policy
from migrator.ports import Qemu

#: Where only the round trip is in the way it is measured again after each of these, seconds: the quickest counts.
_AGAIN_SECONDS = (0.01, 0.03, 0.1, 0.3, 0.5)


async def against_ceiling(policy: Policy, stream_speed: float | None, *ends: Qemu) -> list[Finding]:
    """Return what speaks against the ceiling for a guest that runs; see
    :func:`migrator.core.migration.downtime_floor.ceiling_findings`.

    A round trip that was long because this process was busy for a moment is no reason to refuse a guest.
    """
    for pause in _AGAIN_SECONDS:
        found = _found(policy, stream_speed, *ends)
        if not found or ceiling_findings(policy, stream_speed):
            return found
        await asyncio.sleep(pause)
        await asyncio.gather(*(end.observe() for end in ends))
    return _found(policy, stream_speed, *ends)


def _found(policy: Policy, stream_speed: float | None, *ends: Qemu) -> list[Finding]:
    round_trip = max(end.least_round_trip_seconds for end in ends)
    return ceiling_findings(policy, stream_speed, round_trip)
