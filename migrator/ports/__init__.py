"""The interfaces between the engine and what it drives, with their contracts.

The engine never sees QMP, a file or a socket. Whatever implements these converts units and wraps errors.
"""

from migrator.ports.qemu import (
    GuestConfiguration,
    GuestProcess,
    MigrationSettings,
    OpenImages,
    Qemu,
    QemuEvent,
    SourceQemu,
    Tuning,
)
from migrator.ports.site import GuestNetworks, HostLook, IncomingDestination, Site
from migrator.ports.store import (
    Claim,
    CommandLog,
    EndedRecord,
    Experience,
    Grant,
    HeldLease,
    Journal,
    Lease,
    Leases,
    Record,
    Samples,
    Signal,
    Signals,
    StrayRecord,
    lease_margin,
)

__all__ = [
    "Claim",
    "CommandLog",
    "EndedRecord",
    "Experience",
    "Grant",
    "GuestConfiguration",
    "GuestNetworks",
    "GuestProcess",
    "HeldLease",
    "HostLook",
    "IncomingDestination",
    "Journal",
    "Lease",
    "Leases",
    "MigrationSettings",
    "OpenImages",
    "Qemu",
    "QemuEvent",
    "Record",
    "Samples",
    "Signal",
    "Signals",
    "Site",
    "SourceQemu",
    "StrayRecord",
    "Tuning",
    "lease_margin",
]
