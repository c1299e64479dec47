"""Documents that describe the service: one model for each thing, the same over HTTP, MQTT and on the command line.

Units are those of the whole project: bytes, bytes per second, seconds, ratios of 0 to 1. Times are RFC 3339 in UTC.
Version 1 only gains fields.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from migrator.core.drain.roll import RollStage
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.drain.window import WindowFit
from migrator.core.inventory import HostState
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


class EvacuationGuest(Document):
    """One guest of an evacuation."""

    guest: str
    guest_name: str = ""
    standing: GuestStanding
    target: str | None = None
    #: Why there, or why not, in one sentence.
    reason: str = ""
    attempts: int = 0
    #: Of the present or last attempt.
    migration: str | None = None
    #: In that it certainly stood still for longer than its policy allows.
    ceiling_exceeded: bool = False
    #: Seconds from now, p50, as predicted.
    starts_in_seconds: float | None = None
    takes_seconds: float | None = None
    downtime_seconds: float | None = None
    #: Why its migration is not expected to end under its policy, in one sentence; empty where it is.
    doubt: str = ""


class RolledHost(Document):
    """One host of a rolling evacuation."""

    host: str
    stage: RollStage
    #: What it waits for, or why it is not well, in one sentence.
    reason: str = ""
    #: When it came to that stage.
    since: datetime | None = None
    #: The ids of its evacuation and of its restore, once they are begun.
    evacuation: str | None = None
    restore: str | None = None


class EvacuationDocument(Document):
    """A set of migrations that empties a host, or brings its guests home, or moves the guests of a group together; or a
    rolling evacuation, which empties hosts one after the other, hands them over, and fills them again.
    """

    id: str
    kind: Literal["evacuate", "restore", "group", "roll"] = "evacuate"
    #: With ``group`` and ``roll`` empty.
    host: str
    #: With ``group``: its name, and the host that its guests go to; empty: where there is room for each.
    group: str = ""
    target: str = ""
    state: EvacuationState
    policy: str = ""
    requested_by: str = ""
    #: The W3C trace context that came with the command.
    traceparent: str | None = None
    tracestate: str | None = None
    created_at: datetime
    ended_at: datetime | None = None
    deadline: datetime | None = None
    on_deadline: Literal["continue", "stop"] = "continue"
    #: Its window, where it has one: ``scheduled`` until it begins; nothing of it is begun after the window's end.
    starts_at: datetime | None = None
    window_ends_at: datetime | None = None
    #: What is remarkable about the local times that were given: a change of clocks.
    window_note: str = ""
    #: While it is scheduled: whether the window is expected to do, and why, in one sentence.
    window_fit: WindowFit | None = None
    window_forecast: str = ""
    #: It begins within ten minutes.
    begins_soon: bool = False
    #: Whether it may be cancelled, as of now.
    can_cancel: bool = False
    #: The deadline has passed with guests left.
    late: bool = False
    #: The forecast says that the deadline will be missed (its p50), or may be (its p90), or that a guest will stay.
    at_risk: bool = False
    #: Without the guests that are not expected to leave; ``null`` where nobody is, or where it has proved wrong.
    forecast_end_at: datetime | None = None
    forecast_end_p10_at: datetime | None = None
    forecast_end_p90_at: datetime | None = None
    guests: list[EvacuationGuest] = Field(default_factory=list)
    guests_left: int = 0
    #: With ``roll``: its hosts, in their order, and how many of them may be away from use at a time.
    hosts: list[RolledHost] = Field(default_factory=list)
    max_unavailable: int | None = None
    error: str | None = None


class HostDocument(Document):
    """One host."""

    host: str
    state: HostState
    #: No new guests come here, whatever its state; those that are here stay.
    cordoned: bool = False
    up: bool
    error: str = ""
    address: str = ""
    guests: int = 0
    #: Of these: QEMUs without a monitor where it was looked for.
    guests_unmonitored: int = 0
    #: Of these: in a migration that nobody drives.
    guests_undriven: int = 0
    #: Of these: cannot be moved at all; each says why.
    guests_not_movable: int = 0
    #: Uuids that run here and, at the same time, once more, here or elsewhere: an emergency.
    guests_duplicate: list[str] = Field(default_factory=list)
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0
    cpus: int = 0
    kvm: bool = False
    #: Why its libvirt cannot be asked, in one line; empty where it can, or there is none.
    libvirt_error: str = ""
    #: Guests that its libvirt has shut off: they are none of ``guests``, and stay when it is emptied.
    guests_shut_off: int = 0
    link_bytes_per_second: float | None = None
    #: What the slowest paths from it were seen to hold streams back at, by target, bytes per second: ten at most.
    slowest_paths: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    qemus: dict[str, str] = Field(default_factory=dict)
    #: When the first of its certificates for encrypted streams expires; ``None``: it has none.
    certificates_expire_at: datetime | None = None
    looked_at: datetime | None = None
    #: The next evacuation that is scheduled for it, and when it begins and ends.
    scheduled: str | None = None
    scheduled_at: datetime | None = None
    scheduled_until: datetime | None = None


class LibvirtGuestDocument(Document):
    """Facts that libvirt gives of a guest, besides what is known of every guest."""

    #: It has a definition that outlasts it.
    persistent: bool
    #: It is started when its host is.
    autostart: bool
    managed_save: bool
    snapshots: int
    checkpoints: int
    #: Targets of the disks that a job of libvirt works on (``vda``).
    block_jobs: list[str]
    #: Devices of its host that it has (``pci 0000:01:00.0``).
    host_devices: list[str]


class GuestDocument(Document):
    """One guest."""

    guest: str
    name: str = ""
    uuid: str = ""
    #: Ours, for one that was started without a uuid: it stays when the guest moves.
    identity: str = ""
    host: str
    #: QEMU's word for it; ``lost-contact`` while it cannot be asked.
    run_state: str
    #: It has a monitor where its host's are looked for.
    monitored: bool = True
    memory_bytes: int = 0
    vcpus: int = 0
    dirty_rate_bytes_per_second: float | None = None
    policy: str = ""
    #: Whether what carries its network cards is up (``up``, ``down``, ``none``: it has no tap, ``unknown``), and what
    #: is not, in one line.
    network_state: NetworkState = NetworkState.UNKNOWN
    network_problem: str = ""
    movable: bool = True
    #: Why not, in one line.
    obstacle: str = ""
    obstacle_code: str = ""
    #: Its uuid runs twice: an emergency.
    duplicate: bool = False
    #: Who else manages it: ``libvirt``, ``proxmox``, ``systemd:UNIT``…; empty where nobody is known to.
    managed_by: str = ""
    #: What libvirt says of it; ``None`` where it is not libvirt's, or that cannot be asked.
    libvirt: LibvirtGuestDocument | None = None
    #: Its migration under way.
    migration: str | None = None


class CheckDocument(Document):
    """Preflight alone."""

    guest: str
    host: str
    possible: bool
    findings: list[FindingDocument] = Field(default_factory=list)


class LoadableDocument(Document):
    """The answer to whether a saved guest can be loaded on one host, as far as that shows without trying."""

    host: str
    loadable: bool
    #: Why not, in one line.
    reason: str = ""


class SavedGuestDocument(Document):
    """A guest whose state is in a file."""

    #: The migration that saved it.
    migration: str
    guest: str
    guest_name: str = ""
    host: str
    file: str
    #: ``saving``: its guest may go on where it was. ``saved``. ``loading``: a migration takes it out of the file.
    #: ``outdated``: the guest runs, or has run since. ``missing``: there is no such file any more. ``unreadable``: what
    #: is there is not what was saved. ``unknown``: its host cannot be asked.
    state: Literal["saving", "saved", "loading", "outdated", "missing", "unreadable", "unknown"]
    #: Why it is not simply ``saved``, in one line.
    reason: str = ""
    saved_at: datetime | None = None
    size_bytes: int | None = None
    #: The QEMU that saved it, and its machine type.
    qemu: str = ""
    qemu_version: str = ""
    machine: str = ""
    #: Of every host that can be asked.
    hosts: list[LoadableDocument] = Field(default_factory=list)


class SavedGuestsDocument(Document):
    """Guests that are saved in files and were not loaded yet, the oldest first."""

    items: list[SavedGuestDocument] = Field(default_factory=list)


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
