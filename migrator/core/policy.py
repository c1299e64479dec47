"""Policies: what may be done to a guest to move it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from enum import StrEnum
from typing import Any

from migrator.errors import UsageError


class PostcopyMode(StrEnum):
    """Permission for the guest to run at the destination before all its memory is there."""

    #: Precopy only: a failure of the source's host or of the network never costs the guest.
    NEVER = "never"
    #: When precopy will not end within the policy.
    ALLOW = "allow"
    #: As soon as the stream stands.
    IMMEDIATE = "immediate"


class LastResort(StrEnum):
    """Action when nothing else allowed ends the migration."""

    #: Give up; the guest stays at the source, unharmed.
    ABORT = "abort"
    #: Stop the guest until its memory has arrived; its downtime is then beyond the ceiling.
    PAUSE = "pause"


class BlockJobs(StrEnum):
    """Treatment of block jobs and exports of the guest's disks, which do not survive a move."""

    #: Wait until they have ended, before anything is changed.
    WAIT = "wait"
    #: Do not begin.
    REFUSE = "refuse"


class CopiedDisks(StrEnum):
    """Choice of the guest's disks that are copied to the target."""

    #: Those that both ends do not see as the same file.
    AUTO = "auto"
    #: Every disk that the guest may write to.
    ALL = "all"
    #: None: a guest with a disk that is not shared is refused.
    NONE = "none"


class Backing(StrEnum):
    """Treatment of the images that a copied disk's image is based on."""

    #: The image at the target has all contents, and no base.
    FLATTEN = "flatten"
    #: It has the same base, which both hosts share, and what the disk's own image has besides.
    KEEP = "keep"


class SourceImages(StrEnum):
    """Treatment of the images at the source whose contents were copied to the target."""

    #: They stay at the source's host, under another name.
    KEEP = "keep"
    #: They are removed once the guest was seen running at the target.
    REMOVE = "remove"


class Start(StrEnum):
    """Moment at which a migration begins that nothing else keeps waiting."""

    NOW = "now"
    #: In a moment or an hour in which the guest writes little, before the last safe start; see
    #: :mod:`migrator.core.migration.quiet_start`.
    QUIET = "quiet"


class TlsUse(StrEnum):
    """Encryption of everything that goes from one host to the other: memory, device state, mirrored disks."""

    #: Do not begin without it.
    REQUIRE = "require"
    #: Where both hosts have certificates for it; plainly where one has none.
    PREFER = "prefer"
    #: Never.
    OFF = "off"


class StreamRoute(StrEnum):
    """Way of the stream between the hosts."""

    #: From QEMU to QEMU.
    DIRECT = "direct"
    #: Through an SSH tunnel between both hosts, made by the controller.
    SSH = "ssh"


class Compression(StrEnum):
    """Compression of memory in the stream."""

    #: Where it certainly pays: a narrow link, and CPUs with nothing to do.
    AUTO = "auto"
    NEVER = "never"
    #: Always, where both QEMUs can.
    ZSTD = "zstd"
    #: Only what changed of a page that is sent again, where the source's QEMU can.
    XBZRLE = "xbzrle"


#: More channels than this carry no more.
MOST_STREAMS = 16


class Preference(StrEnum):
    """Choice between two ways to end that both keep the downtime ceiling."""

    #: The shorter downtime, while it is worth the copying that it costs; see :mod:`migrator.core.migration.objective`.
    DOWNTIME = "downtime"
    #: The sooner end.
    TIME = "time"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits on what may be done to a guest to move it; see :func:`builtin` for the policies that exist."""

    name: str
    #: Ceiling of the time the guest stands still, in seconds. 300 ms is QEMU's and libvirt's default limit.
    max_downtime_seconds: float
    #: Ceiling of the stream in bytes per second; ``None`` is ``auto``: what the link's share allows.
    max_bandwidth_bytes_per_second: int | None = None
    #: Ceiling of the share of CPU time taken from the guest so that it dirties less; 0 is never.
    max_throttle_ratio: float = 0.0
    postcopy: PostcopyMode = PostcopyMode.NEVER
    #: Ceiling of the whole migration in seconds; ``None`` is none but the forecast's.
    max_duration_seconds: float | None = None
    last_resort: LastResort = LastResort.ABORT
    #: Stop the guest first, then copy: no convergence needed, the downtime is the duration.
    offline: bool = False
    #: In an evacuation: a guest that cannot leave otherwise is saved into a file, and runs nowhere until it is loaded.
    saves: bool = False
    #: A guest that cannot move live is shut down and started anew at the target: what is in its memory is lost.
    cold: bool = False
    #: A guest that is shut down for that has so long; one that takes longer stays, and is never ended by force unasked.
    max_shutdown_seconds: float = 120.0
    block_jobs: BlockJobs = BlockJobs.WAIT
    prefer: Preference = Preference.DOWNTIME
    start: Start = Start.NOW
    #: Ceiling of the time that the guest waits for pages in postcopy, in seconds: one that is exceeded is told, as one
    #: that is forecast is.
    max_postcopy_stall_seconds: float = 2.0
    disks: CopiedDisks = CopiedDisks.AUTO
    source_images: SourceImages = SourceImages.KEEP
    backing: Backing = Backing.FLATTEN
    #: ``None``: what the site says, and ``prefer`` where it says nothing.
    tls: TlsUse | None = None
    stream: StreamRoute = StreamRoute.DIRECT
    #: Channels that memory goes through; ``None`` is ``auto``: as many as links and CPUs make worth while.
    streams: int | None = None
    compress: Compression = Compression.AUTO

    def __post_init__(self) -> None:
        if not 0 < self.max_downtime_seconds <= 2000:  # QEMU's own maximum for downtime-limit
            raise UsageError(
                f"policy {self.name}: max_downtime is {self.max_downtime_seconds:g} s; "
                "QEMU takes more than 0 and at most 2000 s"
            )
        if self.max_bandwidth_bytes_per_second is not None and self.max_bandwidth_bytes_per_second < 2**20:
            raise UsageError(
                f"policy {self.name}: max_bandwidth is {self.max_bandwidth_bytes_per_second} B/s; "
                "give at least 1MiB/s, or auto"
            )
        if not 0 <= self.max_throttle_ratio <= 0.99:  # QEMU's own maximum for max-cpu-throttle
            raise UsageError(f"policy {self.name}: max_throttle must lie between 0 and 99%")
        if self.max_duration_seconds is not None and self.max_duration_seconds <= 0:
            raise UsageError(f"policy {self.name}: max_duration must be more than 0")
        if self.max_postcopy_stall_seconds <= 0:
            raise UsageError(f"policy {self.name}: max_postcopy_stall must be more than 0")
        if self.max_shutdown_seconds <= 0:
            raise UsageError(f"policy {self.name}: max_shutdown must be more than 0")
        if self.streams is not None and not 1 <= self.streams <= MOST_STREAMS:
            raise UsageError(
                f"policy {self.name}: streams is {self.streams}; give 1 to {MOST_STREAMS}, or auto"
            )
        if self.stream is StreamRoute.SSH and self.tls is TlsUse.REQUIRE:
            raise UsageError(
                f"policy {self.name}: stream=ssh and tls=require contradict each other: the tunnel encrypts by itself; "
                "set tls=off, or stream=direct"
            )
        if self.offline and self.postcopy is not PostcopyMode.NEVER:
            raise UsageError(
                f"policy {self.name}: offline and postcopy={self.postcopy} contradict each other: "
                "a guest that is stopped first has nothing to run at the destination early; set postcopy=never"
            )
        if self.offline and self.start is Start.QUIET:
            raise UsageError(
                f"policy {self.name}: offline and start=quiet contradict each other: a guest that is stopped first "
                "writes nothing; set start=now"
            )
        if self.postcopy is PostcopyMode.IMMEDIATE and self.max_throttle_ratio > 0:
            raise UsageError(
                f"policy {self.name}: postcopy=immediate and max_throttle={self.max_throttle_ratio:.0%} contradict "
                "each other: no round is waited for that throttling could shorten; set max_throttle=0"
            )

    @property
    def tls_use(self) -> TlsUse:
        """Return what is to be done about encryption, the default put in."""
        default = TlsUse.OFF if self.stream is StreamRoute.SSH else TlsUse.PREFER
        return self.tls or default

    def after(self, waited_seconds: float) -> Policy:
        """Return this policy with so much less time, at least a second."""
        limit = self.max_duration_seconds
        if limit is None or not waited_seconds:
            return self
        return replace(self, max_duration_seconds=max(1.0, limit - waited_seconds))

    def but(
        self,
        *,
        max_downtime_seconds: float | None = None,
        max_bandwidth_bytes_per_second: int | None = None,
        max_throttle_ratio: float | None = None,
        postcopy: PostcopyMode | None = None,
        max_duration_seconds: float | None = None,
        last_resort: LastResort | None = None,
        block_jobs: BlockJobs | None = None,
        prefer: Preference | None = None,
        start: Start | None = None,
        max_postcopy_stall_seconds: float | None = None,
        disks: CopiedDisks | None = None,
        source_images: SourceImages | None = None,
        backing: Backing | None = None,
        tls: TlsUse | None = None,
        stream: StreamRoute | None = None,
        streams: int | None = None,
        compress: Compression | None = None,
    ) -> Policy:
        """Return this policy with the given fields instead; a field that is ``None`` stays.

        ``postcopy=immediate`` waits for no round, so it drops a throttle that only this policy brought along.

        :raise UsageError: when the result contradicts itself; both fields are named.
        """
        given = {key: value for key, value in locals().items() if key != "self" and value is not None}
        if postcopy is PostcopyMode.IMMEDIATE:
            given.setdefault("max_throttle_ratio", 0.0)
        return replace(self, **given)


#: Every version wants these.
_ALWAYS_WRITTEN = frozenset({"name", "postcopy", "last_resort"})


def to_fields(policy: Policy) -> dict[str, Any]:
    """Return the policy for :func:`from_fields`, without what is as by default.

    So a version that does not know a field yet can read every policy that does not use it.
    """
    defaults = {each.name: each.default for each in dataclass_fields(Policy)}
    return {
        name: value
        for name, value in asdict(policy).items()
        if name in _ALWAYS_WRITTEN or value != defaults[name]
    }


def from_fields(fields: Mapping[str, Any]) -> Policy:
    """Return the policy whose fields went through JSON.

    :raise TypeError: it has a field that this version does not know: what it allows is not known either.
    :raise UsageError: when it contradicts itself.
    """
    enums = {
        "postcopy": PostcopyMode(fields["postcopy"]),
        "last_resort": LastResort(fields["last_resort"]),
        "block_jobs": BlockJobs(fields.get("block_jobs", BlockJobs.WAIT)),
        "prefer": Preference(fields.get("prefer", Preference.DOWNTIME)),
        "start": Start(fields.get("start", Start.NOW)),
        "disks": CopiedDisks(fields.get("disks", CopiedDisks.AUTO)),
        "source_images": SourceImages(fields.get("source_images", SourceImages.KEEP)),
        "backing": Backing(fields.get("backing", Backing.FLATTEN)),
        "tls": TlsUse(fields["tls"]) if fields.get("tls") else None,
        "stream": StreamRoute(fields.get("stream", StreamRoute.DIRECT)),
        "compress": Compression(fields.get("compress", Compression.AUTO)),
    }
    return Policy(**{**fields, **enums})


_BUILTIN = (
    Policy(name="default", max_downtime_seconds=0.3, max_throttle_ratio=0.5, postcopy=PostcopyMode.ALLOW),
    Policy(name="gentle", max_downtime_seconds=0.1),
    Policy(
        name="must-finish",
        max_downtime_seconds=2.0,
        max_throttle_ratio=0.9,
        postcopy=PostcopyMode.ALLOW,
        last_resort=LastResort.PAUSE,
    ),
    Policy(name="postcopy-first", max_downtime_seconds=0.3, postcopy=PostcopyMode.IMMEDIATE),
    Policy(
        name="save",
        max_downtime_seconds=0.3,
        max_throttle_ratio=0.5,
        postcopy=PostcopyMode.ALLOW,
        saves=True,
    ),
    Policy(
        name="cold",
        max_downtime_seconds=0.3,
        max_throttle_ratio=0.5,
        postcopy=PostcopyMode.ALLOW,
        cold=True,
    ),
    Policy(name="offline", max_downtime_seconds=0.3, offline=True, last_resort=LastResort.PAUSE),
)


def builtin(name: str) -> Policy:
    """Return the built-in policy of that name.

    :raise UsageError: when there is none; the message lists those that exist.
    """
    for policy in _BUILTIN:
        if policy.name == name:
            return policy
    raise UsageError(f"there is no policy {name!r}; there are {', '.join(p.name for p in _BUILTIN)}")
