"""Finds what speaks against one migration at hosts and QEMUs, and says what comes of it.

Only what a QEMU that waits at the target shows comes later, when there is one:
:func:`migrator.core.preflight.compare.compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from migrator.core.findings import PreflightRefused, applies_to_every_target, errors_first, finding
from migrator.core.migration.downtime_floor import tunnel_findings
from migrator.core.model import RUNNING_STATES, Finding, Severity
from migrator.core.policy import Compression, Policy, PostcopyMode, StreamRoute
from migrator.core.preflight.disk_room import CopiedDisk
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.engine.migration.ceiling import against_ceiling
from migrator.engine.migration.services import MigrationSite, MovedGuest
from migrator.errors import MigratorError
from migrator.ports import Qemu, StreamTunnel
from migrator.units import show_rate, show_seconds

if TYPE_CHECKING:
    from migrator.core.inventory import Guest  # which `migrator direct` does without

#: Code of the finding about what could not be looked at.
UNCHECKED = "not-checked"
#: Errors that may be gone when it is tried again, though nobody changed anything.
MAY_PASS = frozenset({UNCHECKED, "hook-not-run"})
#: Of the one that says that a port is taken: who accepts it has the guest listen at another.
SPARES_PORTS = "port-in-use"
_MOVED = "port-moved"


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """Return those that keep a migration from beginning."""
    return [each for each in findings if each.severity is Severity.ERROR]


def hopeless(findings: Sequence[Finding]) -> bool:
    """Return whether one of the errors would speak against every other target too."""
    return any(applies_to_every_target(each.code) for each in errors(findings))


def obstacle(guest: Guest) -> tuple[Finding, ...]:
    """Return why a guest cannot be moved at all, if so."""
    if not guest.obstacle:
        return ()
    return (finding(guest.obstacle_code or "not-movable", f"{guest.label}: {guest.obstacle}"),)


async def check(
    site: MigrationSite,
    guest: MovedGuest,
    source: Qemu,
    target: str,
    policy: Policy,
    *,
    stream_speed: float | None,
) -> tuple[Finding, ...]:
    """Return what both hosts and the source's QEMU show, errors first; what cannot be looked at is an error.

    Starts nothing and changes nothing.

    :param stream_speed: what the links let the stream carry, bytes per second; ``None``: not known.
    """
    try:
        found = await site.check(guest, source, target, policy)
    except PreflightRefused as error:
        found = tuple(error.findings)
    except MigratorError as error:
        return (unchecked(error),)
    found = tuple(_with_time(each, stream_speed) for each in found)
    if guest.run in RUNNING_STATES:
        found = (*found, *await against_ceiling(policy, stream_speed, source))
    return errors_first(found)


def _with_time(found: Finding, stream_speed: float | None) -> Finding:
    """Return the finding about a disk that is copied with the time that this takes."""
    if not isinstance(found, CopiedDisk) or not stream_speed:
        return found
    takes = show_seconds(found.copied_bytes / stream_speed)
    return replace(found, message=f"{found.message}, about {takes} at {show_rate(stream_speed)}")


async def choose_tls(site: MigrationSite, guest: MovedGuest, target: str, policy: Policy) -> TlsChoice:
    """Return whether the stream is encrypted, and what is to be said of it; what cannot be looked at is an error."""
    try:
        return await site.stream_tls(guest.host, target, policy)
    except MigratorError as error:
        return TlsChoice(findings=(unchecked(error),))


async def check_tunnel(tunnel: StreamTunnel, policy: Policy, stream_speed: float | None) -> Sequence[Finding]:
    """Return what speaks against the tunnel of a stream; what cannot be looked at is an error."""
    try:
        found = await tunnel.check()
        return [*found, *tunnel_findings(policy, stream_speed, shaped=await tunnel.can_be_shaped())]
    except MigratorError as error:
        return [unchecked(error)]


def tunnel_for(
    site: MigrationSite, guest: MovedGuest, source: Qemu, target: str, policy: Policy
) -> StreamTunnel | None:
    """Return the tunnel that the policy has a stream go through; ``None``: it goes from QEMU to QEMU."""
    if policy.stream is not StreamRoute.SSH:
        return None
    return site.stream_tunnel(guest.host, target, processes=(source.identity.get("pid"), None))


async def spare_cpus(site: MigrationSite, guest: MovedGuest, target: str, policy: Policy) -> float | None:
    """Return the CPUs without work at the host that has fewer, where that decides about the stream."""
    if policy.compress is not Compression.AUTO or policy.postcopy is not PostcopyMode.NEVER:
        return None
    try:
        return await site.spare_cpus(guest.host, target)
    except MigratorError:
        return None


async def look(
    site: MigrationSite, guest: Guest, target: str, policy: Policy, *, stream_speed: float | None
) -> tuple[Finding, ...]:
    """Return the same as :func:`check` for a guest that is not open yet, or only the obstacle that it has itself."""
    if found := obstacle(guest):
        return found  # nobody asks a monitor that somebody else holds
    try:
        source = await site.open(guest.host, guest.socket, role="source")
    except MigratorError as error:
        return (unchecked(error),)
    try:
        found = await check(site, guest, source, target, policy, stream_speed=stream_speed)
        chosen = await choose_tls(site, guest, target, policy)
        tunnel = tunnel_for(site, guest, source, target, policy)
        tunnelled = await check_tunnel(tunnel, policy, stream_speed) if tunnel is not None else ()
        return errors_first((*found, *chosen.findings, *tunnelled))
    finally:
        await source.close()


def started(before: Sequence[Finding], notes: Sequence[Finding]) -> list[Finding]:
    """Return what is to be said now that a QEMU waits: of what was looked at anew, only what it came to.

    :param notes: of the start.
    """
    anew = {each.code for each in notes} | (
        {SPARES_PORTS} if any(each.code == _MOVED for each in notes) else set()
    )
    return [*(each for each in before if each.code not in anew), *notes]


def unchecked(error: MigratorError) -> Finding:
    """Return the finding about an end that cannot be looked at: a migration would fail of the same."""
    return finding(UNCHECKED, str(error).replace("\n", " "))


def in_one_line(findings: Sequence[Finding]) -> str:
    """Return the first error, and how many more there are."""
    found = errors(findings)
    if {each.code for each in found} == {UNCHECKED}:
        return found[0].message
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"refused by preflight: {found[0].code}: {found[0].message}{more}"
