"""The services that the session of a migration works with: hosts, records of steps, and the journal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from migrator.core.migration.situation import Intent
from migrator.core.model import Finding, RunState
from migrator.core.policy import Policy
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.engine.migration.shared_path import OwnPath, SharedPath
from migrator.ports import (
    ColdStarts,
    EndedRecord,
    Experience,
    GuestNetworks,
    Hooks,
    IncomingDestination,
    Qemu,
    Record,
    Samples,
    SavedGuests,
    StrayRecord,
    StreamPath,
    StreamTunnel,
)

if TYPE_CHECKING:
    from migrator.engine.migration.quiet_wait import GuestHistory
    from migrator.ports.hooks import RollHooks


class MovedGuest(Protocol):
    """The guest of a session, as far as that knows it by itself; a site may ask more of guests that are its own."""

    @property
    def host(self) -> str:
        """Return the host where it runs."""

    @property
    def socket(self) -> str:
        """Return the path of its monitor there."""

    @property
    def uuid(self) -> str:
        """Return its uuid; empty where that is not known."""

    @property
    def run(self) -> RunState | None:
        """Return the run state that it was last seen in; ``None`` before it was asked."""


class MigrationSite(GuestNetworks, Protocol):
    """The part of :class:`migrator.ports.Site` that one migration needs; its contracts are there.

    Guests are those that the session was made with, sources those that :meth:`open` gave: whoever implements this knows
    what they are.
    """

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> Qemu: ...

    async def check(self, guest: Any, source: Any, target: str, policy: Policy) -> tuple[Finding, ...]: ...

    async def start_destination(
        self,
        guest: Any,
        source: Any,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> IncomingDestination: ...

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice: ...

    async def spare_cpus(self, source: str, target: str) -> float | None: ...

    async def mend_clock(self, host: str, end: Any, *, stood_seconds: float) -> str: ...

    async def suppress_restart(self, guest: Any) -> None: ...

    async def allow_restart(self, guest: Any) -> None: ...

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None: ...

    async def keep_images(self, host: str, *, migration: str) -> None: ...

    async def put_aside(self, guest: Any, paths: Sequence[str], *, migration: str) -> Mapping[str, str]: ...

    async def settle(self, guest: Any) -> Sequence[str]: ...

    async def clear(self, guest: Any) -> None: ...

    def stream_path(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamPath: ...

    def stream_tunnel(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamTunnel: ...


class StepRecordStore(Protocol):
    """The records of the steps of migrations."""

    def create(self, migration: str) -> Record:
        """Return a new record; nothing is written before :meth:`migrator.ports.Record.begin`."""

    @property
    def whole(self) -> bool:
        """Return whether they are those that belong to the journal: what neither knows to have begun has not."""

    async def take_up(self, migration: str) -> tuple[Record, Mapping[str, Any], Intent] | None:
        """Return the record another controller left, locked, with its facts and its last intent; ``None`` without one.

        :raise RecordInUse: a living controller holds it.
        :raise RecordError: it cannot be read.
        """

    async def outcome(self, migration: str) -> EndedRecord | None:
        """Return how a migration ended whose record has been put away; ``None`` without such a record."""

    async def strays(self, known: Container[str]) -> Sequence[StrayRecord]:
        """Return the records that have not been put away, of other migrations than these."""

    def release(self, record: Record) -> None:
        """Let go of a record that has not ended."""

    async def put_away(self, migration: str, outcome: Mapping[str, Any]) -> None:
        """Put the record of a migration away, if there is one: a person, or the journal, says that it has ended.

        :raise RecordError: it cannot be, or a living controller holds it.
        """


@dataclass(frozen=True, kw_only=True)
class SessionServices:
    """The services that all sessions of a controller share."""

    site: MigrationSite
    records: StepRecordStore
    #: Makes findings into what they are once those codes are accepted; raises UsageError for what cannot be.
    accept: Callable[[Sequence[Finding], Sequence[str]], Sequence[Finding]]
    #: Writes the session that it is given down: on disk when it returns; raises JournalError.
    keep: Callable[[Any], Awaitable[None]]
    #: What people call the controller that drives.
    controller: str = ""
    experience: Experience | None = None
    samples: Samples | None = None
    #: Marks the source before its destination is started; not where a person has started that already.
    claims_before_start: bool = True
    #: One that was ended only because nobody could steer it is queued again; not where a person has started the
    #: destination, which takes one migration and no second.
    begins_anew: bool = True
    #: Judges what a check of a session found by what others need; returns the findings with what that adds to them.
    judge_room: Callable[[Any, Sequence[Finding]], Sequence[Finding]] = lambda session, found: found
    #: Bytes per second that the links between two hosts let one stream carry, as a plan forecasts with; ``None``: not
    #: known.
    stream_speed: Callable[[str, str], float | None] = lambda source, target: None
    #: The stream of a migration between two hosts, as one of those that share links.
    shared_path: Callable[[str, str], SharedPath] = lambda source, target: OwnPath()
    #: What is known of guests from before; ``None`` where nothing is kept.
    history: GuestHistory | None = None
    #: The deadline of an evacuation, seconds since the epoch; ``None``: it has none.
    deadline: Callable[[str], float | None] = lambda evacuation: None
    #: Commands of the site that are run while a guest moves; ``None``: there are none.
    hooks: Hooks | None = None
    #: Commands of the site that are run for whole hosts, in a rolling evacuation.
    roll_hooks: RollHooks | None = None
    #: Guests whose state is in files.
    saved: SavedGuests | None = None
    #: Guests that are shut down and started anew; ``None``: none are.
    cold: ColdStarts | None = None
    #: So many times as long as usual is waited for the next look at a migration that is far from its switch.
    look_stretch: Callable[[], float] = lambda: 1.0
    #: Seconds after which images are removed that a guest has left at its source, where its policy says so.
    source_image_grace_seconds: Callable[[], float] = lambda: 3600.0
    #: Seconds for which the recovery of a broken postcopy stream is tried before a person has to look.
    recovery_seconds: Callable[[], float] = lambda: PhaseTimeouts.recovery


@dataclass(frozen=True, kw_only=True)
class EndLocation:
    """The place where one end of a migration is found again."""

    host: str
    socket: str
    #: Of its process, where that is known.
    identity: Mapping[str, Any] = field(default_factory=dict)
