"""Values that a migration shows while it runs and when it has ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from migrator.core.migration.forecast import Forecast
from migrator.core.migration.guest_impact import above_ceiling, standstill_at_least
from migrator.core.model import Decision, Finding, Mode, Sample, Severity, State
from migrator.core.process.guest_network import NetworkState

#: Figures that the end of a migration teaches of its guest, as its driver tells them to whoever plans.
LEARNED = (
    "duration_seconds",
    "working_set_bytes",
    "write_rate_bytes_per_second",
    "first_pass_ratio",
    "watched_seconds",
    "habit_changes",
    "pair",
    "overhead_seconds",
)
#: Those of them that are for later migrations alone, and not for whoever asked for this one.
_INTERNAL = frozenset(LEARNED) - {"duration_seconds"}


@dataclass(frozen=True, kw_only=True)
class MigrationProgress:
    """The progress of a migration, for a person who watches it."""

    state: State
    #: Never falls; 1 only once the guest has arrived.
    progress_ratio: float
    sample: Sample | None = None
    #: ``None`` while nothing is known, and once there is nothing left to predict.
    forecast: Forecast | None = None
    #: The downtime limit that QEMU has now.
    limit_seconds: float | None = None
    #: With a group: it could be stopped in so many seconds, and waits for the others; ``None`` where it does not.
    switch_in_seconds: float | None = None
    #: Since the first command that changed anything, as decisions have it.
    at_seconds: float = 0.0
    #: With ``mirroring``: what is copied of the guest's disks in all, and what is left of it.
    disk_total_bytes: int = 0
    disk_remaining_bytes: int = 0
    #: What of that is expected to be sent: holes are not.
    disk_left_bytes: float = 0.0
    #: With ``recovering``: what keeps the stream from going on, and when it is tried again.
    waiting_for: str = ""


@dataclass(kw_only=True)
class MigrationOutcome:
    """The outcome of a migration; see :meth:`document` for the fields of ``direct --json``."""

    id: str
    state: State
    mode: Mode = Mode.PRECOPY
    #: Ends before the first command that changes anything.
    preflight_seconds: float = 0.0
    #: From the first command that changes anything until the guest is seen running at the destination (in postcopy it
    #: fetches memory for longer), or is back at the source; ``None`` when it was not begun.
    duration_seconds: float | None = None
    #: From STOP to RESUME, wherever that was; ``None`` when the guest never stood still, or never ran.
    downtime_seconds: float | None = None
    downtime_uncertainty_seconds: float | None = None
    #: All the time that the guest stood still for the migration, whether somebody watched or not, give or take so much;
    #: of one that is held until then. ``None`` as above.
    standstill_seconds: float | None = None
    standstill_uncertainty_seconds: float | None = None
    #: The policy's ceiling; the limits that QEMU was given stay below it and are among the decisions.
    max_downtime_seconds: float = 0.0
    transferred_bytes: int = 0
    #: Copied of disks that both ends do not share.
    disk_bytes: int = 0
    #: Written by QEMU and not yet at the destination when the guest was stopped: it drains inside the downtime.
    #: ``None`` where that was not measured.
    queued_at_stop_bytes: int | None = None
    #: With mode postcopy: for how long the whole guest, and each of its vCPUs, waited for pages after it had begun to
    #: run at the destination; ``None`` where that was not measured.
    postcopy_stall_seconds: float | None = None
    postcopy_vcpu_stall_seconds: tuple[float, ...] = ()
    #: What was forecast when postcopy was begun, and the policy's ceiling.
    postcopy_stall_forecast_seconds: float | None = None
    max_postcopy_stall_seconds: float = 0.0
    rounds: int = 0
    #: The most CPU time that was taken from the guest.
    max_throttle_ratio: float = 0.0
    #: How often the stream of a postcopy broke and went on again.
    recoveries: int = 0
    #: What goes between the hosts is encrypted.
    tls: bool = False
    #: Channels that memory goes through, and how it is compressed there (``none``, ``zstd``, ``xbzrle``).
    streams: int = 1
    compression: str = "none"
    #: What the guest rewrote at the most, and how fast it wrote, unthrottled, as its rounds told; in precopy.
    working_set_bytes: float = 0.0
    write_rate_bytes_per_second: float | None = None
    #: The share of all memory that went over the stream in the first pass; ``None`` where nobody saw it.
    first_pass_ratio: float | None = None
    #: For so long it was watched, and so often it changed its habit meanwhile.
    watched_seconds: float = 0.0
    habit_changes: int = 0
    #: The part of its downtime that was not memory over the network, and the versions of both QEMUs.
    pair: str = ""
    overhead_seconds: float | None = None
    #: How far the time forecast at the end of the first round was off; ``None`` without a forecast or in postcopy.
    forecast_error_ratio: float | None = None
    #: With ``completed``: whether what carries the guest's network cards is up at the destination, and what is not.
    network_state: NetworkState = NetworkState.UNKNOWN
    network_problem: str = ""
    findings: list[Finding] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    #: Why it did not complete, in one line; ``None`` when it did.
    error: str | None = None
    #: With ``held``: the row of the lifecycle table, or the safety invariant, that says so.
    held_code: str | None = None
    #: ... and what it waits for.
    held_until: str | None = None

    @property
    def ceiling_exceeded(self) -> bool:
        """True where the guest certainly stood still for longer than its policy allows."""
        least = standstill_at_least(
            downtime=self.downtime_seconds,
            standstill=self.standstill_seconds,
            uncertainty=self.standstill_uncertainty_seconds,
        )
        return above_ceiling(least, self.max_downtime_seconds, self.mode)

    def document(self) -> dict[str, Any]:
        """Return what is shown of it: all but the figures that are for later migrations alone."""
        return {name: value for name, value in asdict(self).items() if name not in _INTERNAL}

    def warn(self, code: str, message: str, remedy: str) -> None:
        """Add a finding made on the way; one of each code is enough."""
        if all(finding.code != code for finding in self.findings):
            finding = Finding(code=code, severity=Severity.WARNING, message=message, remedy=remedy)
            self.findings.append(finding)
