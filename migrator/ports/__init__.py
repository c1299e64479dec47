"""The interfaces between the engine and what it drives, with their contracts.

The engine never sees QMP, a file or a socket. Whatever implements these converts units and wraps errors.
"""

from migrator.ports.qemu import (
    Event,
    GuestConfiguration,
    GuestProcess,
    MigrationSettings,
    OpenImages,
    Qemu,
    SourceQemu,
    Tuning,
)
from migrator.ports.site import Carriers, HostLook, IncomingDestination, Site
from migrator.ports.store import (
    Claim,
    CommandLog,
    EventTexts,
    Experience,
    Grant,
    HeldLease,
    Journal,
    Lease,
    Leases,
    Outcome,
    Record,
    Samples,
    Stray,
    lease_margin,
)

__all__ = [
    "Carriers",
    "Claim",
    "CommandLog",
    "Event",
    "EventTexts",
    "Experience",
    "Grant",
    "GuestConfiguration",
    "GuestProcess",
    "HeldLease",
    "HostLook",
    "IncomingDestination",
    "Journal",
    "Lease",
    "Leases",
    "MigrationSettings",
    "OpenImages",
    "Outcome",
    "Qemu",
    "Record",
    "Samples",
    "Site",
    "SourceQemu",
    "Stray",
    "Tuning",
    "lease_margin",
]
