"""What speaks against moving a guest to a host: one question, asked the same way before the act and in it.

``check``, ``plan``, ``migrate`` and the planner of an evacuation all go through here, so that none of them knows of an
obstacle that another has not heard of. Two parts make the answer: what the inventory tells (:func:`known`), and what
both ends show when they are asked (:func:`seen`). Only what a QEMU that waits at the target shows comes later, when
there is one: :func:`migrator.core.preflight.compare.compare`.
"""

from __future__ import annotations

from collections.abc import Sequence

from migrator.core.findings import PreflightRefused, applies_to_every_target, errors_first, finding
from migrator.core.inventory import Guest
from migrator.core.model import Finding, Severity
from migrator.core.placement import NoHost
from migrator.core.placement.fleet import Fleet, PlacementRequest, check
from migrator.core.policy import Policy
from migrator.engine.migration.services import SessionServices
from migrator.errors import MigratorError
from migrator.ports import SourceQemu

#: Code of the finding about what could not be looked at.
UNCHECKED = "not-checked"
#: Of the one that says that a port is taken: who accepts it has the guest listen at another.
SPARES_PORTS = "port-in-use"
_MOVED = "port-moved"


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """Those of them that keep a migration from beginning."""
    return [each for each in findings if each.severity is Severity.ERROR]


def hopeless(findings: Sequence[Finding]) -> bool:
    """Whether one of the errors would speak against every other target too."""
    return any(applies_to_every_target(each.code) for each in errors(findings))


def obstacle(guest: Guest) -> tuple[Finding, ...]:
    """Why it cannot be moved at all, if so."""
    if not guest.obstacle:
        return ()
    return (finding(guest.obstacle_code or "not-movable", f"{guest.label}: {guest.obstacle}"),)


def request(guest: Guest, accepted: Sequence[str], *, only: str = "") -> PlacementRequest:
    """What placement is asked for a guest by itself."""
    return PlacementRequest(guest=guest, only=only, spare_ports=SPARES_PORTS in (*accepted, *guest.accept))


def known(fleet: Fleet, request: PlacementRequest, host: str) -> tuple[Finding, ...]:
    """What the inventory has against that host for this guest: an obstacle of its own, and the rules of placement.

    :raise KeyError: when there is no such host.
    """
    against = [each for each in check(fleet, request, host) if not each.fits]
    return (
        *obstacle(request.guest),
        *(finding("placement", f"{each.constraint}: {each.text}") for each in against),
    )


def nowhere(answer: NoHost) -> tuple[Finding, ...]:
    """What keeps a guest from every host."""
    return (finding("placement", answer.reason),)


async def seen(
    means: SessionServices, guest: Guest, source: SourceQemu, target: str, policy: Policy
) -> tuple[Finding, ...]:
    """What both hosts and the source's QEMU show, errors first; what cannot be looked at is an error.

    Starts nothing and changes nothing.
    """
    try:
        return errors_first(await means.site.check(guest, source, target, policy))
    except PreflightRefused as error:
        return errors_first(error.findings)
    except MigratorError as error:
        return (unchecked(error),)


async def look(means: SessionServices, guest: Guest, target: str, policy: Policy) -> tuple[Finding, ...]:
    """As :func:`seen`, for a guest that is not open yet; an obstacle of its own is all there is to say then."""
    if found := obstacle(guest):
        return found  # nobody asks a monitor that somebody else holds
    try:
        source = await means.site.open(guest.host, guest.socket, role="source")
    except MigratorError as error:
        return (unchecked(error),)
    try:
        return await seen(means, guest, source, target, policy)
    finally:
        await source.close()


def started(before: Sequence[Finding], notes: Sequence[Finding]) -> list[Finding]:
    """What is to be said now that a QEMU waits: of what was looked at anew, only what it came to.

    :param notes: of the start.
    """
    anew = {each.code for each in notes} | (
        {SPARES_PORTS} if any(each.code == _MOVED for each in notes) else set()
    )
    return [*(each for each in before if each.code not in anew), *notes]


def unchecked(error: MigratorError) -> Finding:
    """An end that cannot be looked at: a migration would fail of the same."""
    return finding("not-checked", str(error).replace("\n", " "))


def in_one_line(findings: Sequence[Finding]) -> str:
    """The first error, and how many more there are."""
    found = errors(findings)
    if {each.code for each in found} == {UNCHECKED}:
        return found[0].message
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"refused by preflight: {found[0].code}: {found[0].message}{more}"
