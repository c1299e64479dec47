"""The words of migrator as types: what one end of a migration shows, samples, findings, decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a migration is in its lifecycle; the one word for it on every interface."""

    #: Waits for its turn.
    QUEUED = "queued"
    #: Something has to come first: a job on its disks has to end. Nothing is changed meanwhile.
    WAITING = "waiting"
    #: Both ends are being set up; the guest notices nothing.
    PREPARING = "preparing"
    #: The guest's disks that the target does not share are copied while the guest runs.
    MIRRORING = "mirroring"
    #: Memory is copied while the guest runs.
    PRECOPY = "precopy"
    #: The guest stands still: the last pages and the devices' state are on their way.
    SWITCHOVER = "switchover"
    #: The guest runs at the destination and fetches what it misses from the source.
    POSTCOPY = "postcopy"
    #: A broken postcopy stream is being mended.
    RECOVERING = "recovering"
    #: The guest runs where it shall; what is left over is being cleared away.
    FINISHING = "finishing"
    #: The guest is at the destination, as it was.
    COMPLETED = "completed"
    #: The guest is at the source, as it was.
    FAILED = "failed"
    #: Somebody asked for it; the guest is at the source, as it was.
    CANCELLED = "cancelled"
    #: The guest ended by itself.
    GUEST_ENDED = "guest-ended"
    #: A person must look; nothing is touched until then.
    HELD = "held"

    @property
    def final(self) -> bool:
        """True where nothing more will happen by itself."""
        return self in _FINAL


_FINAL = {State.COMPLETED, State.FAILED, State.CANCELLED, State.GUEST_ENDED, State.HELD}


class Mode(StrEnum):
    """How the memory travelled."""

    PRECOPY = "precopy"
    POSTCOPY = "postcopy"
    #: The guest stood still for all of it, because its policy said so.
    OFFLINE = "offline"
    #: It did not: the guest was shut down, and started anew at the destination.
    COLD = "cold"


#: The guest stands still for all of it, and no ceiling of downtime is meant.
STOPPED_MODES = frozenset({Mode.OFFLINE, Mode.COLD})


class RunState(StrEnum):
    """QEMU's run state (query-status); ``OTHER`` stands for one this version of migrator does not know."""

    RUNNING = "running"
    PAUSED = "paused"
    PRELAUNCH = "prelaunch"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    GUEST_PANICKED = "guest-panicked"
    IO_ERROR = "io-error"
    INTERNAL_ERROR = "internal-error"
    WATCHDOG = "watchdog"
    DEBUG = "debug"
    SAVE_VM = "save-vm"
    RESTORE_VM = "restore-vm"
    COLO = "colo"
    OTHER = "other"

    @classmethod
    def _missing_(cls, value: object) -> RunState:  # noqa: ARG003 - enum calls it so
        return cls.OTHER


#: The guest runs, or sleeps (S3) and will wake by itself: whoever moves it must let it run at the other end.
RUNNING_STATES = frozenset({RunState.RUNNING, RunState.SUSPENDED})


class MigrationStatus(StrEnum):
    """QEMU's migration status (query-migrate); an unknown one means "in progress, ask again"."""

    NONE = "none"
    SETUP = "setup"
    WAIT_UNPLUG = "wait-unplug"
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    POSTCOPY_DEVICE = "postcopy-device"
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_PAUSED = "postcopy-paused"
    POSTCOPY_RECOVER_SETUP = "postcopy-recover-setup"
    POSTCOPY_RECOVER = "postcopy-recover"
    COMPLETED = "completed"
    FAILING = "failing"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COLO = "colo"
    OTHER = "other"

    @classmethod
    def _missing_(cls, value: object) -> MigrationStatus:  # noqa: ARG003 - enum calls it so
        return cls.OTHER


class ProcessState(StrEnum):
    """State of a QEMU process, as far as it is known."""

    ALIVE = "alive"
    #: Proven: its pidfd says so, or the fence command did.
    DEAD = "dead"
    #: Nobody here can tell (a QMP address over TCP and no pid).
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class View:
    """State of one end as a query of a moment ago showed it; the truth, as far as there is one."""

    process: ProcessState
    #: It answered both queries in time; without it run and status are not to be read.
    answers: bool = False
    run: RunState = RunState.OTHER
    status: MigrationStatus = MigrationStatus.NONE
    #: It announced its own end (event SHUTDOWN) before its process went away.
    ended: bool = False
    #: Its process can be killed and seen dead from here.
    can_fence: bool = False
    #: QEMU's words for why the migration failed, where it has any.
    error: str = ""
    #: Figures of the running migration, where it has any.
    sample: Sample | None = None
    #: At a destination that measures it: for how long all of the guest, and each of its vCPUs, has waited for pages in
    #: postcopy so far; ``None`` where it is not measured.
    postcopy_stall_seconds: float | None = None
    postcopy_vcpu_stall_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Figures of a running migration at one moment, in base units (query-migrate at the source)."""

    #: Seconds since the migration began, on the controller's clock.
    at_seconds: float = 0.0
    #: Passes over dirty memory so far; 1 is the first, whole copy (dirty-sync-count).
    round: int = 0
    total_bytes: int = 0
    remaining_bytes: int = 0
    transferred_bytes: int = 0
    #: Bytes of pages the guest dirtied per second between the last two syncs; 0 until the second.
    dirty_rate_bytes_per_second: float = 0.0
    #: As QEMU measured it over its last tenth of a second.
    bandwidth_bytes_per_second: float = 0.0
    throttle_ratio: float = 0.0
    #: QEMU's own estimate; the bare limit until the second round.
    expected_downtime_seconds: float = 0.0
    #: The source's own part of it; 0 until it is known.
    downtime_seconds: float = 0.0
    postcopy_requests: int = 0
    #: Written by QEMU and not acknowledged by the destination's kernel: what the source's sockets and the path hold.
    #: ``None`` where that is not known.
    queued_bytes: int | None = None
    #: Written by the guest to disks that are copied, and not yet sent by their mirrors: it goes while the guest stands
    #: still, before the last pages.
    disk_backlog_bytes: int = 0
    #: What its path carries for all streams, while others share it; 0: it is alone, or that is not known.
    attainable_bytes_per_second: float = 0.0
    #: It gives way to another guest's switch for a moment: its bandwidth says nothing.
    gives_way: bool = False
    #: What it may send at the most, bytes per second, as others share its path or its policy says; 0: what it can.
    allowed_bytes_per_second: float = 0.0


class Severity(StrEnum):
    """How much a finding matters."""

    #: The migration must not begin.
    ERROR = "error"
    #: It may begin; a person should know.
    WARNING = "warning"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One result of preflight, with what to do about it."""

    #: Stable; what ``--accept`` and scripts refer to.
    code: str
    severity: Severity
    message: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One action of the controller and the numbers that led to it, in words a person can check."""

    #: Seconds since the first command that changed anything.
    at_seconds: float
    action: str
    reason: str
    numbers: dict[str, float | int | str] = field(default_factory=dict)
