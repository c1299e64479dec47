"""Obstacles that the inventory knows to moving a guest to a host: found in one way, before the act and in it.

``check``, ``plan``, ``migrate`` and the planner of an evacuation all go through here, so that none of them knows of an
obstacle that another has not heard of. What both ends show when they are asked is
:mod:`migrator.engine.migration.preflight`.
"""

from __future__ import annotations

from collections.abc import Sequence

from migrator.core.findings import finding
from migrator.core.inventory import Guest
from migrator.core.model import Finding
from migrator.core.placement import NoHost
from migrator.core.placement.fleet import Fleet, PlacementRequest, check
from migrator.engine.migration.preflight import SPARES_PORTS, obstacle


def request(guest: Guest, accepted: Sequence[str], *, only: str = "") -> PlacementRequest:
    """Return the request that asks placement for a guest by itself."""
    return PlacementRequest(guest=guest, only=only, spare_ports=SPARES_PORTS in (*accepted, *guest.accept))


def known(fleet: Fleet, request: PlacementRequest, host: str) -> tuple[Finding, ...]:
    """Return the findings against that host for this guest: an obstacle of its own, and the rules of placement.

    :raise KeyError: when there is no such host.
    """
    against = [each for each in check(fleet, request, host) if not each.fits]
    return (
        *obstacle(request.guest),
        *(finding("placement", f"{each.constraint}: {each.text}") for each in against),
    )


def nowhere(answer: NoHost) -> tuple[Finding, ...]:
    """Return the findings that keep a guest from every host."""
    return (finding("placement", answer.reason),)
