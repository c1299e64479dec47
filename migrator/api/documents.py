"""Documents of migrations and commands, and the base of all that describe the service.

One model for each thing, the same over HTTP, MQTT and on the command line.

Units are those of the whole project: bytes, bytes per second, seconds, ratios of 0 to 1. Times are RFC 3339 in UTC.
Version 1 only gains fields.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from migrator.core.migration.guest_impact import above_ceiling, standstill_at_least
from migrator.core.model import Mode, Severity, State
from migrator.core.process.guest_network import NetworkState
from migrator.text import storable


class Document(BaseModel):
    """Frozen; what is not known is ``null``."""

    model_config = ConfigDict(frozen=True, ser_json_timedelta="float")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, given: Any) -> Any:
        """Whatever came from a guest or a host, it can be written as JSON by everyone."""
        if isinstance(given, dict):  # its keys are names of fields, or ignored
            return {
                name: value if value is None or isinstance(value, bool) else storable(value, 1)
                for name, value in given.items()
            }
        return storable(given)


class FindingDocument(Document):
    """One thing preflight has to say."""

    code: str
    severity: Severity
    message: str
    remedy: str


class DecisionDocument(Document):
    """One action of the controller, and why."""

    at_seconds: float
    action: str
    reason: str
    numbers: dict[str, float | int | str] = Field(default_factory=dict)


class ForecastDocument(Document):
    """Predicted time left, with its interval."""

    p10_seconds: float | None = None
    p50_seconds: float | None = None
    p90_seconds: float | None = None
    downtime_p50_seconds: float | None = None
    downtime_p90_seconds: float | None = None
    #: ``converges``, ``converges-if`` (and which rung), ``cannot``, or ``unknown`` (and what would tell more).
    verdict: str = ""
    rung: str = ""
    waiting_for: str = ""


class SourceImagesDocument(Document):
    """The images that a guest has left at its source, where its policy has them removed."""

    #: ``pending``, ``compared``, ``removing``, ``removed``, ``kept``.
    state: str
    paths: list[str]
    #: Not before, and only once its disks were compared and the guest is seen running.
    remove_after: datetime
    #: With ``kept``: why they are; before: what is waited for.
    reason: str = ""


class MigrationDocument(Document):
    """One migration: now, and when it has ended."""

    id: str
    #: The guest's key: its uuid where it has one.
    guest: str
    guest_name: str = ""
    source: str
    destination: str
    #: Paths of both QEMUs' QMP sockets on their hosts, as far as they are known.
    source_socket: str = ""
    destination_socket: str = ""
    #: The file that the guest is saved into, or loaded from; empty where it moves from host to host.
    file: str = ""
    file_use: Literal["", "save", "load"] = ""
    #: The group whose guests are switched together; empty: it is switched as soon as it can be.
    moved_with: str = ""
    #: With a group: it could be stopped in so many seconds, and runs on until the others can be too; ``null``: it could
    #: not, or is past that.
    switch_in_seconds: float | None = None
    policy: str
    #: Instance of the controller that drives it, or drove it last; empty while nobody does.
    controller: str = ""
    state: State
    #: With ``failed``: preflight refused it, and nothing was changed; see ``findings``.
    refused: bool = False
    #: With ``waiting``: what has to end first; with ``preparing``: what it waits for, where that takes longer than a
    #: second; with ``precopy``: the card that the guest has to let go of first, or the others of its group; with
    #: ``recovering``: what keeps the stream from going on.
    waiting_for: str = ""
    #: Whether it may be cancelled, or told to go to postcopy, as of now.
    can_cancel: bool = False
    can_postcopy: bool = False
    mode: Mode = Mode.PRECOPY
    #: The evacuation it belongs to.
    evacuation: str | None = None
    requested_by: str = ""
    #: The W3C trace context that came with the command, or with that of its evacuation.
    traceparent: str | None = None
    tracestate: str | None = None
    created_at: datetime
    #: When the first thing was changed.
    started_at: datetime | None = None
    ended_at: datetime | None = None
    #: Never falls; 1 only once the guest has arrived.
    progress_ratio: float = 0.0
    remaining_bytes: int | None = None
    total_bytes: int | None = None
    transferred_bytes: int = 0
    dirty_rate_bytes_per_second: float | None = None
    bandwidth_bytes_per_second: float | None = None
    throttle_ratio: float = 0.0
    round: int = 0
    forecast: ForecastDocument | None = None
    #: By our forecast, not QEMU's own guess, which may be off by fifty times.
    expected_downtime_seconds: float | None = None
    #: What was asked, what QEMU was given, what was measured: always shown together.
    max_downtime_seconds: float = 0.0
    downtime_limit_seconds: float | None = None
    downtime_seconds: float | None = None
    downtime_uncertainty_seconds: float | None = None
    #: All the time that the guest stood still for the migration, whether somebody watched or not, give or take so much.
    standstill_seconds: float | None = None
    standstill_uncertainty_seconds: float | None = None
    #: Bytes that were on their way when the guest was stopped, and drained inside its downtime; ``None``: not measured.
    queued_at_stop_bytes: int | None = None
    #: With mode postcopy: for how long the whole guest, and each of its vCPUs, waited for pages at its destination;
    #: ``None`` where that was not measured.
    postcopy_stall_seconds: float | None = None
    postcopy_vcpu_stall_seconds: list[float] = Field(default_factory=list)
    #: What was forecast of it when postcopy was begun, and the policy's ceiling.
    postcopy_stall_forecast_seconds: float | None = None
    max_postcopy_stall_seconds: float = 0.0
    #: Copied of disks that both ends do not share; and while they are copied, what is left of them.
    disk_bytes: int = 0
    disk_remaining_bytes: int | None = None
    #: With ``source_images = "remove"``, once the guest has arrived: what becomes of the images at its source.
    source_images: SourceImagesDocument | None = None
    #: What it took until both ends were set up and it could wait for its turn.
    preparation_seconds: float | None = None
    preflight_seconds: float | None = None
    duration_seconds: float | None = None
    max_throttle_ratio: float = 0.0
    #: How often the stream of a postcopy broke and went on again.
    recoveries: int = 0
    #: What goes between the hosts is encrypted.
    tls: bool = False
    #: Channels that memory goes through, and how it is compressed there (``none``, ``zstd``, ``xbzrle``).
    streams: int = 1
    compression: str = "none"
    forecast_error_ratio: float | None = None
    #: With ``completed``: whether what carries the guest's network cards is up at its destination (``up``, ``down``,
    #: ``unlearned``: up, but a bridge does not know all of its addresses there, ``none``: it has no tap, ``unknown``),
    #: and what is not as it was at the source, in one line.
    network_state: NetworkState = NetworkState.UNKNOWN
    network_problem: str = ""
    findings: list[FindingDocument] = Field(default_factory=list)
    #: Findings that were accepted by code.
    accepted: list[str] = Field(default_factory=list)
    decisions: list[DecisionDocument] = Field(default_factory=list)
    #: Why it did not complete, in one line.
    error: str | None = None
    #: With ``held``: the row of the lifecycle table, and what a person shall check.
    held_code: str | None = None
    #: ... and what it waits for, in a few words.
    held_until: str | None = None

    @computed_field  # type: ignore[prop-decorator] # as pydantic documents it
    @property
    def ceiling_exceeded(self) -> bool:
        """The guest certainly stood still for longer than its policy allows."""
        least = standstill_at_least(
            downtime=self.downtime_seconds,
            standstill=self.standstill_seconds,
            uncertainty=self.standstill_uncertainty_seconds,
        )
        return above_ceiling(least, self.max_downtime_seconds, self.mode)


class ResolutionDocument(Document):
    """The consequences of a person's answer on a held migration; nothing was done."""

    migration: str
    guest_at: str
    accepted: bool
    #: Of this course of action; given back as ``agreed``, it is done only if it still is the same.
    code: str
    #: A QEMU is killed for it.
    ends_process: bool = False
    #: What will be done, in this order, and how it ends.
    will: list[str] = Field(default_factory=list)
    #: Why it is refused, and what to do instead; empty where it is not.
    refused: str = ""
    #: What would be accepted instead.
    instead: list[str] = Field(default_factory=list)


class SampleDocument(Document):
    """The figures of one migration at one moment."""

    #: Since the first command that changed anything, as a decision's.
    at_seconds: float
    state: State
    #: Passes over dirty memory so far; 1 is the first, whole copy.
    round: int = 0
    total_bytes: int = 0
    remaining_bytes: int = 0
    transferred_bytes: int = 0
    dirty_rate_bytes_per_second: float = 0.0
    bandwidth_bytes_per_second: float = 0.0
    #: CPU time taken from the guest.
    throttle_ratio: float = 0.0
    #: As QEMU estimates it.
    expected_downtime_seconds: float = 0.0
    #: What QEMU was given; ``null`` once there was nothing left to decide.
    downtime_limit_seconds: float | None = None
    #: Pages that the guest had to wait for.
    postcopy_requests: int = 0


class DirtyRateHour(Document):
    """A guest's write rate in one hour of the day, the mean of its measurements there."""

    #: 0 to 23, UTC.
    hour: int
    bytes_per_second: float
    #: Measurements that count; what is older counts less.
    weight: float


class DirtyRatesDocument(Document):
    """A guest's write rate over the day, as it was measured on all days of which something is known."""

    guest: str
    #: Only those of which something is known.
    hours: list[DirtyRateHour] = Field(default_factory=list)


class CheckDocument(Document):
    """Preflight alone."""

    guest: str
    host: str
    possible: bool
    findings: list[FindingDocument] = Field(default_factory=list)


class CommandDocument(Document):
    """A command and what it was answered: an entry of the audit."""

    verb: str
    user: str
    interface: str
    #: Where it came from: an address, a topic.
    origin: str = ""
    #: The caller's own.
    id: str | None = None
    #: ``accepted`` or ``refused``, and with the latter why.
    answer: str
    code: str | None = None
    message: str | None = None
    #: What it began or found.
    subject: str | None = None
    subject_id: str | None = None
