"""The interfaces between the engine and what it drives, with their contracts.

The engine never sees QMP, a file or a socket. Whatever implements these converts units and wraps errors.

- Ends: `qemu` is one QEMU, `managed` a migration that libvirt carries out, `unmonitored_end` an end without a monitor,
  `disk_mirrors` the disks that are copied, `source_guard` who acts while the controller is away.
- Streams: `stream_path` is the network, `stream_tunnel` a tunnel.
- Hosts: `site`, and on it `cold_starts`, `saved` guests, `hooks`.
- The rest: `store` has records, journal and leases (`unreadable`: one bad row); `commands` and `queries` are what
  entrances ask, `journal_queries` answers the latter, `event_queue` has the events for one who
  listens.

What only a service has is not loaded with the rest: ``assignments``, ``computing`` and ``controllers``.
"""

from migrator.ports.cold_starts import ColdArrival, ColdSourceEnd, ColdStarts
from migrator.ports.disk_mirrors import DiskMirroring
from migrator.ports.hooks import Hooks
from migrator.ports.qemu import (
    GuestConfiguration,
    GuestProcess,
    MigrationSettings,
    OpenImages,
    Qemu,
    QemuEvent,
    SourceQemu,
    StreamOptions,
    StreamSockets,
    Tuning,
)
from migrator.ports.saved import SavedGuests
from migrator.ports.site import GuestNetworks, HostLook, IncomingDestination, Site
from migrator.ports.source_guard import SourceGuard, Unguarded
from migrator.ports.store import (
    LONGEST_LEASE_SECONDS,
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
from migrator.ports.stream_path import PathHealth, StreamPath, UnprobedPath
from migrator.ports.stream_tunnel import StreamTunnel

__all__ = [
    "LONGEST_LEASE_SECONDS",
    "Claim",
    "ColdArrival",
    "ColdSourceEnd",
    "ColdStarts",
    "CommandLog",
    "DiskMirroring",
    "EndedRecord",
    "Experience",
    "Grant",
    "GuestConfiguration",
    "GuestNetworks",
    "GuestProcess",
    "HeldLease",
    "Hooks",
    "HostLook",
    "IncomingDestination",
    "Journal",
    "Lease",
    "Leases",
    "MigrationSettings",
    "OpenImages",
    "PathHealth",
    "Qemu",
    "QemuEvent",
    "Record",
    "Samples",
    "SavedGuests",
    "Signal",
    "Signals",
    "Site",
    "SourceGuard",
    "SourceQemu",
    "StrayRecord",
    "StreamOptions",
    "StreamPath",
    "StreamSockets",
    "StreamTunnel",
    "Tuning",
    "Unguarded",
    "UnprobedPath",
    "lease_margin",
]
